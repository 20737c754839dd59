"""A request as JSON: an instance of the REST API."""

import base64
from collections.abc import Mapping
from typing import Any

from imagepipe.base.features import MAX_SIDE_FEATURES
from imagepipe.serving.base64_text import decode_base64
from imagepipe.serving.limits import MAX_TEXT_CHARACTERS
from imagepipe.serving.types import Failure, Request, RequestError, Value

_MAX_NUMBER = 2**63  # JSON has larger ones, and NaN, which is not less than any number


def encode_instance(request: Request) -> dict[str, Any]:
    """Returns a request as an instance of the REST API."""
    return {"input": {"b64": base64.b64encode(request.image).decode()}, "metadata": request.id, **request.side}


def parse_instance(instance: Any, default_id: str = "") -> Request:
    """Returns the request in an instance of the REST API.

    Args:
        instance: parsed JSON. An object with nothing but ``b64`` is its input, as TensorFlow Serving takes it.
        default_id: the request's id if the instance has no ``metadata``.

    Raises:
        RequestError: if it is not an instance; the message gives the reason.
    """
    if not isinstance(instance, dict):
        raise RequestError("wrong_type", 'expected an object such as {"input": {"b64": "…"}, "metadata": "id-1"}')
    check_feature_count(len(instance))
    if list(instance) == ["b64"]:
        instance = {"input": instance}
    if "input" not in instance:
        raise RequestError("missing_input", "'input' is missing")
    encoded = instance["input"]
    if not isinstance(encoded, dict) or list(encoded) != ["b64"] or not isinstance(encoded["b64"], str):
        raise RequestError(
            "wrong_type", """'input' has to be an object {"b64": "…"} with the image's bytes in base64"""
        )
    try:
        image = decode_base64(encoded["b64"])
    except ValueError as error:  # binascii.Error, and its plain base class for other letters than ASCII
        raise RequestError("bad_base64", f"'input' is not valid base64: {error}") from None
    metadata = instance.get("metadata", default_id)
    if not isinstance(metadata, str):
        raise RequestError("wrong_type", "'metadata' has to be a string")
    side = {name: value for name, value in instance.items() if name not in ("input", "metadata")}
    return make_request(metadata, image, side)


def make_request(metadata: str, image: bytes, side: Mapping[str, Value]) -> Request:
    """Returns the request.

    Raises:
        RequestError: if its id or a side feature can't be sent, or can't be computed with.
    """
    request = Request(metadata, image, side)
    if problem := _find_problem(request):
        raise RequestError("wrong_type", problem)
    return request


def check_feature_count(fields: int) -> None:
    """Checks that the fields of an image, or the columns or tensors of a request, are as few as a model's can be.

    Raises:
        RequestError: if there are more.
    """
    if fields > MAX_SIDE_FEATURES + 2:
        raise RequestError(
            "too_many_features", f"{fields:,} fields, and at most {MAX_SIDE_FEATURES} side features are taken"
        )


def check_request(request: Request) -> Request | Failure:
    """Returns the request, or a failure if its id or a side feature would make a whole batch fail."""
    problem = _find_problem(request)
    return Failure(replace_surrogates(request.id), problem) if problem else request


def _find_problem(request: Request) -> str | None:
    """Returns why an id or a side feature can't be sent, or can't be computed with; None if all can."""
    for name, value in {"metadata": request.id, **request.side}.items():
        if len(name) > MAX_TEXT_CHARACTERS:
            return f"a name has {len(name):,} characters, and at most {MAX_TEXT_CHARACTERS:,} are taken"
        if value is None and name != "metadata":
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
        if not (is_number or isinstance(value, str)):
            return f"{name!a} has to be a number (of 64 bits) or a string"
        text = str(value)
        if len(text) > MAX_TEXT_CHARACTERS:
            return f"{name!a} has {len(text):,} characters, and at most {MAX_TEXT_CHARACTERS:,} are taken"
        if any(replace_surrogates(part) != part for part in (name, text)):
            return f"{name!a} is not valid text: {text!a}"
    return None


def replace_surrogates(text: str) -> str:
    """Returns text that UTF-8 can encode: names of files and strings of JSON may hold lone surrogates."""
    return text if text.isascii() else text.encode(errors="replace").decode()
