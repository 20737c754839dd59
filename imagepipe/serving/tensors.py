"""Tensors of the Open Inference Protocol in binary, by HTTP and gRPC alike, and the outputs of answers as arrays.

Numbers are little-endian; of BYTES each element comes after its length, 4 bytes.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from imagepipe.serving.limits import MAX_INSTANCES
from imagepipe.serving.types import Answers, RequestError

_NUMBERS = {  # by datatype: numpy's name of the type
    "BOOL": "?",
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}
_RANGES = {name: np.iinfo(dtype) for name, dtype in _NUMBERS.items() if np.dtype(dtype).kind in "iu"}


def check_count(count: int) -> None:
    """Checks the number of images of a request.

    Raises:
        RequestError: if there is none, or are too many.
    """
    if not count:
        raise RequestError("no_instances", "there is nothing to predict")
    if count > MAX_INSTANCES:
        raise RequestError("too_many_instances", f"{count:,} instances, and at most {MAX_INSTANCES} are taken at once")


def read_values(name: str, datatype: str, body: bytes, start: int, end: int) -> list[Any]:
    """Returns the values of a tensor in binary, between two places in a body.

    Raises:
        RequestError: if they aren't of that datatype, or more than MAX_INSTANCES.
    """
    if datatype == "BYTES":
        return _split_elements(body, start, end)
    if datatype not in _NUMBERS:
        raise RequestError("wrong_type", f"{name!a} has an unknown datatype: {datatype!a}")
    dtype, size = np.dtype(_NUMBERS[datatype]), end - start
    if size % dtype.itemsize or size > MAX_INSTANCES * dtype.itemsize:
        raise RequestError("wrong_type", f"{name!a}: {size:,} bytes don't fit [n] of {datatype}")
    return mark_missing(np.frombuffer(body[start:end], dtype).tolist())


def check_values(name: str, datatype: str, values: Sequence[Any]) -> None:
    """Checks that all values of a tensor are of its datatype; None is a missing number.

    Raises:
        RequestError: if one is not, or there is no such datatype.
    """
    if datatype == "BYTES":
        wrong = [x for x in values if not isinstance(x, str | bytes)]
    elif datatype == "BOOL":
        wrong = [x for x in values if not isinstance(x, bool)]
    elif datatype in _RANGES:
        low, high = int(_RANGES[datatype].min), int(_RANGES[datatype].max)
        wrong = [x for x in values if not (_is_number(x) and (x is None or (low <= x <= high and x % 1 == 0)))]
    elif datatype in _NUMBERS:
        wrong = [x for x in values if not _is_number(x)]
    else:
        raise RequestError("wrong_type", f"{name!a} has an unknown datatype: {datatype[:100]!a}")
    if wrong:
        # Lists in lists are not quoted, as they may be nested more deeply than Python can print.
        quoted = str(wrong[0]) if wrong[0] is None or isinstance(wrong[0], int | float) else type(wrong[0]).__name__
        raise RequestError("wrong_type", f"{name!a} has a value that is no {datatype}: {quoted}")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def mark_missing(values: list[Any]) -> list[Any]:
    """Returns values with None for a missing number, for which tensors have NaN."""
    return [None if isinstance(value, float) and value != value else value for value in values]


def _split_elements(body: bytes, start: int, end: int) -> list[bytes]:
    elements: list[bytes] = []
    while start < end:
        check_count(len(elements) + 1)
        first = start + 4
        start = first + int.from_bytes(body[start:first], "little")
        if start > end:
            raise RequestError("wrong_type", "a tensor in binary ends in the middle of an element")
        elements.append(body[first:start])
    return elements


def list_outputs(has_novelty: bool) -> list[str]:
    """Returns the names of a model's outputs."""
    return ["classes", "label", "score", "metadata", *(["novelty"] if has_novelty else [])]


def check_outputs(wanted: Collection[str], has_novelty: bool) -> None:
    """Checks the names of the outputs that a request asks for, before the model is asked.

    Raises:
        RequestError: if the model has none of a name, or one is asked for twice.
    """
    outputs = list_outputs(has_novelty)
    asked = set()
    for name in wanted:
        if name not in outputs:
            raise RequestError("unknown_field", f"there is no output {name!a}; the model has {', '.join(outputs)}")
        if name in asked:
            raise RequestError("wrong_type", f"the output {name!a} is asked for twice")
        asked.add(name)


def choose_outputs(answers: Answers, wanted: Collection[str]) -> dict[str, np.ndarray]:
    """Returns the outputs that are wanted, all by default: float32, or text in an array of objects."""
    outputs = {
        "classes": np.asarray(answers.classes, np.float32),
        "label": np.array(answers.labels, object),
        "score": np.asarray(answers.scores, np.float32),
        "metadata": np.array(answers.ids, object),
    }
    if answers.novelty is not None:
        outputs["novelty"] = np.asarray(answers.novelty, np.float32)
    return {name: outputs[name] for name in wanted} if wanted else outputs


def name_datatype(array: np.ndarray) -> str:
    """Returns the datatype of an output."""
    return "BYTES" if array.dtype == object else "FP32"


def encode_texts(array: np.ndarray) -> list[bytes]:
    """Returns text in UTF-8, with ? for what that can't encode."""
    return [text.encode(errors="replace") for text in array]


def join_values(array: np.ndarray) -> bytes:
    """Returns an output in binary."""
    if array.dtype == object:
        return b"".join(len(text).to_bytes(4, "little") + text for text in encode_texts(array))
    return array.astype("<f4").tobytes()
