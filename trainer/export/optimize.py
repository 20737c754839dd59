"""Optimizes a trained network for serving: weights become constants, and what can be precomputed is."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer

from trainer.export import rewrites

Function: TypeAlias = Callable[[dict[str, tf.Tensor]], Any]


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
    return wrap_graph(lower_precision(trace_network(model), bfloat16), "_bfloat16" if bfloat16 else "_float32")


def wrap_graph(frozen: "FrozenNetwork", suffix: str) -> Function:
    """Returns the function of ``optimize_network``, which see, of its graph.

    Args:
        frozen: the graph, which is changed.
        suffix: of the names of its own functions.
    """
    rewrites.rename_functions(frozen.graph, suffix)

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


class TracedNetwork(NamedTuple):
    """A network's graph without variables, in float32, before the last optimizations.

    Attributes:
        meta: the graph, and what has to be kept of it.
        specs, inputs, outputs: see ``FrozenNetwork``.
    """

    meta: tf.compat.v1.MetaGraphDef
    specs: dict[str, tf.TensorSpec]
    inputs: dict[str, str]
    outputs: Any


def freeze_network(model: keras.Model, bfloat16: bool) -> FrozenNetwork:
    """Returns the graph of ``optimize_network``, which see."""
    return lower_precision(trace_network(model), bfloat16)


def trace_network(model: keras.Model) -> TracedNetwork:
    """Freezes a network; see ``optimize_network``."""
    specs = {x.name: tf.TensorSpec(x.shape, x.dtype, name=x.name) for x in model.inputs}
    specs = dict(sorted(specs.items()))  # tf.function flattens a dict in this order
    traced = tf.function(lambda features: model(features, training=False)).get_concrete_function(specs)
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    outputs = tf.nest.pack_sequence_as(traced.structured_outputs, [x.name for x in frozen.outputs])
    inputs = dict(zip(specs, [x.name for x in frozen.inputs], strict=True))
    meta = tf.compat.v1.train.export_meta_graph(graph_def=frozen.graph.as_graph_def(), graph=frozen.graph)
    signature = meta.signature_def["serving_default"]  # names what must be kept
    for tensors, infos in ((frozen.inputs, signature.inputs), (frozen.outputs, signature.outputs)):
        for x in tensors:
            infos[x.name].name = x.name
            infos[x.name].dtype = x.dtype.as_datatype_enum
    graph = _run_grappler(meta, "constfold", "dependency")
    rewrites.name_biases(graph)
    rewrites.fold_scaling(graph)
    meta.graph_def.CopyFrom(graph)
    return TracedNetwork(meta, specs, inputs, outputs)


def lower_precision(traced: TracedNetwork, bfloat16: bool, kept: Sequence[str] = ()) -> FrozenNetwork:
    """Does the last optimizations.

    Args:
        traced: the network; unchanged.
        bfloat16: see ``optimize_network``.
        kept: names of convolutions that stay in float32, with the bias and the activation behind them, see
            ``rewrites.list_layers``.
    """
    meta = tf.compat.v1.MetaGraphDef()
    meta.CopyFrom(traced.meta)
    around = traced.specs, traced.inputs, traced.outputs
    if not bfloat16:
        return FrozenNetwork(_run_grappler(meta, "constfold"), *around)
    for name in rewrites.list_fused(meta.graph_def, kept):  # TensorFlow's rewriter leaves outputs alone
        info = meta.signature_def["serving_default"].outputs[name]
        info.name, info.dtype = f"{name}:0", tf.float32.as_datatype_enum
    # Matrix products and everything after them stay in float32: they take little time, and a logit of 30 has only three
    # binary places in bfloat16.
    with _set_environment("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE", "MatMul"):
        graph = _run_grappler(meta, "auto_mixed_precision_onednn_bfloat16", "constfold")
    rewrites.cast_once(graph)
    rewrites.pack_constants(graph)
    return FrozenNetwork(graph, *around)


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
