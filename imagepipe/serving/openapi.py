"""The server's API as an OpenAPI document: our routes' types, and the requests that the live model takes."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi.openapi.utils import get_openapi
from PIL import Image
from pydantic import BaseModel, ConfigDict
from starlette.routing import BaseRoute

from imagepipe.base.names import TaskName, read_version
from imagepipe.deploy.kserve_library import (
    InferenceResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerMetadataResponse,
)
from imagepipe.serving.access import may_read
from imagepipe.serving.engine import Engine
from imagepipe.serving.limits import MAX_INSTANCES
from imagepipe.serving.tensors import list_outputs


class Error(BaseModel):
    """Why a request was refused."""

    error: str


class Prediction(BaseModel):
    """Answer about an image.

    ``classes``: a probability per label in the order of the metadata's ``labels``, or the value of a regression;
    ``score``: the highest of them, or the value; ``metadata``: the caller's; ``novelty``: how unlike the training
    images it is, 0 to 1, not given by models of earlier versions.
    """

    classes: list[float]
    label: str
    score: float
    metadata: str
    novelty: float | None = None


class Predictions(BaseModel):
    """Answer to ``instances``."""

    predictions: list[Prediction]


class Columns(BaseModel):
    """The fields of the predictions, a list each."""

    classes: list[list[float]]
    label: list[str]
    score: list[float]
    metadata: list[str]
    novelty: list[float] | None = None


class Outputs(BaseModel):
    """Answer to ``inputs``."""

    outputs: Columns


class VersionError(BaseModel):
    """TensorFlow Serving's form of no error."""

    error_code: Literal["OK"]
    error_message: str


class VersionStatus(BaseModel):
    """State of a version."""

    version: str
    state: Literal["AVAILABLE"]
    status: VersionError


class Status(BaseModel):
    """State of the model."""

    name: str
    ready: bool
    model_version_status: list[VersionStatus]


class ModelSpec(BaseModel):
    """The model and its version."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    signature_name: str
    version: str


class Signatures(BaseModel):
    """The SavedModel's signatures, as TensorFlow Serving writes them."""

    signature_def: dict[str, dict[str, Any]]


class SignatureMetadata(BaseModel):
    """TensorFlow Serving's envelope of the signatures."""

    signature_def: Signatures


class Metadata(BaseModel):
    """Signatures, labels and task of the model."""

    model_config = ConfigDict(protected_namespaces=())

    model_spec: ModelSpec
    metadata: SignatureMetadata
    labels: list[str]
    task: TaskName


class Health(BaseModel):
    """The server runs."""

    status: Literal["alive"]


_BYTES = {"type": "string", "format": "binary"}
_UPLOADS = {"image/*": "Image", "multipart/form-data": "ImageForm"}


def _describe_body(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}} | {
        kind: {"schema": {"$ref": f"#/components/schemas/{upload}"}} for kind, upload in _UPLOADS.items()
    }
    description = (
        "JSON; or one image itself, with metadata and side features as parameters of the URL's query (?metadata=id-1); "
        "or a form with the image as its file, and these as its other fields. Any of them may be gzip'd "
        "(Content-Encoding: gzip)."
    )
    return {"requestBody": {"required": True, "description": description, "content": content}}


_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The request can't be answered"},
    404: {"model": Error, "description": "There is no such model or version"},
    408: {"model": Error, "description": "The body did not come in time"},
    413: {"model": Error, "description": "The body is too large, perhaps after unpacking"},
    415: {"model": Error, "description": "The body is compressed in another way than by gzip"},
    503: {"model": Error, "description": "Too much to do; see Retry-After"},
}
PREDICT: dict[str, Any] = {
    "responses": {200: {"model": Predictions | Outputs}, **_REFUSALS},
    "openapi_extra": _describe_body("PredictRequest"),
}
"""Keywords of a route that takes TensorFlow Serving's requests."""
INFER: dict[str, Any] = {
    "responses": {
        200: {"model": InferenceResponse, "content": {"application/octet-stream": {"schema": _BYTES}}},
        **_REFUSALS,
    },
    "openapi_extra": _describe_body("InferRequest"),
}
"""Keywords of a route that takes requests of the Open Inference Protocol."""


def _describe_answer(model: type[BaseModel]) -> dict[str, Any]:
    return {"response_model": model, "responses": {404: _REFUSALS[404]}}


STATUS, METADATA = _describe_answer(Status), _describe_answer(Metadata)
TENSORS, READY = _describe_answer(ModelMetadataResponse), _describe_answer(ModelReadyResponse)
"""Keywords of the routes about the model."""
ABOUT: dict[str, Any] = {"response_model": ServerMetadataResponse}
"""Keywords of the route about the server."""

SERVER = {"name": "imagepipe", "version": read_version(), "extensions": ["binary_tensor_data"]}
"""The server as the Open Inference Protocol describes it."""

_NOT_OF_THE_API = re.compile("^/$|^/v2/repository/|:explain$")  # a page, and what is refused
_SIDE_TYPES: dict[str, str | list[str]] = {"string": "string", "float32": ["number", "null"], "int64": "integer"}
_TENSOR_TYPES = {"string": "BYTES", "float32": "FP32", "int64": "INT64"}
_TEXTS = ("label", "metadata")  # of the outputs; the others are numbers


def describe_tensors(engine: Engine) -> dict[str, Any]:
    """Returns a model's inputs and outputs as the Open Inference Protocol describes them."""
    inputs = {"input": "BYTES", "metadata": "BYTES"} | {x: _TENSOR_TYPES[t] for x, t in engine.side_types.items()}
    return {
        "name": engine.name,
        "versions": [engine.version],
        "platform": "",
        "inputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in inputs.items()],
        "outputs": [
            {
                "name": name,
                "datatype": "BYTES" if name in _TEXTS else "FP32",
                "shape": [-1, len(engine.model.labels)] if name == "classes" else [-1],
            }
            for name in list_outputs(engine.model.has_novelty)
        ],
    }


def describe_api(
    routes: Sequence[BaseRoute], engine: Engine, has_token: bool, open_paths: Sequence[str]
) -> dict[str, Any]:
    """Returns the OpenAPI document of the server.

    Args:
        routes: the application's routes; of two for the same path the first is described, as it answers.
        engine: the live version.
        has_token: whether callers have to send a token.
        open_paths: paths that can be read without.
    """
    name, version, side = engine.name, engine.version, engine.side_types
    title = f"{name}: an image model"
    document = get_openapi(title=title, version=version, routes=routes)
    document["paths"] = _choose_answering(document["paths"])
    components = document.setdefault("components", {})
    components["schemas"] = _describe_requests(side, list_outputs(engine.model.has_novelty)) | components.get(
        "schemas", {}
    )
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, for parameters that are not text
        components["schemas"].pop(unused, None)
    names = {"name": name, "model_name": name, "version": version, "model_version": version}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in names:
                    parameter["schema"] = {"type": "string", "enum": [names[parameter["name"]]]}
            if "{" in path:
                operation["responses"].setdefault("404", _describe_error("There is no such model or version"))
            if has_token and not may_read(method.upper(), path, open_paths):
                operation["security"] = [{"token": []}]
                operation["responses"]["401"] = _describe_error("The token is missing or wrong")
    if has_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    metrics = document["paths"]["/metrics"]["get"]
    metrics["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return document


def _choose_answering(paths: dict[str, Any]) -> dict[str, Any]:
    """Returns the paths of the API, without KServe's own for which ours, which come before them, answer."""
    chosen = {re.sub(r"{[^}]*}", "{}", path): path for path in reversed(paths)}
    answering = [path for path in paths if path in chosen.values()]
    return {path: paths[path] for path in answering if not _NOT_OF_THE_API.search(path)}


def _describe_error(description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": description, "content": content}


def _describe_requests(side: Mapping[str, str], outputs: Sequence[str]) -> dict[str, Any]:
    """Returns the schemas of requests to a model with these side features and outputs, with an example it answers."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 250, 250)).save(buffer, "PNG")
    image = {"b64": base64.b64encode(buffer.getvalue()).decode()}
    bytes_ = _describe_object({"b64": {"type": "string", "contentEncoding": "base64", "format": "byte"}}, ["b64"])
    values = {feature: {"type": _SIDE_TYPES[kind]} for feature, kind in side.items()}
    example = {"input": image, "metadata": "id-1"} | {
        feature: "" if kind == "string" else 0 for feature, kind in side.items()
    }
    instance = _describe_object({"input": bytes_, "metadata": {"type": "string"}, **values}, ["input", *side])
    columns = _describe_object(
        {feature: _describe_list(schema) for feature, schema in instance["properties"].items()}, ["input", *side]
    )
    options = {"signature_name": {"enum": ["", "serving_default"]}, "parameters": {}}
    rows = _describe_object({"instances": _describe_list(instance), **options}, ["instances"])
    tensors = [
        _describe_tensor("input", "BYTES", {"type": "string", "contentEncoding": "base64", "format": "byte"}),
        _describe_tensor("metadata", "BYTES", {"type": "string"}),
        *(_describe_tensor(feature, _TENSOR_TYPES[kind], values[feature]) for feature, kind in side.items()),
    ]
    in_binary = {"type": "object", "properties": {"binary_data": {"type": "boolean"}}}
    output = _describe_object({"name": {"enum": outputs}, "parameters": in_binary}, ["name"])
    infer = _describe_object(
        {
            "id": {"type": "string"},
            "inputs": {"type": "array", "minItems": 1, "items": {"anyOf": tensors}},
            "outputs": {"type": "array", "items": output},
            "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
        },
        ["inputs"],
    )
    infer["additionalProperties"] = True
    infer["examples"] = [
        {
            "id": "42",
            "inputs": [
                {
                    "name": feature,
                    "shape": [1],
                    "datatype": _TENSOR_TYPES.get(side.get(feature, "string"), "BYTES"),
                    "data": [image["b64"] if feature == "input" else value],
                }
                for feature, value in example.items()
            ],
        }
    ]
    return {
        "PredictRequest": {
            "title": "PredictRequest",
            "oneOf": [rows, _describe_object({"inputs": columns, **options}, ["inputs"])],
            "examples": [
                {"instances": [example]},
                {"inputs": {feature: [value] for feature, value in example.items()}},
            ],
        },
        "InferRequest": {"title": "InferRequest", **infer},
        "Image": {"title": "Image", **_BYTES},
        "ImageForm": {"title": "ImageForm", **instance, "properties": instance["properties"] | {"input": _BYTES}},
    }


def _describe_object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _describe_list(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1, "maxItems": MAX_INSTANCES}


def _describe_tensor(name: str, datatype: str, values: dict[str, Any]) -> dict[str, Any]:
    properties = {
        "name": {"const": name},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 2},
        "datatype": {"const": datatype},
        "parameters": {"type": "object"},
        "data": _describe_list(values),
    }
    return _describe_object(properties, ["name", "shape", "datatype", "data"])
