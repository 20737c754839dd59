"""A trained network as it is served: its weights are constants, and what can be computed before is."""

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

from imagepipe.base.errors import TrainingError
from imagepipe.base.names import TaskName
from trainer import devices, inputs, rewrites
from trainer.config import ServingConfig

Function: TypeAlias = Callable[[dict[str, tf.Tensor]], tf.Tensor]

_log = logging.getLogger(__name__)

_BATCH = 32


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
    rewrites.rename_functions(graph, "_bfloat16" if bfloat16 else "_float32")

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
    graph = _optimized(meta, "constfold", "dependency")
    rewrites.name_biases(graph)
    rewrites.fold_scaling(graph)
    meta.graph_def.CopyFrom(graph)
    if not bfloat16:
        return _optimized(meta, "constfold")
    # Matrix products stay in float32, and with them all that follows: they take little time, and a logit of 30 has only
    # three binary places in bfloat16.
    with mock.patch.dict(os.environ, {"TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE": "MatMul"}):
        graph = _optimized(meta, "auto_mixed_precision_onednn_bfloat16", "constfold")
    rewrites.cast_once(graph)
    rewrites.pack_constants(graph)
    return graph


def _optimized(meta: tf.compat.v1.MetaGraphDef, *optimizers: str) -> tf.compat.v1.GraphDef:
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1  # small graphs too
    options.meta_optimizer_iterations = RewriterConfig.ONE
    options.auto_mixed_precision_onednn_bfloat16 = RewriterConfig.ON  # if it is among the optimizers
    options.optimizers.extend(optimizers)
    return tf_optimizer.OptimizeGraph(config, meta, verbose=False)
