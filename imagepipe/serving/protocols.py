"""The server's protocols, as pure functions: from bodies to requests, and from answers to bodies.

- TensorFlow Serving's REST API, which KServe's V1 protocol, Vertex AI and ML Engine share: row format
  (``{"instances": [{"input": {"b64": "…"}, "metadata": "id-1"}]}``, answered by ``predictions``) and column format
  (``{"inputs": {"input": [{"b64": "…"}], "metadata": ["id-1"]}}``, answered by ``outputs``).
- Open Inference Protocol v2: inputs ``input`` (BYTES [n]; in JSON its elements are base64, in the binary form the
  images' own bytes), ``metadata`` (BYTES [n]) and side features; outputs ``classes`` (FP32 [n, k]), ``label`` (BYTES
  [n]), ``score`` (FP32 [n]) and ``metadata`` (BYTES [n]), all or those that are asked for, in binary if that is too.
"""

import codecs
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from imagepipe.base.images import BadImage, check_kind
from imagepipe.serving import tensors
from imagepipe.serving.instances import check_feature_count, parse_instance
from imagepipe.serving.limits import MAX_VALUES
from imagepipe.serving.tensors import check_count
from imagepipe.serving.types import Answers, Request, RequestError


class BinaryBody(NamedTuple):
    """A response of the Open Inference Protocol in its binary form.

    Attributes:
        header: its JSON.
        data: the contents of the tensors with the parameter ``binary_data_size``, one after the other.
    """

    header: dict[str, Any]
    data: bytes


FormatAnswers = Callable[[Answers], dict[str, Any] | BinaryBody]
"""Builds the body of the response."""

SIGNATURE = "serving_default"
_FIELDS = {"instances", "inputs", "signature_name", "parameters"}  # Vertex AI always sends parameters
_MARKS = (b",", b"[", b"{")  # a value follows each; those in strings count too
_SLICE = 2**18
_GZIP = b"\x1f\x8b"
_EXTENSIONS = ("classification", "shared_memory_region")  # Triton's, of which we have neither
_MAX_QUOTED_SIZES = 8  # of a shape, which has one or two if it is right
_TENSOR = {"name": str, "shape": list, "datatype": str, "data": list}


def parse_rest(body: bytes) -> tuple[list[Request], FormatAnswers]:
    """Reads a request of TensorFlow Serving's REST API.

    Returns:
        The requests in it, and the function that formats their answers.

    Raises:
        RequestError: if it is not one; the message says where.
    """
    parsed = _parse_json(body)
    if not isinstance(parsed, dict):
        raise RequestError("wrong_type", 'expected an object such as {"instances": […]}')
    if unknown := sorted(parsed.keys() - _FIELDS):
        raise RequestError("unknown_field", f"'{unknown[0]}' is not known; the body takes {', '.join(sorted(_FIELDS))}")
    if parsed.get("signature_name", SIGNATURE) not in (SIGNATURE, ""):
        raise RequestError("unknown_field", f"'signature_name' has to be {SIGNATURE}")
    if ("instances" in parsed) == ("inputs" in parsed):
        raise RequestError("wrong_type", "expected either 'instances' (rows) or 'inputs' (columns)")
    if "inputs" in parsed:
        return _parse_rows(_transpose(parsed["inputs"])), _format_columns
    return _parse_rows(parsed["instances"]), format_rows


def _parse_json(text: bytes) -> Any:
    """Returns parsed JSON, which has no more than MAX_VALUES values.

    Nothing is made of text that may have more: 64 MiB of ``{},{},…`` would become 1.4 GB, and stop all threads for 2 s.
    orjson takes digits of any number in time that is linear; the standard library needs 1.3 s for 64 MiB of them.
    """
    text = text.removeprefix(codecs.BOM_UTF8)
    values = 1
    for at in range(0, len(text), _SLICE):
        values += sum(text.count(mark, at, at + _SLICE) for mark in _MARKS)
        if values > MAX_VALUES:
            raise RequestError("too_many_values", f"more than {MAX_VALUES:,} commas and brackets in JSON")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError("not_json", f"the body is not JSON: {error}{_name_other_kind(text)}") from None


def _name_other_kind(body: bytes) -> str:
    """Returns how to send a body that is no JSON but something else that is taken."""
    if body.startswith(_GZIP):
        return ". It is gzip'd: send the header Content-Encoding: gzip"
    try:
        check_kind(body)
    except BadImage:
        return ""
    return ". It is an image: send the header Content-Type: image/jpeg"


def _parse_rows(rows: Any) -> list[Request]:
    if not isinstance(rows, list):
        raise RequestError("wrong_type", "'instances' has to be a list")
    check_count(len(rows))
    return [_parse_numbered(parse_instance, number, row) for number, row in enumerate(rows)]


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
    check_feature_count(len(columns))
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
    columns = {
        "classes": answers.classes.tolist(),
        "label": answers.labels,
        "score": answers.scores.tolist(),
        "metadata": answers.ids,
    }
    return {"outputs": columns if answers.novelty is None else columns | {"novelty": answers.novelty.tolist()}}


def format_rows(answers: Answers) -> dict[str, Any]:
    """Returns the answer of TensorFlow Serving's REST API, in row format."""
    columns = _format_columns(answers)["outputs"]
    return {"predictions": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]}


def parse_v2(
    body: bytes, json_length: int | None = None, has_novelty: bool = False
) -> tuple[list[Request], FormatAnswers]:
    """Reads a request of the Open Inference Protocol.

    KServe's own parser would refuse the bytes of an image in the binary form: it takes them for text.

    Args:
        body: JSON, then the contents of the tensors with the parameter ``binary_data_size``, one after the other.
        json_length: bytes of the JSON; None if it is the whole body.
        has_novelty: whether this is among the model's outputs.

    Returns:
        The requests in it, and the function that formats their answers.

    Raises:
        RequestError: if it is not one; the message says where.
    """
    parsed = _insert_binary_data(body, json_length)
    request_id = parsed.get("id")
    if not isinstance(request_id, str | None):
        raise RequestError("wrong_type", "'id' has to be a string")
    wanted, others = _read_wanted(parsed, has_novelty)
    return parse_tensors(parsed["inputs"]), lambda answers: format_tensors(answers, request_id, wanted, others)


def parse_tensors(inputs: Sequence[Mapping[str, Any]]) -> list[Request]:
    """Makes requests of tensors of the Open Inference Protocol.

    Args:
        inputs: ``name``, ``shape``, ``datatype`` and ``data`` of each; an image is in base64, as text, or its bytes.

    Raises:
        RequestError: if they are none; the message says where.
    """
    columns: dict[str, list[Any]] = {}
    for number, tensor in enumerate(inputs):
        name, values = _read_tensor(number, tensor)
        if name in columns:
            raise RequestError("wrong_type", f"the tensor {name!a} is given twice")
        columns[name] = values
    if "input" not in columns:
        raise RequestError("missing_input", "the tensor 'input' is missing")
    check_count(len(columns["input"]))
    return [_parse_numbered(_parse_v2_row, number, row) for number, row in enumerate(_transpose(columns))]


def _insert_binary_data(body: bytes, json_length: int | None) -> dict[str, Any]:
    """Returns the parsed JSON of a body, with the contents of binary tensors as their ``data``."""
    parsed = _parse_json(body[:json_length])
    inputs = parsed.get("inputs") if isinstance(parsed, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise RequestError("wrong_type", 'expected an object such as {"inputs": [{"name": "input", …}]}')
    check_feature_count(len(inputs))
    end = len(body) if json_length is None else min(json_length, len(body))
    elements = 0
    for number, tensor in enumerate(inputs):
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        start = end
        if not isinstance(size, int) or not 0 <= size <= len(body) - start or "data" in tensor:
            raise RequestError("wrong_type", "a tensor's 'binary_data_size' doesn't fit the body")
        end += size
        _check_fields(number, tensor, ("name", "datatype"))
        tensor["data"] = tensors.read_values(tensor["name"], tensor["datatype"].upper(), body, start, end)
        elements += len(tensor["data"])
        if elements > MAX_VALUES:
            raise RequestError("too_many_values", f"the tensors have more than {MAX_VALUES:,} values together")
    if end < len(body):
        raise RequestError("wrong_type", f"the body has {len(body) - end:,} bytes after its last tensor")
    return parsed


def _check_fields(number: int, tensor: Mapping[str, Any], fields: Iterable[str]) -> None:
    for field in fields:
        if not isinstance(tensor.get(field), kind := _TENSOR[field]):
            raise RequestError("wrong_type", f"inputs.{number}: '{field}' is missing, or not a {kind.__name__}")


def _read_tensor(number: int, tensor: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Returns a tensor's name and its values."""
    _check_fields(number, tensor, _TENSOR)
    name, shape, datatype, data = (tensor[field] for field in _TENSOR)
    if data:  # what has too few is named below, with its shape
        check_count(len(data))  # first, as looking at each takes time
    datatype, shape = datatype.upper(), shape[:_MAX_QUOTED_SIZES]
    parameters = tensor.get("parameters")
    check_parameters(f"inputs.{number}", parameters if isinstance(parameters, dict) else ())
    if any(type(size) is not int for size in shape):  # true is equal to 1
        raise RequestError("wrong_type", f"'{name}' has a shape that is no list of whole numbers")
    if shape[1:] == [1] and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]  # nested as the shape is, which the protocol allows as well as flat
    if [len(data)] != [n for n in shape[:1] if shape[1:] in ([], [1])]:
        raise RequestError("wrong_type", f"'{name}' has shape {shape} and {len(data)} values; expected [n] or [n, 1]")
    if name == "input" and datatype != "BYTES":
        raise RequestError("wrong_type", "'input' has to be of BYTES: images, in base64 or in the binary form")
    tensors.check_values(name, datatype, data)
    return name, data


def check_parameters(place: str, parameters: Collection[str]) -> None:
    """Checks the names of a tensor's parameters; what is not known may be passed over, but for what changes its form.

    Raises:
        RequestError: if one asks for an extension of the protocol that is not here.
    """
    if extension := next((name for name in _EXTENSIONS if name in parameters), None):
        raise RequestError("unknown_field", f"{place}: '{extension}' is not known here; it is an extension of Triton's")


def _parse_v2_row(row: dict[str, Any]) -> Request:
    image = row.pop("input")
    texts = {name: x.decode(errors="replace") if isinstance(x, bytes) else x for name, x in row.items()}
    if isinstance(image, bytes):
        return replace(parse_instance({"input": {"b64": ""}, **texts}), image=image)
    return parse_instance({"input": {"b64": image}, **texts})


def _read_wanted(parsed: Mapping[str, Any], has_novelty: bool) -> tuple[dict[str, bool], bool]:
    """Returns the outputs that a request names, with whether each is wanted in binary, and whether those it doesn't."""
    parameters, outputs = parsed.get("parameters") or {}, parsed.get("outputs") or []
    if not isinstance(parameters, dict) or not isinstance(outputs, list):
        raise RequestError("wrong_type", "'parameters' has to be an object, and 'outputs' a list")
    others, names, wanted = parameters.get("binary_data_output") is True, [], {}
    for number, output in enumerate(outputs):
        settings = (output.get("parameters") or {}) if isinstance(output, dict) else None
        if not isinstance(settings, dict) or not isinstance(output.get("name"), str):
            raise RequestError("wrong_type", f'outputs.{number}: expected an object such as {{"name": "label"}}')
        check_parameters(f"outputs.{number}", settings)
        names.append(output["name"])
        wanted[names[-1]] = settings.get("binary_data", others) is True
    tensors.check_outputs(names, has_novelty)
    return wanted, others


def format_tensors(
    answers: Answers,
    request_id: str | None = None,
    wanted: Mapping[str, bool] | None = None,
    others: bool = False,
) -> dict[str, Any] | BinaryBody:
    """Returns the answer of the Open Inference Protocol.

    Args:
        answers: the answers.
        request_id: by default one of its own.
        wanted: the outputs, with whether each is in binary; all by default.
        others: whether those that are not named are in binary.
    """
    outputs: list[dict[str, Any]] = []
    packed: list[bytes] = []
    wanted = wanted or {}
    for name, array in tensors.choose_outputs(answers, wanted).items():
        tensor = {"name": name, "shape": list(array.shape), "datatype": tensors.name_datatype(array)}
        if wanted.get(name, others):
            packed.append(tensors.join_values(array))
            outputs.append(tensor | {"parameters": {"binary_data_size": len(packed[-1])}})
        else:
            outputs.append(tensor | {"data": array.ravel().tolist()})
    body = {
        "model_name": answers.name,
        "model_version": answers.version,
        "id": request_id or str(uuid.uuid4()),
        "outputs": outputs,
    }
    return BinaryBody(body, b"".join(packed)) if packed else body
