"""TFMA's configuration: which metrics and slices the Evaluator computes, and the rules of the gate."""

import json
from collections.abc import Iterator
from typing import Any

import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2

from components.evaluator.evaluation import CANDIDATE, CHAMPION
from components.evaluator.metric_names import (
    CONFUSION_MATRIX,
    LABEL_DETAILS,
    TOP_K,
    name_margin_test,
    name_paired_test,
)
from components.evaluator.tfma_curves import ClassCurves
from components.evaluator.tfma_group_count import GroupCount
from components.evaluator.tfma_label_metrics import LabelDetails, LabelScore
from components.evaluator.tfma_paired_tests import MarginTest, McNemar, PairedTest
from imagepipe.base.features import SIZE, TARGET, Features
from imagepipe.base.metrics import CHAMPION_METRIC, METRICS, TOP_K_METRIC
from imagepipe.base.names import TaskName
from pipeline.config import EvaluationConfig, RuleConfig


def build_eval_config(task: TaskName, config: EvaluationConfig, features: Features) -> config_pb2.EvalConfig:
    """Builds TFMA's configuration.

    The model is evaluated as it will serve: from raw Examples, through its own signatures. Slices are the whole split,
    in a classification each class, buckets of the images' size, and those of the configuration. (In a multilabel task,
    a slice of the images with one label would say little about that label: the images for which it was predicted
    wrongly are in other slices. Each label has counts of its own instead.)

    Each rule is a TFMA threshold on its slice, so that the whole gate is part of the evaluation. TFX's Evaluator drops
    comparisons with the champion if there is none.
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
    eval_config = config_pb2.EvalConfig(
        model_specs=models,
        slicing_specs=[config_pb2.SlicingSpec(feature_keys=keys) for keys in _list_slices(task, config, features)],
        metrics_specs=[
            config_pb2.MetricsSpec(
                metrics=[
                    config_pb2.MetricConfig(class_name="ExampleCount"),
                    _build_custom_metric(GroupCount, group_feature=features.group),
                    *(_build_metric(name, task, config, features) for name in METRICS[task]),
                    *_build_paired_tests(task, config, features),
                    *_build_details(task, features),
                ]
            )
        ],
    )
    if config.intervals == "jackknife":
        eval_config.options.compute_confidence_intervals.value = True
        eval_config.options.confidence_intervals.method = config_pb2.ConfidenceIntervalOptions.JACKKNIFE
    return eval_config


def list_slice_columns(config: EvaluationConfig, features: Features) -> list[list[str]]:
    """Returns the columns of each kind of slice whose number of values has no bound: neither label nor size buckets."""
    kinds = ([name for name in columns if name not in (features.label, SIZE)] for columns in _list_configured(config))
    return _drop_repeated([columns for columns in kinds if columns])


def _list_slices(task: TaskName, config: EvaluationConfig, features: Features) -> list[list[str]]:
    """Returns the columns of each kind of slice."""
    label = [[features.label]] if task == "classification" else []
    return _drop_repeated([[], *label, [SIZE], *_list_configured(config)])


def _list_configured(config: EvaluationConfig) -> list[list[str]]:
    return [*([name] for name in config.slices), *(sorted(rule.slice) for rule in config.rules)]


def _drop_repeated(kinds: list[list[str]]) -> list[list[str]]:
    return [columns for index, columns in enumerate(kinds) if columns not in kinds[:index]]


def _build_metric(name: str, task: TaskName, config: EvaluationConfig, features: Features) -> config_pb2.MetricConfig:
    properties = METRICS[task][name]
    options: dict[str, str | int] = {"name": name}
    if name == TOP_K_METRIC:
        options[TOP_K] = config.top_k
    if properties.metric == LabelScore.__name__:
        options["label_feature"] = features.label
    metric = config_pb2.MetricConfig(class_name=properties.metric, module=properties.module, config=json.dumps(options))
    shorthand = config_pb2.MetricThreshold()
    if name in config.thresholds:
        side = "max" if properties.lower_is_better else "min"
        rule = RuleConfig.model_validate({"metric": name, side: config.thresholds[name]})
        shorthand.MergeFrom(_build_threshold(task, rule))
    if name == CHAMPION_METRIC[task]:
        shorthand.MergeFrom(_build_threshold(task, RuleConfig(metric=name, not_worse_than_champion=config.margin)))
    if shorthand.ByteSize():
        # For the whole split only: a plain `threshold` would hold for each class as well.
        metric.per_slice_thresholds.add(slicing_specs=[config_pb2.SlicingSpec()], threshold=shorthand)
    for rule in config.rules:
        if rule.metric == name and rule.significance is None:
            metric.per_slice_thresholds.add(slicing_specs=[_build_slice(rule)], threshold=_build_threshold(task, rule))
    return metric


def _build_threshold(task: TaskName, rule: RuleConfig) -> config_pb2.MetricThreshold:
    threshold = config_pb2.MetricThreshold()
    if rule.min is not None:
        threshold.value_threshold.lower_bound.value = rule.min
    elif rule.max is not None:
        threshold.value_threshold.upper_bound.value = rule.max
    elif rule.not_worse_than_champion is not None:
        margin, change = rule.not_worse_than_champion, threshold.change_threshold
        properties, directions = METRICS[task][rule.metric], config_pb2.MetricDirection
        lower = properties.lower_is_better
        change.direction = directions.LOWER_IS_BETTER if lower else directions.HIGHER_IS_BETTER
        (change.relative if properties.relative else change.absolute).value = margin if lower else -margin
    return threshold


def _build_slice(rule: RuleConfig) -> config_pb2.SlicingSpec:
    return config_pb2.SlicingSpec(feature_values=rule.slice)


def _build_paired_tests(
    task: TaskName, config: EvaluationConfig, features: Features
) -> Iterator[config_pb2.MetricConfig]:
    """Yields McNemar's test for all classifications; for rules with a test, the test, and one for each margin."""
    group_options = {"group_feature": features.group}
    if task == "classification":
        yield _build_custom_metric(McNemar, **group_options)
    label_options = {"label_feature": features.label} if task == "multilabel" else {}
    tested = [rule for rule in config.rules if rule.significance is not None]
    for name in sorted({rule.metric for rule in tested}):
        options = {"metric": name} | group_options | label_options
        if task != "classification":
            yield _build_custom_metric(PairedTest, name=name_paired_test(name), **options)
        rules = [rule for rule in tested if rule.metric == name]
        for margin in sorted({rule.not_worse_than_champion or 0.0 for rule in rules}):
            metric = _build_custom_metric(MarginTest, name=name_margin_test(name, margin), margin=margin, **options)
            for rule in rules:
                if rule.not_worse_than_champion == margin:
                    threshold = config_pb2.MetricThreshold()
                    # A change threshold, though p is no change: TFMA drops these if there is no champion.
                    threshold.change_threshold.absolute.value = rule.significance
                    threshold.change_threshold.direction = config_pb2.MetricDirection.HIGHER_IS_BETTER
                    metric.per_slice_thresholds.add(slicing_specs=[_build_slice(rule)], threshold=threshold)
            yield metric


def _build_details(task: TaskName, features: Features) -> list[config_pb2.MetricConfig]:
    """Builds what reports show of single classes or labels."""
    if task == "classification":
        by_arg_max = {"name": CONFUSION_MATRIX, "thresholds": [0.0]}
        return [
            config_pb2.MetricConfig(class_name="MultiClassConfusionMatrixAtThresholds", config=json.dumps(by_arg_max)),
            _build_custom_metric(ClassCurves),
        ]
    if task == "multilabel":
        return [
            _build_custom_metric(LabelDetails, name=LABEL_DETAILS, label_feature=features.label),
            _build_custom_metric(ClassCurves, several=True),
        ]
    return []


def _build_custom_metric(metric: type[tfma.metrics.Metric], /, **options: Any) -> config_pb2.MetricConfig:
    return config_pb2.MetricConfig(class_name=metric.__name__, module=metric.__module__, config=json.dumps(options))
