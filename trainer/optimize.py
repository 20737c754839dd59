"""A trained network as it is served: its weights are constants, and what can be computed before is."""

import itertools
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer

from trainer import devices, inputs
from trainer.config import ServingConfig
from trainer.errors import TrainingError
from trainer.tasks import TaskName

Function: TypeAlias = Callable[[dict[str, tf.Tensor]], tf.Tensor]

_log = logging.getLogger(__name__)

_BATCH = 32
_TAKE_A_BIAS = ("Conv2D", "DepthwiseConv2dNative", "MatMul")


def for_serving(
    model: keras.Model, task: TaskName, evaluation: inputs.Split, config: ServingConfig
) -> tuple[Function, dict[str, Any]]:
    """What is exported of a network.

    Args:
        model: the trained network, in float32.
        task: says what its outputs mean.
        evaluation: what both are asked about, to be compared.
        config: how it is optimised, and how much that may change.

    Returns:
        A function of the network's inputs, and what a person wants to know of it: ``precision`` and ``max_difference``,
        the largest difference of an output from the network's, as the configuration counts it. None where it is the
        network itself.

    Raises:
        TrainingError: if the difference is larger than the configuration allows, in float32 too where the configuration
            leaves the precision to the machine.
    """
    if config.optimize == "off":
        return model, {"precision": "float32", "max_difference": None}
    unit = (float(np.std(evaluation.targets)) if task == "regression" else 1.0) or 1.0
    tried = []
    for precision in _precisions(config):
        function = optimized(model, precision == "bfloat16")
        difference = _difference(model, function, evaluation) / unit
        if difference <= config.max_difference:
            return function, {"precision": precision, "max_difference": difference}
        tried.append(f"by up to {difference:.3g} in {precision}")
        _log.warning("The graph in %s differs too much from the network: by up to %.3g", precision, difference)
    raise TrainingError(
        f"The graph that was optimised for serving differs from the network on the eval split, {', '.join(tried)}; "
        f"serving.max_difference is {config.max_difference:g}. Try "
        + ("serving.precision: float32." if config.precision == "bfloat16" else "serving.optimize: off.")
    )


def _precisions(config: ServingConfig) -> list[str]:
    """Those to try, the fastest first."""
    if config.precision != "auto":
        return [config.precision]
    return ["bfloat16", "float32"] if devices.policy("auto") == "mixed_bfloat16" else ["float32"]


def _difference(model: keras.Model, function: Function, split: inputs.Split) -> float:
    ask = [tf.function(each, reduce_retracing=True) for each in (partial(model, training=False), function)]
    largest = 0.0
    for features, _ in inputs.batches(split, _BATCH).prefetch(2):
        one, other = (each(features).numpy() for each in ask)
        largest = max(largest, float(np.nan_to_num(np.abs(one - other), nan=np.inf).max()))
    return largest


def optimized(model: keras.Model, bfloat16: bool) -> Function:
    """Freezes a network and folds its BatchNormalization into the convolutions before it.

    Nothing of it is tied to the processor it is made on: what is, TensorFlow does when the graph is loaded.

    Args:
        model: from a dict of named inputs ``[n, …]`` to one output ``[n, k]``.
        bfloat16: whether convolutions, and what lies between them, are computed in bfloat16, and the rest in float32.

    Returns:
        A function of the same inputs, without variables, that a SavedModel can hold.
    """
    specs = {x.name: tf.TensorSpec(x.shape, x.dtype, name=x.name) for x in model.inputs}
    traced = tf.function(lambda features: model(features, training=False)).get_concrete_function(specs)
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    names, (output,) = [x.name for x in frozen.inputs], [x.name for x in frozen.outputs]
    graph = _rewritten(frozen, bfloat16)

    def imported(*tensors: tf.Tensor) -> tf.Tensor:
        feeds = dict(zip(names, tensors, strict=True))
        (result,) = tf.graph_util.import_graph_def(graph, input_map=feeds, return_elements=[output], name="")
        return result

    ordered = sorted(specs)  # as tf.function flattens a dict
    wrapped = tf.compat.v1.wrap_function(imported, [specs[name] for name in ordered])
    return lambda features: wrapped(*(features[name] for name in ordered))


def _rewritten(function: Any, bfloat16: bool) -> tf.compat.v1.GraphDef:
    meta = tf.compat.v1.train.export_meta_graph(graph_def=function.graph.as_graph_def(), graph=function.graph)
    signature = meta.signature_def["serving_default"]  # says what must stay
    for tensors, infos in ((function.inputs, signature.inputs), (function.outputs, signature.outputs)):
        for x in tensors:
            infos[x.name].name = x.name
            infos[x.name].dtype = x.dtype.as_datatype_enum
    meta.graph_def.CopyFrom(_with_biases(_optimized(meta, "constfold", "dependency")))
    if not bfloat16:
        return _optimized(meta, "constfold")
    # Matrix products stay in float32, and with them all that follows: they take little time, and a logit of 30 has only
    # three binary places in bfloat16.
    with mock.patch.dict(os.environ, {"TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE": "MatMul"}):
        return _optimized(meta, "auto_mixed_precision_onednn_bfloat16", "constfold")


def _optimized(meta: tf.compat.v1.MetaGraphDef, *optimizers: str) -> tf.compat.v1.GraphDef:
    config = config_pb2.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1  # small graphs too
    rewrites.meta_optimizer_iterations = RewriterConfig.ONE
    rewrites.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON  # if it is among the optimizers
    rewrites.optimizers.extend(optimizers)
    return tf_optimizer.OptimizeGraph(config, meta, verbose=False)


def _with_biases(graph: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Names what is added to each channel of a convolution, such as a folded BatchNormalization, by its name: BiasAdd.

    Of plain additions TensorFlow does not know, when it loads a graph, that they and the ReLU behind them can be part
    of the convolution: it moves the ReLU behind a concatenation instead, and each costs a pass over the memory
    (InceptionV3 at 299 px, batch 32, bfloat16 with AMX: 10.4 ms an image with additions, 8.6 with biases).
    """
    nodes = {node.name: node for node in graph.node}
    for node in list(graph.node):
        if node.op != "AddV2":
            continue
        for x, added in itertools.permutations(node.input[:2]):
            bias = _per_channel(nodes.get(added))
            if bias is not None and x in nodes and nodes[x].op in _TAKE_A_BIAS:
                value = tf.compat.v1.AttrValue(tensor=tf.make_tensor_proto(bias))
                constant = graph.node.add(name=f"{node.name}/bias", op="Const", device=node.device)
                constant.attr["dtype"].CopyFrom(node.attr["T"])
                constant.attr["value"].CopyFrom(value)
                node.op = "BiasAdd"
                node.input[:2] = [x, constant.name]
                break
    return graph


def _per_channel(node: tf.compat.v1.NodeDef | None) -> np.ndarray | None:
    """The vector that a constant ``[c]`` or ``[1, …, c]`` is, None for any other node."""
    if node is None or node.op != "Const":
        return None
    value = tf.make_ndarray(node.attr["value"].tensor)
    return value.reshape(-1) if value.ndim and value.size == value.shape[-1] > 1 else None
