"""How each engine computes a network in each precision, with some layers in float32 if need be."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from imagepipe.deploy.openvino_form import OpenVinoPrecision
from imagepipe.deploy.openvino_form import compile_network as compile_for_openvino
from trainer.data import TrainingData
from trainer.export import optimize, rewrites
from trainer.export.answers import Tensors

_TIMED_ROUNDS = 5

Compute = Callable[[Tensors], Any]
Convert = Callable[[keras.Model], Any]
"""From a network to OpenVINO's model, in float32; recipes that share one convert each network once if it remembers."""


@dataclass(frozen=True)
class Recipe:
    """A way to compute networks.

    Attributes:
        name: engine and precision, for people.
        precision: float32, bfloat16 or int8.
        prepare: from a network to what forms of it are built from; remembers what it has prepared.
        list_layers: from that to the names of the layers that can stay in float32.
        build: from that and the names of layers that stay in float32 to the form: TensorFlow's function, or OpenVINO's
            model.
        wrap: from a form to the function from a batch of inputs to outputs.
    """

    name: str
    precision: OpenVinoPrecision
    prepare: Callable[[keras.Model], Any]
    list_layers: Callable[[Any], list[str]]
    build: Callable[[Any, Sequence[str]], Any]
    wrap: Callable[[Any], Compute]


def make_tensorflow_recipe() -> Recipe:
    """Returns the way to compute a network in bfloat16 with TensorFlow."""

    def build(traced: optimize.TracedNetwork, kept: Sequence[str]) -> optimize.Function:
        return optimize.wrap_graph(optimize.lower_precision(traced, True, kept), "_bfloat16")

    def list_layers(traced: optimize.TracedNetwork) -> list[str]:
        return rewrites.list_layers(traced.meta.graph_def)

    prepare = functools.cache(optimize.trace_network)
    return Recipe("TensorFlow, bfloat16", "bfloat16", prepare, list_layers, build, lambda function: function)


def make_openvino_recipe(precision: OpenVinoPrecision, convert: Convert) -> Recipe:
    """Returns the way to compute a network in float32 or bfloat16 with OpenVINO."""
    from trainer.export.openvino import keep_in_float32, list_layers

    wrap = functools.partial(wrap_network, precision=precision)
    return Recipe(f"OpenVINO, {precision}", precision, convert, list_layers, keep_in_float32, wrap)


def make_int8_recipe(data: TrainingData, convert: Convert) -> Recipe:
    """Returns the way to compute a network in int8 with OpenVINO, quantized on images of ``data.train``."""
    from trainer.export import quantize

    images = functools.cache(lambda: quantize.draw_images(data))

    @functools.cache
    def prepare(model: keras.Model) -> tuple[Any, Any]:
        converted = convert(model)
        return converted, quantize.quantize_network(converted, images())

    def list_layers(prepared: tuple[Any, Any]) -> list[str]:
        return quantize.list_layers(prepared[1])

    def build(prepared: tuple[Any, Any], kept: Sequence[str]) -> Any:
        return quantize.restore_layers(*prepared, kept)

    wrap = functools.partial(wrap_network, precision="int8")
    return Recipe("OpenVINO, int8", "int8", prepare, list_layers, build, wrap)


def wrap_network(converted: Any, precision: OpenVinoPrecision) -> Compute:
    """Returns the function from a batch of inputs to outputs of OpenVINO's model."""
    compiled = compile_for_openvino(converted, precision)
    return lambda features: {
        port.any_name: array for port, array in compiled({name: x.numpy() for name, x in features.items()}).items()
    }


def measure_ms(compute: Compute, batch: Tensors) -> float:
    """Returns the time of an image in a small batch, in milliseconds: the best of a few rounds."""
    compute(batch)
    times = []
    for _ in range(_TIMED_ROUNDS):
        start = time.perf_counter()
        compute(batch)
        times.append(time.perf_counter() - start)
    return 1000 * min(times) / len(next(iter(batch.values())))


def measure_error(compute: Compute, batch: Tensors, expected: np.ndarray) -> float:
    """Returns the mean squared difference of the logits from those of the network, ``[n, k]``."""
    return float(np.square(np.asarray(compute(batch)["logits"]) - expected).mean())
