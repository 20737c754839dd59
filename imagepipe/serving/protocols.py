"""The server's protocols, as pure functions: from bodies to requests, and from answers to bodies.

- TensorFlow Serving's REST API, which KServe's V1 protocol, Vertex AI and ML Engine share: row format
  (``{"instances": [{"input": {"b64": "…"}, "metadata": "id-1"}]}``, answered by ``predictions``) and column format
  (``{"inputs": {"input": [{"b64": "…"}], "metadata": ["id-1"]}}``, answered by ``outputs``).
- Open Inference Protocol v2: inputs ``input`` (BYTES [n]; in JSON its elements are base64, in the binary form the
  images' own bytes), ``metadata`` (BYTES [n]) and side features; outputs ``classes`` (FP32 [n, k]), ``label`` (BYTES
  [n]), ``score`` (FP32 [n]) and ``metadata`` (BYTES [n]).
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from imagepipe.deploy.kserve_library import InferenceRequest
from imagepipe.serving.instances import parse_instance
from imagepipe.serving.limits import MAX_INSTANCES
from imagepipe.serving.types import Answers, Request, RequestError

FormatAnswers = Callable[[Answers], dict[str, Any]]
"""Builds the body of the response."""

_SIGNATURE = "serving_default"
_FIELDS = {"instances", "inputs", "signature_name", "parameters"}  # Vertex AI always sends parameters


def parse_rest(body: bytes) -> tuple[list[Request], FormatAnswers]:
    """Reads a request of TensorFlow Serving's REST API.

    Returns:
        The requests in it, and the function that formats their answers.

    Raises:
        RequestError: if it is not one; the message says where.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("not_json", f"the body is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise RequestError("wrong_type", 'expected an object such as {"instances": […]}')
    if unknown := sorted(parsed.keys() - _FIELDS):
        raise RequestError("unknown_field", f"'{unknown[0]}' is not known; the body takes {', '.join(sorted(_FIELDS))}")
    if parsed.get("signature_name", _SIGNATURE) not in (_SIGNATURE, ""):
        raise RequestError("unknown_field", f"'signature_name' has to be {_SIGNATURE}")
    if ("instances" in parsed) == ("inputs" in parsed):
        raise RequestError("wrong_type", "expected either 'instances' (rows) or 'inputs' (columns)")
    if "inputs" in parsed:
        return _parse_rows(_transpose(parsed["inputs"])), _format_columns
    return _parse_rows(parsed["instances"]), _format_rows


def _parse_rows(rows: Any) -> list[Request]:
    if not isinstance(rows, list):
        raise RequestError("wrong_type", "'instances' has to be a list")
    _check_count(len(rows))
    return [_parse_numbered(parse_instance, number, row) for number, row in enumerate(rows)]


def _check_count(count: int) -> None:
    if not count:
        raise RequestError("no_instances", "there is nothing to predict")
    if count > MAX_INSTANCES:
        raise RequestError("too_many_instances", f"{count:,} instances, and at most {MAX_INSTANCES} are taken at once")


def _parse_numbered(parse: Callable[[Any], Request], number: int, row: Any) -> Request:
    """Parses a row; an error names its number."""
    try:
        return parse(row)
    except RequestError as error:
        raise RequestError(error.kind, f"instance {number}: {error}") from None


def _transpose(columns: Any) -> list[dict[str, Any]]:
    if isinstance(columns, list):  # of the only input that is required
        columns = {"input": columns}
    if not isinstance(columns, dict):
        raise RequestError("wrong_type", "'inputs' has to be an object of lists")
    for name, values in columns.items():
        if not isinstance(values, list):
            raise RequestError("wrong_type", f"'inputs': '{name}' has to be a list, one value per image")
    if "input" not in columns:
        raise RequestError("missing_input", "'input' is missing")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise RequestError("wrong_type", f"'inputs' has lists of different lengths: {lengths}")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _format_columns(answers: Answers) -> dict[str, Any]:
    return {
        "outputs": {
            "classes": answers.classes.tolist(),
            "label": answers.labels,
            "score": answers.scores.tolist(),
            "metadata": answers.ids,
        }
    }


def _format_rows(answers: Answers) -> dict[str, Any]:
    columns = _format_columns(answers)["outputs"]
    return {"predictions": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]}


def parse_v2(body: bytes, json_length: int | None = None) -> tuple[list[Request], FormatAnswers]:
    """Reads a request of the Open Inference Protocol.

    KServe's own parser would refuse the bytes of an image in the binary form: it takes them for text.

    Args:
        body: JSON, then the contents of the tensors with the parameter ``binary_data_size``, one after the other.
        json_length: bytes of the JSON; None if it is the whole body.

    Returns:
        The requests in it, and the function that formats their answers.

    Raises:
        RequestError: if it is not one; the message says where.
    """
    try:
        parsed = InferenceRequest.model_validate(_insert_binary_data(body, json_length))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RequestError("wrong_type", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    columns: dict[str, list[Any]] = {}
    for tensor in parsed.inputs:
        if [len(tensor.data)] != [n for n in tensor.shape[:1] if tensor.shape[1:] in ([], [1])]:
            raise RequestError(
                "wrong_type",
                f"'{tensor.name}' has shape {tensor.shape} and {len(tensor.data)} values; expected [n] or [n, 1]",
            )
        is_text = all(isinstance(x, str | bytes) for x in tensor.data)
        if is_text != (tensor.datatype.upper() == "BYTES"):
            raise RequestError("wrong_type", f"'{tensor.name}' has values that are not {tensor.datatype}")
        if tensor.name == "input" and not is_text:
            raise RequestError("wrong_type", "'input' has to be of BYTES: images, in base64 or in the binary form")
        columns[tensor.name] = tensor.data
    if "input" not in columns:
        raise RequestError("missing_input", "the tensor 'input' is missing")
    _check_count(len(columns["input"]))
    requests = [_parse_numbered(_parse_v2_row, number, row) for number, row in enumerate(_transpose(columns))]
    return requests, lambda answers: _format_tensors(answers, parsed.id)


def _insert_binary_data(body: bytes, json_length: int | None) -> Any:
    """Returns the parsed JSON of a body, with the contents of binary tensors as their ``data``."""
    try:
        parsed = json.loads(body[:json_length])
    except (ValueError, RecursionError) as error:
        raise RequestError("not_json", f"the body is not JSON: {error}") from None
    rest = body[json_length:] if json_length is not None else b""
    tensors = parsed.get("inputs") if isinstance(parsed, dict) else None
    for tensor in tensors if isinstance(tensors, list) else ():
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if not isinstance(size, int) or not 0 <= size <= len(rest) or "data" in tensor:
            raise RequestError("wrong_type", "a tensor's 'binary_data_size' doesn't fit the body")
        if str(tensor.get("datatype")).upper() != "BYTES":
            raise RequestError("wrong_type", "only tensors of BYTES are taken in binary")
        tensor["data"], rest = _split_elements(rest[:size]), rest[size:]
    if rest:
        raise RequestError("wrong_type", f"the body has {len(rest):,} bytes after its last tensor")
    return parsed


def _split_elements(packed: bytes) -> list[bytes]:
    """Returns the elements of a binary BYTES tensor: each after its length, 4 bytes, little-endian."""
    elements, at = [], 0
    while at < len(packed):
        end = at + 4 + int.from_bytes(packed[at : at + 4], "little")
        if end > len(packed):
            raise RequestError("wrong_type", "a tensor in binary ends in the middle of an element")
        elements.append(packed[at + 4 : end])
        at = end
    return elements


def _parse_v2_row(row: dict[str, Any]) -> Request:
    image = row.pop("input")
    texts = {name: x.decode(errors="replace") if isinstance(x, bytes) else x for name, x in row.items()}
    if isinstance(image, bytes):
        return replace(parse_instance({"input": {"b64": ""}, **texts}), image=image)
    return parse_instance({"input": {"b64": image}, **texts})


def _format_tensors(answers: Answers, request_id: str | None) -> dict[str, Any]:
    count, k = answers.classes.shape
    outputs = [
        {"name": "classes", "shape": [count, k], "datatype": "FP32", "data": answers.classes.ravel().tolist()},
        {"name": "label", "shape": [count], "datatype": "BYTES", "data": answers.labels},
        {"name": "score", "shape": [count], "datatype": "FP32", "data": answers.scores.tolist()},
        {"name": "metadata", "shape": [count], "datatype": "BYTES", "data": answers.ids},
    ]
    return {
        "model_name": answers.name,
        "model_version": answers.version,
        "id": request_id or str(uuid.uuid4()),
        "outputs": outputs,
    }
