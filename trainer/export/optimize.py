"""Optimizes a trained network for serving: weights become constants, and what can be precomputed is."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer

from imagepipe.base.errors import TrainingError
from imagepipe.base.names import TaskName
from trainer.config import ServingConfig
from trainer.devices import choose_precision
from trainer.export import rewrites
from trainer.inputs import LoadedSplit, make_batches

Function: TypeAlias = Callable[[dict[str, tf.Tensor]], Any]

_log = logging.getLogger(__name__)

_BATCH = 32


def optimize_for_serving(
    model: keras.Model,
    compute_classes: Callable[[tf.Tensor], tf.Tensor],
    task: TaskName,
    validation: LoadedSplit,
    config: ServingConfig,
) -> tuple[Function, dict[str, Any]]:
    """Returns the form of a network that is exported.

    Args:
        model: the trained network, in float32; of its outputs, ``logits`` are compared.
        compute_classes: from ``logits`` ``[n, k]`` to the task's outputs ``[n, k]``.
        task: gives the meaning of its outputs.
        validation: the images on which the outputs of network and optimized form are compared.
        config: how the network is optimized, and how much its outputs may change.

    Returns:
        A function of the network's inputs, and facts for people: ``precision`` and ``max_difference``, the largest
        difference of an output from the network's, in the configuration's unit; None if it is the network itself.

    Raises:
        TrainingError: if the difference is larger than the configuration allows, also in float32 if the configuration
            leaves the precision to the machine.
    """
    if config.optimize == "off":
        return model, {"precision": "float32", "max_difference": None}
    unit = (float(np.std(validation.targets)) if task == "regression" else 1.0) or 1.0
    attempts = []
    for precision in _list_precisions(config):
        function = optimize_network(model, precision == "bfloat16")
        difference = _measure_difference(model, function, compute_classes, validation) / unit
        if difference <= config.max_difference:
            return function, {"precision": precision, "max_difference": difference}
        attempts.append(f"by up to {difference:.3g} in {precision}")
        _log.warning("The graph in %s differs too much from the network: by up to %.3g", precision, difference)
    raise TrainingError(
        f"The graph optimized for serving differs from the network on validation images, {', '.join(attempts)}; "
        f"serving.max_difference is {config.max_difference:g}. Try "
        + ("serving.precision: float32." if config.precision == "bfloat16" else "serving.optimize: off.")
    )


def _list_precisions(config: ServingConfig) -> list[str]:
    """Returns the precisions to try, the fastest first."""
    if config.precision != "auto":
        return [config.precision]
    return ["bfloat16", "float32"] if choose_precision("auto") == "mixed_bfloat16" else ["float32"]


def _measure_difference(
    model: keras.Model, function: Function, compute_classes: Callable[[tf.Tensor], tf.Tensor], split: LoadedSplit
) -> float:
    functions = [
        tf.function(lambda features, f=f: compute_classes(f(features)["logits"]), reduce_retracing=True)
        for f in (partial(model, training=False), function)
    ]
    largest = 0.0
    for features, _ in make_batches(split, _BATCH).prefetch(2):
        expected, actual = (f(features).numpy() for f in functions)
        largest = max(largest, float(np.nan_to_num(np.abs(expected - actual), nan=np.inf).max()))
    return largest


def optimize_network(model: keras.Model, bfloat16: bool) -> Function:
    """Freezes a network and folds its BatchNormalization into the convolutions before it.

    The result is not tied to the processor of this machine: processor-specific optimizations are done by TensorFlow
    when the graph is loaded.

    Args:
        model: from a dict of named inputs ``[n, …]`` to one output, or a dict of them.
        bfloat16: whether convolutions and the operations between them are computed in bfloat16, the rest in float32.

    Returns:
        A function of the same inputs and outputs, without variables, that can be saved in a SavedModel.
    """
    frozen = freeze_network(model, bfloat16)
    rewrites.rename_functions(frozen.graph, "_bfloat16" if bfloat16 else "_float32")

    def import_graph(*tensors: tf.Tensor) -> Any:
        feeds = dict(zip(frozen.inputs.values(), tensors, strict=True))
        outputs = tf.nest.flatten(frozen.outputs)
        results = tf.graph_util.import_graph_def(frozen.graph, input_map=feeds, return_elements=outputs, name="")
        return tf.nest.pack_sequence_as(frozen.outputs, results)

    wrapped = tf.compat.v1.wrap_function(import_graph, list(frozen.specs.values()))
    return lambda features: wrapped(*(features[name] for name in frozen.specs))


class FrozenNetwork(NamedTuple):
    """A network's graph without variables.

    Attributes:
        graph: the graph.
        specs: shape and type of each input, by the network's name for it.
        inputs: the inputs' tensors in the graph, likewise, in the same order.
        outputs: the outputs' tensors in the graph, structured as the network's outputs.
    """

    graph: tf.compat.v1.GraphDef
    specs: dict[str, tf.TensorSpec]
    inputs: dict[str, str]
    outputs: Any


def freeze_network(model: keras.Model, bfloat16: bool) -> FrozenNetwork:
    """Returns the graph of ``optimize_network``, which see."""
    specs = {x.name: tf.TensorSpec(x.shape, x.dtype, name=x.name) for x in model.inputs}
    specs = dict(sorted(specs.items()))  # tf.function flattens a dict in this order
    traced = tf.function(lambda features: model(features, training=False)).get_concrete_function(specs)
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    outputs = tf.nest.pack_sequence_as(traced.structured_outputs, [x.name for x in frozen.outputs])
    inputs = dict(zip(specs, [x.name for x in frozen.inputs], strict=True))
    return FrozenNetwork(_rewrite(frozen, bfloat16), specs, inputs, outputs)


def _rewrite(function: Any, bfloat16: bool) -> tf.compat.v1.GraphDef:
    meta = tf.compat.v1.train.export_meta_graph(graph_def=function.graph.as_graph_def(), graph=function.graph)
    signature = meta.signature_def["serving_default"]  # names what must be kept
    for tensors, infos in ((function.inputs, signature.inputs), (function.outputs, signature.outputs)):
        for x in tensors:
            infos[x.name].name = x.name
            infos[x.name].dtype = x.dtype.as_datatype_enum
    graph = _run_grappler(meta, "constfold", "dependency")
    rewrites.name_biases(graph)
    rewrites.fold_scaling(graph)
    meta.graph_def.CopyFrom(graph)
    if not bfloat16:
        return _run_grappler(meta, "constfold")
    # Matrix products and everything after them stay in float32: they take little time, and a logit of 30 has only three
    # binary places in bfloat16.
    with _set_environment("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE", "MatMul"):
        graph = _run_grappler(meta, "auto_mixed_precision_onednn_bfloat16", "constfold")
    rewrites.cast_once(graph)
    rewrites.pack_constants(graph)
    return graph


@contextmanager
def _set_environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable, by which TensorFlow's rewriter is configured, and restores it."""
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous


def _run_grappler(meta: tf.compat.v1.MetaGraphDef, *optimizers: str) -> tf.compat.v1.GraphDef:
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1  # small graphs too
    options.meta_optimizer_iterations = RewriterConfig.ONE
    options.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON  # if it is among the optimizers
    options.optimizers.extend(optimizers)
    return tf_optimizer.OptimizeGraph(config, meta, verbose=False)
