"""TFMA metrics of multilabel models. TFMA finds them by class name and module."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util
from tensorflow_model_analysis.metrics.confusion_matrix_metrics import AUC

from components.evaluator.metric_names import EXAMPLE_COUNT
from imagepipe.base.features import LABEL_SEPARATOR


class LabelCount(NamedTuple):
    """Number of examples for which a label was predicted rightly, predicted wrongly, or missed."""

    right: float = 0
    wrong: float = 0
    missed: float = 0


LabelCounts = dict[str, LabelCount]


class LabelScore(tfma.metrics.Metric):
    """A metric of the labels that a model predicts at its own decision thresholds: of its output ``label``.

    The predicted names are compared with those in the Example, so that a label that the model doesn't know counts as
    missed, and models that know different labels can be compared.

    Args:
        name: a key of ``LABEL_SCORES``.
        label_feature: the feature of an Example with its labels.
    """

    def __init__(self, name: str, label_feature: str):
        computations = metric_util.merge_per_key_computations(_build_label_score)
        super().__init__(computations, name=name, label_feature=label_feature)


class LabelDetails(tfma.metrics.Metric):
    """The result of ``compute_label_metrics`` by label, as JSON in bytes. Arguments as those of ``LabelScore``."""

    def __init__(self, name: str, label_feature: str):
        computations = metric_util.merge_per_key_computations(_build_label_details)
        super().__init__(computations, name=name, label_feature=label_feature)


class RocAuc(AUC):
    """TFMA's area under the ROC curve; NaN, not TFMA's 0, if all pairs of image and label are alike."""

    def _metric_value(self, curve: str, summation_method: str, key: Any, matrices: Any) -> float:
        has_both = matrices.tp[0] + matrices.fn[0] > 0 and matrices.fp[0] + matrices.tn[0] > 0
        return super()._metric_value(curve, summation_method, key, matrices) if has_both else float("nan")


def _build_label_score(name: str, label_feature: str, model_name: str = "", output_name: str = "") -> list[Any]:
    return _build_from_counts(
        name, label_feature, model_name, output_name, lambda counts: compute_label_score(name, counts)
    )


def _build_label_details(name: str, label_feature: str, model_name: str = "", output_name: str = "") -> list[Any]:
    def serialize(counts: LabelCounts) -> bytes:
        return json.dumps({label: compute_label_metrics(count) for label, count in sorted(counts.items())}).encode()

    return _build_from_counts(name, label_feature, model_name, output_name, serialize)


def _build_from_counts(
    name: str, label_feature: str, model_name: str, output_name: str, derive: Callable[[LabelCounts], Any]
) -> list[Any]:
    """Counts once for all metrics: TFMA recognizes equal computations by their keys."""
    counts_key = metric_types.MetricKey(name="_label_counts", model_name=model_name, output_name=output_name)
    key = metric_types.MetricKey(name=name, model_name=model_name, output_name=output_name)

    def result(metrics: dict[Any, Any]) -> dict[Any, Any]:
        return {key: derive(metrics[counts_key])}

    counts = metric_types.MetricComputation(
        keys=[counts_key],
        preprocessors=[metric_types.FeaturePreprocessor(feature_keys=[label_feature])],
        combiner=_LabelCounter(counts_key, label_feature),
    )
    return [counts, metric_types.DerivedMetricComputation(keys=[key], result=result)]


class _LabelCounter(beam.CombineFn):
    """Accumulates counts of labels predicted rightly, predicted wrongly, and missed."""

    def __init__(self, key: Any, label_feature: str):
        self._key = key
        self._label_feature = label_feature

    def create_accumulator(self) -> tuple[Counter, Counter, Counter]:
        return Counter(), Counter(), Counter()

    def add_input(self, accumulator: tuple[Counter, Counter, Counter], element: Any) -> Any:
        actual = extract_actual_labels(element, self._label_feature)
        predicted = extract_predicted_labels(element, self._key.model_name)
        groups = (predicted & actual, predicted - actual, actual - predicted)
        for counter, labels in zip(accumulator, groups, strict=True):
            counter.update(labels)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tuple[Counter, Counter, Counter]]) -> Any:
        return tuple(sum(counters, Counter()) for counters in zip(*accumulators, strict=True))

    def extract_output(self, accumulator: tuple[Counter, Counter, Counter]) -> dict[Any, LabelCounts]:
        labels = set().union(*accumulator)
        return {self._key: {label: LabelCount(*(counter[label] for counter in accumulator)) for label in labels}}


def extract_actual_labels(element: Any, label_feature: str) -> set[str]:
    """Returns the labels of an example."""
    values = (element.features or {}).get(label_feature)
    return {_decode(value) for value in np.asarray([] if values is None else values).ravel().tolist()} - {""}


def extract_predicted_labels(element: Any, model_name: str) -> set[str]:
    """Returns the labels that a model predicts for an example."""
    answer = element.get_predictions(model_name)["label"]
    return set(_decode(np.asarray(answer).item()).split(LABEL_SEPARATOR)) - {""}


def _decode(value: bytes | str | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return numerator / denominator


_RATIOS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "precision": lambda counts: _divide(counts[..., 0], counts[..., 0] + counts[..., 1]),
    "recall": lambda counts: _divide(counts[..., 0], counts[..., 0] + counts[..., 2]),
    "f1": lambda counts: _divide(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]),
}


def compute_label_metrics(count: LabelCount) -> dict[str, float | None]:
    """Returns precision, recall and F1 of a label, and the number of its examples; None for a division by zero."""
    ratios = {name: float(ratio(np.array(count))) for name, ratio in _RATIOS.items()}
    return {
        EXAMPLE_COUNT: count.right + count.missed,
        **{name: None if np.isnan(value) else value for name, value in ratios.items()},
    }


def _compute_pooled(name: str, counts: np.ndarray) -> np.ndarray:
    return _RATIOS[name](counts.sum(axis=-2))


def _compute_mean_f1(counts: np.ndarray) -> np.ndarray:
    values = _RATIOS["f1"](counts)
    return _divide(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


LABEL_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "precision": functools.partial(_compute_pooled, "precision"),
    "recall": functools.partial(_compute_pooled, "recall"),
    "micro_f1": functools.partial(_compute_pooled, "f1"),
    "macro_f1": _compute_mean_f1,
}
"""From counts ``[..., l, 3]``, ``LabelCount`` of l labels, to a score over all of them ``[...]``, NaN if it is not
defined: pooled; but ``macro_f1`` is the mean over those labels that occur or are predicted."""


def compute_label_score(name: str, counts: LabelCounts) -> float:
    """Computes a score, by its key in ``LABEL_SCORES``."""
    return float(LABEL_SCORES[name](np.array(list(counts.values()), float).reshape(-1, 3)))


for metric in (LabelScore, LabelDetails, RocAuc):
    metric_types.register_metric(metric)
