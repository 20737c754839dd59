"""What the Evaluator computes and demands."""

import json

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
from tensorflow_model_analysis.proto import config_pb2

from ingest.dataset import Task
from pipeline.config import EvaluationConfig
from pipeline.measures import CHAMPION_METRIC, MEASURES, RELATIVE_MARGIN
from transform.features import TARGET, Features

CANDIDATE, CHAMPION = "candidate", "champion"
CONFUSION_MATRIX = "multi_class_confusion_matrix"
LABEL_DETAILS = "label_details"


def eval_config(task: Task, config: EvaluationConfig, features: Features) -> config_pb2.EvalConfig:
    """Makes TFMA's configuration.

    The model is evaluated as it will serve: from raw Examples, through its own signatures. Slices are the whole split
    and in a classification each class. (Where there are several labels, the images with one of them would say little
    about it: those where it was said wrongly are elsewhere. It has counts of its own.) Absolute thresholds and the
    comparison with the champion apply to the whole split; TFX's Evaluator leaves the comparison out where there is no
    champion.
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
    slices = [config_pb2.SlicingSpec()]
    if task == "classification":
        slices.append(config_pb2.SlicingSpec(feature_keys=[features.label]))
    return config_pb2.EvalConfig(
        model_specs=models,
        slicing_specs=slices,
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    config_pb2.MetricConfig(class_name="ExampleCount"),
                    *(_metric(name, task, config, features) for name in MEASURES[task]),
                    *_details(task, features),
                ]
            )
        ],
    )


def _metric(name: str, task: Task, config: EvaluationConfig, features: Features) -> config_pb2.MetricConfig:
    measure = MEASURES[task][name]
    options: dict[str, str | int] = {"name": name}
    if name == "top_k_accuracy":
        options["k"] = config.top_k
    if measure.metric == "LabelScore":
        options["label_feature"] = features.label
    metric = config_pb2.MetricConfig(class_name=measure.metric, module=measure.module, config=json.dumps(options))
    threshold = config_pb2.MetricThreshold()
    if name in config.thresholds:
        bound = config.thresholds[name]
        if measure.lower_is_better:
            threshold.value_threshold.upper_bound.value = bound
        else:
            threshold.value_threshold.lower_bound.value = bound
    if name == CHAMPION_METRIC[task]:
        change = threshold.change_threshold
        worse = config.margin if measure.lower_is_better else -config.margin
        directions = config_pb2.MetricDirection
        change.direction = directions.LOWER_IS_BETTER if measure.lower_is_better else directions.HIGHER_IS_BETTER
        (change.relative if task in RELATIVE_MARGIN else change.absolute).value = worse
    if threshold.ByteSize():
        # Of the whole split only: a plain `threshold` would hold for each class as well.
        metric.per_slice_thresholds.add(slicing_specs=[config_pb2.SlicingSpec()], threshold=threshold)
    return metric


def _details(task: Task, features: Features) -> list[config_pb2.MetricConfig]:
    """What is shown of single classes or labels."""
    if task == "classification":
        by_arg_max = {"name": CONFUSION_MATRIX, "thresholds": [0.0]}
        return [
            config_pb2.MetricConfig(class_name="MultiClassConfusionMatrixAtThresholds", config=json.dumps(by_arg_max))
        ]
    if task == "multilabel":
        options = {"name": LABEL_DETAILS, "label_feature": features.label}
        return [
            config_pb2.MetricConfig(class_name="LabelDetails", module="components.metrics", config=json.dumps(options))
        ]
    return []
