"""What the Evaluator computes and demands."""

import json
from collections.abc import Iterator
from typing import Any

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
from tensorflow_model_analysis.proto import config_pb2

from components.evaluator.paired_tests import WORSE, P
from components.evaluator.reader import CONFUSION_MATRIX, LABEL_DETAILS
from components.evaluator.results import CANDIDATE, CHAMPION
from imagepipe.base.features import SIZE, TARGET, Features
from imagepipe.base.metrics import CHAMPION_METRIC, METRICS
from imagepipe.base.names import TaskName
from pipeline.config import EvaluationConfig, RuleConfig

_CURVES, _PAIRED, _METRICS = (
    "components.evaluator.tfma_curves",
    "components.evaluator.paired_tests",
    "components.evaluator.tfma_metrics",
)
_INTERVALS = {
    "jackknife": config_pb2.ConfidenceIntervalOptions.JACKKNIFE,
    "bootstrap": config_pb2.ConfidenceIntervalOptions.POISSON_BOOTSTRAP,
}


def eval_config(task: TaskName, config: EvaluationConfig, features: Features) -> config_pb2.EvalConfig:
    """Makes TFMA's configuration.

    The model is evaluated as it will serve: from raw Examples, through its own signatures. Slices are the whole split,
    in a classification each class, buckets of the images' size, and what the configuration names. (Where there are
    several labels, the images with one of them would say little about it: those where it was said wrongly are
    elsewhere. It has counts of its own.)

    Each rule is a threshold of TFMA's on its slice, so that the whole gate stands in the evaluation. TFX's Evaluator
    leaves out comparisons with the champion where there is none.
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
    made = config_pb2.EvalConfig(
        model_specs=models,
        slicing_specs=[config_pb2.SlicingSpec(feature_keys=keys) for keys in _slices(task, config, features)],
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    config_pb2.MetricConfig(class_name="ExampleCount"),
                    *(_metric(name, task, config, features) for name in METRICS[task]),
                    *_paired(task, config, features),
                    *_details(task, features),
                ]
            )
        ],
    )
    if config.intervals != "none":
        made.options.compute_confidence_intervals.value = True
        made.options.confidence_intervals.method = _INTERVALS[config.intervals]
    return made


def columns_of_slices(config: EvaluationConfig, features: Features) -> list[list[str]]:
    """The columns of each kind of slice that may have any number of values: the label and the buckets are left out."""
    kinds = ([name for name in columns if name not in (features.label, SIZE)] for columns in _configured(config))
    return _each_once([columns for columns in kinds if columns])


def _slices(task: TaskName, config: EvaluationConfig, features: Features) -> list[list[str]]:
    """The columns of each kind of slice."""
    label = [[features.label]] if task == "classification" else []
    return _each_once([[], *label, [SIZE], *_configured(config)])


def _configured(config: EvaluationConfig) -> list[list[str]]:
    return [*([name] for name in config.slices), *(sorted(rule.slice) for rule in config.rules)]


def _each_once(kinds: list[list[str]]) -> list[list[str]]:
    return [columns for place, columns in enumerate(kinds) if columns not in kinds[:place]]


def _metric(name: str, task: TaskName, config: EvaluationConfig, features: Features) -> config_pb2.MetricConfig:
    measure = METRICS[task][name]
    options: dict[str, str | int] = {"name": name}
    if name == "top_k_accuracy":
        options["k"] = config.top_k
    if measure.metric == "LabelScore":
        options["label_feature"] = features.label
    metric = config_pb2.MetricConfig(class_name=measure.metric, module=measure.module, config=json.dumps(options))
    shorthand = config_pb2.MetricThreshold()
    if name in config.thresholds:
        side = "max" if measure.lower_is_better else "min"
        shorthand.MergeFrom(
            _threshold(task, RuleConfig.model_validate({"metric": name, side: config.thresholds[name]}))
        )
    if name == CHAMPION_METRIC[task]:
        shorthand.MergeFrom(_threshold(task, RuleConfig(metric=name, not_worse_than_champion=config.margin)))
    if shorthand.ByteSize():
        # Of the whole split only: a plain `threshold` would hold for each class as well.
        metric.per_slice_thresholds.add(slicing_specs=[config_pb2.SlicingSpec()], threshold=shorthand)
    for rule in config.rules:
        if rule.metric == name and rule.significance is None:
            metric.per_slice_thresholds.add(slicing_specs=[_slice(rule)], threshold=_threshold(task, rule))
    return metric


def _threshold(task: TaskName, rule: RuleConfig) -> config_pb2.MetricThreshold:
    made = config_pb2.MetricThreshold()
    if rule.min is not None:
        made.value_threshold.lower_bound.value = rule.min
    elif rule.max is not None:
        made.value_threshold.upper_bound.value = rule.max
    elif rule.not_worse_than_champion is not None:
        margin, change = rule.not_worse_than_champion, made.change_threshold
        measure, directions = METRICS[task][rule.metric], config_pb2.MetricDirection
        lower = measure.lower_is_better
        change.direction = directions.LOWER_IS_BETTER if lower else directions.HIGHER_IS_BETTER
        (change.relative if measure.relative else change.absolute).value = margin if lower else -margin
    return made


def _slice(rule: RuleConfig) -> config_pb2.SlicingSpec:
    return config_pb2.SlicingSpec(feature_values=rule.slice)


def _paired(task: TaskName, config: EvaluationConfig, features: Features) -> Iterator[config_pb2.MetricConfig]:
    """Of classifiers McNemar's test, for all to see; for the rules that ask for it, the test, and once a margin."""
    if task == "classification":
        yield _of_ours("McNemar", _PAIRED)
    of_labels = {"label_feature": features.label} if task == "multilabel" else {}
    tested = [rule for rule in config.rules if rule.significance is not None]
    for name in sorted({rule.metric for rule in tested}):
        options = {"metric": name} | of_labels
        if task != "classification":
            yield _of_ours("PairedTest", _PAIRED, name=f"{name}{P}", **options)
        of_metric = [rule for rule in tested if rule.metric == name]
        for margin in sorted({rule.not_worse_than_champion or 0.0 for rule in of_metric}):
            metric = _of_ours("WorseThanChance", _PAIRED, name=f"{name}{WORSE}{margin!r}", margin=margin, **options)
            for rule in of_metric:
                if rule.not_worse_than_champion == margin:
                    threshold = config_pb2.MetricThreshold()
                    # A change, though it is a probability: such a threshold is for those that have a champion.
                    threshold.change_threshold.absolute.value = rule.significance
                    threshold.change_threshold.direction = config_pb2.MetricDirection.HIGHER_IS_BETTER
                    metric.per_slice_thresholds.add(slicing_specs=[_slice(rule)], threshold=threshold)
            yield metric


def _details(task: TaskName, features: Features) -> list[config_pb2.MetricConfig]:
    """What is shown of single classes or labels."""
    if task == "classification":
        by_arg_max = {"name": CONFUSION_MATRIX, "thresholds": [0.0]}
        return [
            config_pb2.MetricConfig(class_name="MultiClassConfusionMatrixAtThresholds", config=json.dumps(by_arg_max)),
            _of_ours("ClassCurves", _CURVES),
        ]
    if task == "multilabel":
        return [
            _of_ours("LabelDetails", _METRICS, name=LABEL_DETAILS, label_feature=features.label),
            _of_ours("ClassCurves", _CURVES, several=True),
        ]
    return []


def _of_ours(class_name: str, module: str, **options: Any) -> config_pb2.MetricConfig:
    return config_pb2.MetricConfig(class_name=class_name, module=module, config=json.dumps(options))
