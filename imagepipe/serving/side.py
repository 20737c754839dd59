"""Side features as a table, a query or a form has them, in the types that a model's signature wants."""

import json
import math
import re
from collections.abc import Iterable

from imagepipe.base.features import MISSING_NUMBERS
from imagepipe.serving.types import RequestError, Value

# No underscores, names of infinity and blanks, as Python's own would take; and in linear time. pandas writes a column
# of whole numbers as 100.0 if one of them is missing.
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}(\.0{0,9})?")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")


def convert_value(name: str, value: object, type_: str) -> Value:
    """Returns a side feature's value in the type that the signature wants; None for a number that is missing.

    Args:
        name: of the feature.
        value: text, or what JSON has: a number, true, false, null.
        type_: ``string``, ``float32`` or ``int64``.

    Raises:
        RequestError: if it is none of the type, or a missing whole number, for which tensors have no value; the
            message names the feature.
    """
    if isinstance(value, list | dict):
        raise RequestError("wrong_type", f"{name!a} is neither text nor a number")
    plain = "" if value is None else int(value) if isinstance(value, bool) else value
    text = plain if isinstance(plain, str) else json.dumps(plain)
    if type_ == "string":
        return text
    text = text.strip()
    if not text or text in MISSING_NUMBERS:
        if type_ == "int64":
            raise RequestError("missing_feature", f"{name!a} is missing, and the model needs a whole number there")
        return None
    pattern, convert, kind = (_INTEGER, _to_int, "a whole number") if type_ == "int64" else (_NUMBER, float, "a number")
    if not pattern.fullmatch(text):
        raise RequestError("wrong_type", f"{name!a} is {text[:100]!a}; the model needs {kind} there")
    return convert(text)


def fill_missing(values: Iterable[Value]) -> list[str | int | float]:
    """Returns values with NaN, which stands for a missing number in tensors and files, for None."""
    return [math.nan if value is None else value for value in values]


def _to_int(text: str) -> int:
    return int(text.partition(".")[0])
