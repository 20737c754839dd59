"""Reads what a SavedModel's folder says about the model, without TensorFlow, whose import takes seconds.

``saved_model.pb`` is a ``SavedModel`` message. Only its fields on the way to the signatures' tensors are declared here,
in a descriptor pool of their own, numbered as in TensorFlow's
``tensorflow/core/protobuf/{saved_model,meta_graph}.proto``; protobuf skips all others, and TensorFlow may be imported
beside it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.features import IMAGE, LABELS_VOCABULARY
from imagepipe.base.labels import decode_names
from imagepipe.base.names import TASK_ASSET

GRAPH = "saved_model.pb"
"""The file that makes a folder a SavedModel."""

FINGERPRINT = "fingerprint.pb"
"""TensorFlow writes it beside each SavedModel: hashes of the graph and of the weights."""

_TYPES = {1: "float32", 7: "string", 9: "int64"}  # tensorflow/core/framework/types.proto

_Field = descriptor_pb2.FieldDescriptorProto


def _create_saved_model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="imagepipe/saved_model.proto", package="tensorflow", syntax="proto3")
    _add_integer(file.message_type.add(name="Dim"), "size", 1)
    _add_message(file.message_type.add(name="TensorShapeProto"), "dim", 2, "Dim", _Field.LABEL_REPEATED)
    tensor = file.message_type.add(name="TensorInfo")
    _add_integer(tensor, "dtype", 2)
    _add_message(tensor, "tensor_shape", 3, "TensorShapeProto", _Field.LABEL_OPTIONAL)
    signature = file.message_type.add(name="SignatureDef")
    _add_map(signature, "inputs", 1, "TensorInfo")
    _add_map(signature, "outputs", 2, "TensorInfo")
    _add_map(file.message_type.add(name="MetaGraphDef"), "signature_def", 5, "SignatureDef")
    _add_message(file.message_type.add(name="SavedModel"), "meta_graphs", 2, "MetaGraphDef", _Field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.SavedModel"))


def _add_integer(message: descriptor_pb2.DescriptorProto, name: str, number: int) -> None:
    message.field.add(name=name, number=number, type=_Field.TYPE_INT64, label=_Field.LABEL_OPTIONAL)


def _add_map(message: descriptor_pb2.DescriptorProto, name: str, number: int, value: str) -> None:
    """Adds a field ``map<string, value>``, which is a repeated message with a key and a value."""
    entry_name = f"{name.title().replace('_', '')}Entry"
    entry = message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
    _add_message(entry, "value", 2, value, _Field.LABEL_OPTIONAL)
    _add_message(message, name, number, f"{message.name}.{entry_name}", _Field.LABEL_REPEATED)


def _add_message(message: descriptor_pb2.DescriptorProto, name: str, number: int, type_name: str, label: Any) -> None:
    message.field.add(
        name=name, number=number, type=_Field.TYPE_MESSAGE, type_name=f".tensorflow.{type_name}", label=label
    )


_SavedModel = _create_saved_model_class()


def read_inputs(model: str) -> dict[str, str]:
    """Returns the inputs that a SavedModel takes of a request, side features included, by name.

    Returns:
        ``string``, ``float32`` or ``int64`` by name, sorted.

    Raises:
        ModelError: if it can't be read.
    """
    return _list_inputs(_read_signatures(model))


def read_inputs_and_size(models: Sequence[str]) -> tuple[dict[str, str], tuple[int, int] | None]:
    """Returns the inputs of the first of some SavedModels, and the largest images that their networks see.

    Returns:
        The inputs, see ``read_inputs``; height and width, or None if one of the models doesn't say.

    Raises:
        ModelError: if one can't be read.
    """
    signatures = [_read_signatures(model) for model in models]
    outputs = [signature["transform_features"].outputs for signature in signatures]
    shapes = [[dim.size for dim in output[IMAGE].tensor_shape.dim] for output in outputs]
    is_known = all(len(shape) == 4 and min(shape[1:3]) > 0 for shape in shapes)
    size = (max(shape[1] for shape in shapes), max(shape[2] for shape in shapes)) if is_known else None
    return _list_inputs(signatures[0]), size


def _list_inputs(signatures: Any) -> dict[str, str]:
    inputs = signatures["serving_default"].inputs
    return {name: _TYPES.get(inputs[name].dtype, "unknown") for name in sorted(inputs)}


def _read_signatures(model: str) -> Any:
    try:
        return _SavedModel.FromString(filesystem.read_bytes(f"{model}/{GRAPH}")).meta_graphs[0].signature_def
    except (OSError, DecodeError, IndexError) as error:
        raise ModelError(f"{model} can't be read as a SavedModel: {error}") from error


def read_labels(model: Path) -> list[str]:
    """Returns the names of a SavedModel's outputs, in the order of ``classes``; of a regression the target's name."""
    return decode_names((model / "assets" / LABELS_VOCABULARY).read_bytes())


def read_task(model: Path) -> str:
    """Returns the task of a SavedModel: classification, multilabel or regression."""
    file = model / "assets" / TASK_ASSET
    if not file.is_file():  # old models don't say, and all are this
        return "classification"
    return file.read_text(encoding="utf-8").strip()
