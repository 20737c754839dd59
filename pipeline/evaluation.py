"""What the Evaluator computes and demands."""

import json

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
from tensorflow_model_analysis.proto import config_pb2

from pipeline.config import EvaluationConfig
from transform.features import TARGET, Features

_METRIC_CLASSES = {
    "accuracy": config_pb2.MetricConfig(class_name="SparseCategoricalAccuracy"),
    "top_k_accuracy": config_pb2.MetricConfig(class_name="SparseTopKCategoricalAccuracy"),
    "macro_f1": config_pb2.MetricConfig(class_name="MacroF1", module="components.metrics"),
    "log_loss": config_pb2.MetricConfig(class_name="LogLoss", module="components.metrics"),
}
LOWER_IS_BETTER = {"log_loss"}
CANDIDATE, CHAMPION = "candidate", "champion"
CONFUSION_MATRIX = "multi_class_confusion_matrix"
CHAMPION_METRIC = "accuracy"
"""The metric in which a candidate may not fall behind the champion by more than the margin."""


def eval_config(config: EvaluationConfig, features: Features) -> config_pb2.EvalConfig:
    """Makes TFMA's configuration.

    The model is evaluated as it will serve: from raw Examples, through its own signatures. Slices are the whole split
    and each label. Absolute thresholds and the comparison with the champion apply to the whole split; TFX's Evaluator
    leaves the comparison out where there is no champion.
    """
    models = [
        config_pb2.ModelSpec(
            name=name,
            is_baseline=name == CHAMPION,
            model_type="tf_generic",
            signature_name="tf_examples",
            preprocessing_function_names=["transform_features"],
            prediction_key="classes",
            label_key=TARGET,
        )
        for name in (CANDIDATE, CHAMPION)
    ]
    return config_pb2.EvalConfig(
        model_specs=models,
        slicing_specs=[config_pb2.SlicingSpec(), config_pb2.SlicingSpec(feature_keys=[features.label])],
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    config_pb2.MetricConfig(class_name="ExampleCount"),
                    *(_metric(name, config) for name in _METRIC_CLASSES),
                    config_pb2.MetricConfig(
                        class_name="MultiClassConfusionMatrixAtThresholds",
                        config=json.dumps({"name": CONFUSION_MATRIX, "thresholds": [0.0]}),  # 0: by arg max
                    ),
                ]
            )
        ],
    )


def _metric(name: str, config: EvaluationConfig) -> config_pb2.MetricConfig:
    metric = config_pb2.MetricConfig()
    metric.CopyFrom(_METRIC_CLASSES[name])
    metric.config = json.dumps({"name": name} | ({"k": config.top_k} if name == "top_k_accuracy" else {}))
    threshold = config_pb2.MetricThreshold()
    if name in config.thresholds:
        bound = config.thresholds[name]
        if name in LOWER_IS_BETTER:
            threshold.value_threshold.upper_bound.value = bound
        else:
            threshold.value_threshold.lower_bound.value = bound
    if name == CHAMPION_METRIC:
        threshold.change_threshold.direction = config_pb2.MetricDirection.HIGHER_IS_BETTER
        threshold.change_threshold.absolute.value = -config.margin
    if threshold.ByteSize():
        # Of the whole split only: a plain `threshold` would hold for each class as well.
        metric.per_slice_thresholds.add(slicing_specs=[config_pb2.SlicingSpec()], threshold=threshold)
    return metric
