"""Writes the form of a network that OpenVINO computes, see ``imagepipe.deploy.openvino_form``."""

import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import openvino
import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base.features import Features
from imagepipe.base.names import TaskName
from imagepipe.base.processor import has_exact_int8
from imagepipe.deploy.openvino_form import NETWORK, OpenVinoPrecision, get_core, write_form
from trainer.export.answers import Tensors
from trainer.export.optimize import freeze_network
from trainer.export.signatures import save_model_around

LAYERS = (
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "GroupConvolutionBackpropData",
    "MatMul",
)
"""OpenVINO's types of layers with weights."""

_KEPT = {"name": "precise", "version": "0"}  # the attribute of an operation that no hint lowers the precision of


def convert_network(model: keras.Model) -> openvino.Model:
    """Converts a network.

    Args:
        model: from a dict of named inputs ``[n, ...]`` to a dict of outputs.

    Returns:
        OpenVINO's model, in float32, whose inputs and outputs have the same names.
    """
    frozen = freeze_network(model, bfloat16=False)
    with tempfile.TemporaryDirectory() as folder:
        # Not openvino.convert_model: it fails on grouped convolutions, and sends statistics of its use to its makers.
        file = Path(folder) / "graph.pb"
        file.write_bytes(frozen.graph.SerializeToString())
        converted = get_core().read_model(file)
    for ports, tensors in ((converted.inputs, frozen.inputs), (converted.outputs, frozen.outputs)):
        for port in ports:
            port.get_tensor().set_names({name for name, tensor in tensors.items() if tensor in port.get_names()})
    return converted


def list_layers(network: openvino.Model) -> list[str]:
    """Returns the names of the layers with weights."""
    return [op.get_friendly_name() for op in network.get_ordered_ops() if op.get_type_name() in LAYERS]


def keep_in_float32(network: openvino.Model, names: Sequence[str]) -> openvino.Model:
    """Returns a network of which some layers are computed in float32, whatever the precision of the others.

    Args:
        network: see ``convert_network``; unchanged.
        names: of the layers.
    """
    if not names:
        return network
    with tempfile.TemporaryDirectory() as folder:
        # From Python attributes are strings, which OpenVINO doesn't heed: it has to read this one.
        file = Path(folder) / NETWORK
        openvino.save_model(network, file, compress_to_fp16=False)
        tree = ET.parse(file)  # noqa: S314  # our own
        for layer in tree.iter("layer"):
            if layer.get("name") in names:
                info = layer.find("rt_info")
                ET.SubElement(ET.SubElement(layer, "rt_info") if info is None else info, "attribute", _KEPT)
        tree.write(file)
        return get_core().read_model(file)


def save_form(
    network: openvino.Model,
    precision: OpenVinoPrecision,
    answers: Callable[[Tensors], Tensors],
    transform_output: tft.TFTransformOutput,
    features: Features,
    task: TaskName,
    measured: Mapping[str, Any],
    folder: Path,
) -> None:
    """Writes the form's folder.

    Args:
        network: see ``convert_network``.
        precision: in which it is computed.
        answers: of this network's outputs, see ``trainer.export.answers``.
        transform_output: output of the Transform component.
        features: names of the features in an Example.
        task: gives the meaning of the outputs.
        measured: what was measured when this form was accepted, for people.
        folder: the folder to create.
    """
    outputs = {port.any_name: port.partial_shape[1].get_length() for port in network.outputs}
    specs = {name: tf.TensorSpec([None, size], tf.float32, name=name) for name, size in outputs.items()}
    save_model_around(answers, specs, transform_output, features, task, str(folder))
    openvino.save_model(network, folder / NETWORK, compress_to_fp16=False)
    form = {
        "precision": precision,
        "inputs": [port.any_name for port in network.inputs],
        "outputs": list(outputs),
        "openvino": openvino.__version__,
        "measured": dict(measured),
    }
    if precision == "int8":
        form["exact_int8"] = has_exact_int8()
    write_form(folder, form)
