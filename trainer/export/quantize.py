"""Quantizes a network to int8 for OpenVINO, after training, and takes single layers back to float32.

NNCF's post-training quantization finds the ranges of the activations on images as they are served, without
augmentation. Where the whole network in int8 isn't accepted, some layers may spoil the rest, such as depthwise
convolutions, whose channels have very different ranges: the effect of each is measured, by taking it alone back.
"""

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import openvino

from imagepipe.deploy.openvino_form import compile_network
from trainer.data import TrainingData
from trainer.inputs import make_batches

_IMAGES = 300  # NNCF's own number; more change the ranges little
_MAX_SECONDS = 120  # of measuring the layers' effects
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")

_log = logging.getLogger("trainer")

Inputs = Mapping[str, np.ndarray]


def draw_images(data: TrainingData) -> list[Inputs]:
    """Returns some hundred images of ``data.train``, as the network takes them one by one."""
    chosen = np.sort(np.random.default_rng(0).permutation(data.train.count)[:_IMAGES])
    batches = make_batches(data.train.select(chosen), 1)
    return [{name: x.numpy() for name, x in inputs.items()} for inputs, _ in batches]


def quantize_network(network: openvino.Model, images: Sequence[Inputs]) -> openvino.Model:
    """Returns the network with weights and activations in int8.

    Args:
        network: in float32, see ``trainer.export.openvino.convert_network``; unchanged.
        images: some hundred inputs that the ranges of activations are measured on.

    Raises:
        ImportError: NNCF isn't installed.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it sends statistics of its use to its makers
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level also sets that of others' handlers
    with contextlib.redirect_stdout(sys.stderr):  # its progress
        return nncf.quantize(network.clone(), nncf.Dataset(images), subset_size=len(images))


def rank_layers(network: openvino.Model, quantized: openvino.Model, inputs: Inputs) -> list[str]:
    """Returns the names of the quantized layers, those first whose quantization changes the logits most.

    Args:
        network: in float32.
        quantized: the same in int8.
        inputs: a few images, by the network's names.
    """
    expected = compile_network(network, "float32")(dict(inputs))["logits"]

    def measure_error(model: openvino.Model) -> float:
        actual = compile_network(model, "int8")(dict(inputs))["logits"]
        return float(np.square(actual - expected).mean())

    effects: dict[str, float] = {}
    names = [op.get_friendly_name() for op in quantized.get_ordered_ops() if list_quantized(op)]
    start, error = time.monotonic(), measure_error(quantized)
    for name in names:
        if time.monotonic() - start > _MAX_SECONDS:
            _log.warning(
                "the effect of %d of %d layers was measured: the others stay in int8", len(effects), len(names)
            )
            break
        effects[name] = error - measure_error(restore_layers(quantized, [name]))
    return sorted(effects, key=lambda name: -effects[name])


def choose_layers(ranked: Sequence[str], share: float) -> list[str]:
    """Returns the first ``share`` of them, one at least."""
    return list(ranked[: math.ceil(share * len(ranked))])


def restore_layers(quantized: openvino.Model, names: Sequence[str]) -> openvino.Model:
    """Returns a quantized network in which the activations that some layers take are in float32 again."""
    restored = quantized.clone()
    for op in restored.get_ordered_ops():
        if op.get_friendly_name() in names:
            for port in list_quantized(op):
                port.replace_source_output(port.get_source_output().get_node().input_value(0))
    return restored


def list_quantized(op: openvino.Node) -> list[openvino.Input]:
    """Returns the inputs of a layer that get quantized activations."""
    if op.get_type_name() not in _LAYERS:
        return []
    return [port for port in op.inputs() if port.get_source_output().get_node().get_type_name() == "FakeQuantize"]
