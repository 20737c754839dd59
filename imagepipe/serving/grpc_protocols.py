"""The gRPC port's protocols, as pure functions: from messages to requests, and from answers to messages.

- Open Inference Protocol v2, ``ModelInfer``: tensors as ``protocols`` has them, with the images' own bytes, in
  ``contents`` or all in ``raw_input_contents``; the answer comes in the same of the two.
- TensorFlow Serving, ``Predict``: inputs ``input`` (DT_STRING [n]), ``metadata`` and side features; the answer has
  ``classes`` (DT_FLOAT [n, k]), ``label``, ``score``, ``metadata`` and ``novelty``.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import predict_pb2

from imagepipe.deploy.kserve_library import grpc_predict_v2_pb2 as v2
from imagepipe.serving import protocols, tensors
from imagepipe.serving.limits import MAX_INSTANCES, MAX_VALUES
from imagepipe.serving.types import Answers, Request, RequestError
from imagepipe.serving.wire import check_message

_CONTENTS = {  # by datatype: the field of InferTensorContents that has its values
    "BOOL": "bool_contents",
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    "INT64": "int64_contents",
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

# By type of TensorFlow, those that are no numbers.
_DATATYPES = {tf.string.as_datatype_enum: "BYTES", tf.bool.as_datatype_enum: "BOOL"}


class Question(NamedTuple):
    """A message that asks the model.

    Attributes:
        name: the model's name.
        version: its version; None for the live one.
        requests: one per image.
        wanted: the outputs that it asks for; none for all.
        format_answers: makes the message that answers it.
    """

    name: str
    version: str | None
    requests: list[Request]
    wanted: list[str]
    format_answers: Callable[[Answers], Message]


def decode(kind: Any, body: bytes) -> Any:
    """Returns the message of a class in its bytes.

    Raises:
        RequestError: if it is none, or has too many values.
    """
    check_message(body, kind.DESCRIPTOR, MAX_VALUES)
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise RequestError("wrong_type", f"the message is no {kind.DESCRIPTOR.full_name}: {error}") from None


def parse_infer(body: bytes) -> Question:
    """Reads a ModelInferRequest of the Open Inference Protocol.

    Raises:
        RequestError: if it is none, or can't be answered; the message says where.
    """
    message = decode(v2.ModelInferRequest, body)
    raw, inputs = message.raw_input_contents, message.inputs
    if raw and len(raw) != len(inputs):
        raise RequestError("wrong_type", f"{len(inputs)} inputs, and 'raw_input_contents' has {len(raw)}")
    values = [
        tensors.read_values(tensor.name, tensor.datatype, raw[number], 0, len(raw[number]))
        if raw
        else list(_find_contents(tensor))
        for number, tensor in enumerate(inputs)
    ]
    requests = protocols.parse_tensors(
        [
            _describe_tensor(tensor.name, tensor.shape, tensor.datatype, data) | {"parameters": dict(tensor.parameters)}
            for tensor, data in zip(inputs, values, strict=True)
        ]
    )
    for number, output in enumerate(message.outputs):
        protocols.check_parameters(f"outputs.{number}", output.parameters)
    wanted = [output.name for output in message.outputs]

    def format_answers(answers: Answers) -> Message:
        outputs = tensors.choose_outputs(answers, wanted)
        return v2.ModelInferResponse(
            model_name=answers.name,
            model_version=answers.version,
            id=message.id,
            outputs=[_format_tensor(name, array, has_contents=not raw) for name, array in outputs.items()],
            raw_output_contents=[tensors.join_values(array) for array in outputs.values()] if raw else (),
        )

    return Question(message.model_name, message.model_version or None, requests, wanted, format_answers)


def _describe_tensor(name: str, shape: Iterable[int], datatype: str, values: Iterable[Any]) -> dict[str, Any]:
    """Returns a tensor as ``protocols`` takes it."""
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": tensors.mark_missing(list(values))}


def _find_contents(tensor: Any) -> Any:
    if tensor.datatype not in _CONTENTS:
        raise RequestError("wrong_type", f"{tensor.name!a} has an unknown datatype: {tensor.datatype!a}")
    return getattr(tensor.contents, _CONTENTS[tensor.datatype])


def _format_tensor(name: str, array: np.ndarray, has_contents: bool) -> Message:
    datatype = tensors.name_datatype(array)
    tensor = v2.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=array.shape)
    if has_contents:
        getattr(tensor.contents, _CONTENTS[datatype]).extend(
            tensors.encode_texts(array) if datatype == "BYTES" else array.ravel().tolist()
        )
    return tensor


def parse_predict(body: bytes) -> Question:
    """Reads a PredictRequest of TensorFlow Serving.

    Raises:
        RequestError: if it is none, or can't be answered; the message says where.
    """
    message = decode(predict_pb2.PredictRequest, body)
    if message.model_spec.signature_name not in ("", protocols.SIGNATURE):
        raise RequestError("unknown_field", f"'signature_name' has to be {protocols.SIGNATURE}")
    requests = protocols.parse_tensors([_read_tensor(name, tensor) for name, tensor in message.inputs.items()])
    wanted = list(message.output_filter)

    def format_answers(answers: Answers) -> Message:
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.signature_name = answers.name, protocols.SIGNATURE
        response.model_spec.version.value = int(answers.version)
        for name, array in tensors.choose_outputs(answers, wanted).items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return response

    return Question(message.model_spec.name, find_version(message.model_spec), requests, wanted, format_answers)


def find_version(model_spec: Any) -> str | None:
    """Returns the version in a ModelSpec of TensorFlow Serving; None for the live one.

    Raises:
        RequestError: if it asks for a label instead of a number.
    """
    if model_spec.version_label:
        raise RequestError("unknown_field", "versions have no labels here; ask by number, or for the live one")
    return str(model_spec.version.value) if model_spec.HasField("version") else None


def _read_tensor(name: str, tensor: Any) -> dict[str, Any]:
    """Returns a TensorProto as ``protocols`` takes tensors; it has few values, whatever it says of its shape."""
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if not 0 < len(shape) <= 2 or shape[1:] not in ([], [1]) or not 0 <= shape[0] <= MAX_INSTANCES:
        raise RequestError("wrong_type", f"{name!a} has shape {shape[:8]}; expected [n], n at most {MAX_INSTANCES}")
    try:
        values = tf.make_ndarray(tensor).ravel().tolist()
    except KeyError:  # of a type whose values are objects of TensorFlow's own
        kind = tf.as_dtype(tensor.dtype).name
        raise RequestError("wrong_type", f"{name!a} can't be read: its values are of the type {kind}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("wrong_type", f"{name!a} can't be read: {error}") from None
    datatype = _DATATYPES.get(tensor.dtype, "FP32")
    return _describe_tensor(name, shape, datatype, values)
