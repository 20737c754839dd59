"""Quantizes a network to int8 for OpenVINO, after training, and takes single layers back to float32.

NNCF's post-training quantization finds the ranges of the activations on images as they are served, without
augmentation. Two of its settings are not its defaults, by the mean squared error of the logits of the two networks that
``benchmarks/serving.py`` is run on:

- A range is the one that loses least, by the activations' histogram, instead of the widest: 0.40 of the error in
  InceptionV3, 1.04 in MobileNetV2.
- The biases of a network with depthwise convolutions are corrected layer after layer, each by what those before it do
  once they are quantized: 0.30 of the error in MobileNetV2, 1.19 in InceptionV3, which has none. A depthwise output has
  so few weights that their errors don't cancel out, but move its mean (Nagel, van Baalen, Blankevoort, Welling 2019:
  Data-free quantization through weight equalization and bias correction, section 3.2). It takes some three times as
  long.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import openvino
from openvino import opset13 as ops

from imagepipe.base.errors import TrainingError, describe_error
from trainer.data import TrainingData
from trainer.export.novelty import LAYER
from trainer.export.openvino import LAYERS
from trainer.inputs import make_batches

_IMAGES = 300  # NNCF's own number; more change the ranges little

Inputs = Mapping[str, np.ndarray]


def draw_images(data: TrainingData) -> list[Inputs]:
    """Returns some hundred images of ``data.train``, as the network takes them one by one."""
    chosen = np.sort(np.random.default_rng(0).permutation(data.train.count)[:_IMAGES])
    batches = make_batches(data.train.select(chosen), 1)
    return [{name: x.numpy() for name, x in inputs.items()} for inputs, _ in batches]


def quantize_network(network: openvino.Model, images: Sequence[Inputs]) -> openvino.Model:
    """Returns the network with weights and activations in int8, those of novelty left out.

    Args:
        network: in float32, see ``trainer.export.openvino.convert_network``; unchanged.
        images: some hundred inputs that the ranges of activations are measured on.

    Raises:
        ImportError: NNCF isn't installed.
        TrainingError: NNCF can't quantize it.
    """
    os.environ.setdefault("NNCF_CI", "1")  # else it sends statistics of its use to its makers
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level also sets that of others' handlers
    biased = network.clone()
    _add_biases(biased)
    is_depthwise = any(op.get_type_name() == "GroupConvolution" for op in biased.get_ops())
    kept = nncf.IgnoredScope(names=_list_operations_of_novelty(biased), validate=False)
    by_histogram = AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM
    )

    def quantize(advanced: AdvancedQuantizationParameters | None) -> openvino.Model:
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            return nncf.quantize(
                biased.clone(),
                nncf.Dataset(images),
                subset_size=len(images),
                fast_bias_correction=not is_depthwise,
                ignored_scope=kept,
                advanced_parameters=advanced,
            )

    try:
        with contextlib.suppress(ValueError):  # numpy's: it makes no histogram of what is almost the same everywhere
            return quantize(by_histogram)
        return quantize(None)
    except Exception as error:  # of many kinds, on graphs that it doesn't know
        raise TrainingError(
            f"NNCF can't quantize this network ({describe_error(error)}). Choose another precision than int8."
        ) from error


def _list_operations_of_novelty(network: openvino.Model) -> list[str]:
    """Returns the names of the operations on which novelty alone depends, if the network has it.

    Not by ``novelty.is_of_novelty``: OpenVINO gives new names to what it changes.
    """

    def list_before(is_wanted: Callable[[str], bool]) -> set[str]:
        ports = [port for port in network.outputs if any(is_wanted(name) for name in port.get_names())]
        names, left = set(), [port.get_node() for port in ports]
        while left:
            op = left.pop()
            if op.get_friendly_name() not in names:
                names.add(op.get_friendly_name())
                left += [value.get_node() for value in op.input_values()]
        return names

    return sorted(list_before(lambda name: name == LAYER) - list_before(lambda name: name != LAYER))


def _add_biases(network: openvino.Model) -> None:
    """Gives layers without a bias one of zeros if a constant is added to what they give.

    NNCF corrects biases, and takes any such constant for one: the 3 of a hard swish in MobileNetV3, too.
    """
    for op in network.get_ordered_ops():
        ports = [port for output in op.outputs() for port in output.get_target_inputs()]
        if op.get_type_name() not in LAYERS or not any(_is_constant_added(port.get_node()) for port in ports):
            continue
        shape, axis = op.output(0).get_partial_shape(), -1 if op.get_type_name() == "MatMul" else 1
        if shape[axis].is_static and not any(_is_bias(port.get_node(), shape[axis].get_length()) for port in ports):
            sizes = np.ones(len(shape), int)
            sizes[axis] = shape[axis].get_length()
            biased = ops.add(op, ops.constant(np.zeros(sizes, np.float32)))
            for port in ports:
                port.replace_source_output(biased.output(0))


def _is_constant_added(op: openvino.Node) -> bool:
    return op.get_type_name() == "Add" and any(
        value.get_node().get_type_name() == "Constant" for value in op.input_values()
    )


def _is_bias(op: openvino.Node, channels: int) -> bool:
    """Returns whether an operation adds a constant for each channel."""
    return op.get_type_name() == "Add" and any(
        value.get_node().get_type_name() == "Constant" and value.get_node().data.size == channels
        for value in op.input_values()
    )


def list_layers(quantized: openvino.Model) -> list[str]:
    """Returns the names of the layers whose weights are quantized, or the activations that they take."""
    names, rounded = [], set[openvino.Output]()  # the second: from quantization on, up to the next layer
    for op in quantized.get_ordered_ops():
        takes_rounded = not rounded.isdisjoint(op.input_values())
        if op.get_type_name() in LAYERS:
            names += [op.get_friendly_name()] if takes_rounded else []
        elif takes_rounded or op.get_type_name() == "FakeQuantize" or _has_int8_weights(op):
            rounded.update(op.outputs())
    return names


def _has_int8_weights(op: openvino.Node) -> bool:
    return op.get_type_name() == "Constant" and op.get_element_type() in (openvino.Type.i8, openvino.Type.u8)


def restore_layers(network: openvino.Model, quantized: openvino.Model, names: Sequence[str]) -> openvino.Model:
    """Returns a quantized network in which some layers are in float32 again.

    Their weights and biases are the network's, and nothing is rounded between the layers before and them. The outputs
    of what is returned are not rounded either.

    Args:
        network: in float32, from which ``quantized`` was made; unchanged.
        quantized: see ``quantize_network``; unchanged.
        names: of the layers; where there are none, ``quantized`` itself is returned.
    """
    if not names:
        return quantized
    restored = quantized.clone()
    originals = {op.get_friendly_name(): op for op in network.clone().get_ops()}
    for op in restored.get_ops():
        if op.get_friendly_name() in names:
            _restore_weights(op, originals)
    _restore_activations(restored, names)
    return restored


def _restore_weights(layer: openvino.Node, originals: Mapping[str, openvino.Node]) -> None:
    """Gives a layer, and what is added to what it gives, the constants of the network before quantization."""
    original = originals.get(layer.get_friendly_name())
    if original is None or len(original.inputs()) != len(layer.inputs()):
        raise TrainingError(f"NNCF has changed the layer {layer.get_friendly_name()}, which can't be taken back")
    for port, value in zip(layer.inputs(), original.input_values(), strict=True):
        if value.get_node().get_type_name() == "Constant":
            port.replace_source_output(value)
    for added in [port.get_node() for port in layer.output(0).get_target_inputs()]:
        if not _is_constant_added(added):
            continue
        original = originals.get(added.get_friendly_name())
        for number, port in enumerate(added.inputs()):
            constant = port.get_source_output().get_node()
            if constant.get_type_name() == "Constant":
                # What the network doesn't have was added for the correction, see _add_biases.
                port.replace_source_output(
                    original.input_value(number) if original else ops.constant(np.zeros_like(constant.data)).output(0)
                )


def _restore_activations(restored: openvino.Model, names: Sequence[str]) -> None:
    """Has some layers, and the outputs, take activations that are not rounded.

    Operations between a rounding and such a layer are computed twice, as other layers may take what they give.
    """
    twins = {op.get_friendly_name(): op for op in restored.clone().get_ops()}
    exact: dict[openvino.Output, openvino.Output] = {}  # from what is rounded to the same without
    for op in restored.get_ordered_ops():
        values = [exact.get(value, value) for value in op.input_values()]
        if op.get_type_name() == "FakeQuantize":
            exact[op.output(0)] = values[0]
        elif op.get_type_name() == "Result" or op.get_friendly_name() in names:
            _connect(op, values)
        elif op.get_type_name() not in LAYERS and values != op.input_values():
            twin = twins[op.get_friendly_name()]
            twin.set_friendly_name(f"{op.get_friendly_name()}/float32")
            _connect(twin, values)
            exact |= zip(op.outputs(), twin.outputs(), strict=True)


def _connect(op: openvino.Node, values: Sequence[openvino.Output]) -> None:
    for port, value in zip(op.inputs(), values, strict=True):
        port.replace_source_output(value)
