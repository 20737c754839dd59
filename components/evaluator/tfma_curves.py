"""Curves and calibration of each class as TFMA metrics, from one pass over the scores.

TFMA's own ``ConfusionMatrixPlot`` and ``CalibrationPlot`` of single classes go through each example once per class, in
each slice. With ten classes that takes longer than the model; here all classes of many examples are counted at once.
The plots have TFMA's format, so that its views draw them. TFMA finds the metrics by class name and module.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import binary_confusion_matrices, metric_types, metric_util
from tensorflow_model_analysis.proto import config_pb2, metrics_for_slice_pb2

from components.evaluator.metric_names import CALIBRATION, CONFIDENCE, CURVES
from components.evaluator.tfma_metrics import extract_labels

MAX_CLASSES = 100
"""A model with more classes has no curves, only its calibration: curves of each would be more than a page can show."""

BUCKETS = 10
"""Number of buckets of a calibration, equally wide, from 0 to 1."""

_FINE = np.geomspace(1e-6, 1e-2, 17)[:-1]
_THRESHOLDS = np.concatenate([[0.0], _FINE, np.linspace(0.01, 0.99, 99), 1 - _FINE[::-1]])
# Finer near 0 and 1, where the scores of a confident network lie. A score counts as above if it is greater.

_FOLD = 512  # examples kept as rows: for more, counts are smaller


class ScoreCounts(NamedTuple):
    """Counts of scores; k classes, t thresholds, b buckets.

    Attributes:
        rows: examples that are not counted yet: any number of (targets ``[n, k]``, scores ``[n, k]``).
        above: float64 ``[2, k, t + 1]``: negatives and positives by the number of thresholds below their score; None
            before anything is counted, or with too many classes.
        buckets: likewise float64 ``[3, k, b]``: number, sum of targets, sum of scores.
        confidence: float64 ``[3, b]``: the same for the most probable class, whose target is whether it is right.
    """

    rows: list[tuple[np.ndarray, np.ndarray]]
    above: np.ndarray | None
    buckets: np.ndarray | None
    confidence: np.ndarray


def fold_rows(counts: ScoreCounts) -> ScoreCounts:
    """Returns the same with all rows counted."""
    if not counts.rows:
        return counts
    targets, scores = _concatenate(counts.rows)
    scores = scores.astype(float)
    best, rows = scores.argmax(axis=1), np.arange(len(scores))
    best_buckets = _count_in_buckets(targets[rows, best][:, None], scores[rows, best][:, None])[:, 0]
    confidence = counts.confidence + best_buckets
    classes = scores.shape[1]
    if classes > MAX_CLASSES:
        return ScoreCounts([], None, None, confidence)
    size = len(_THRESHOLDS) + 1
    bins = np.searchsorted(_THRESHOLDS, scores) + size * np.arange(classes)
    above = np.stack(
        [np.bincount(bins[targets == target], minlength=classes * size).reshape(classes, size) for target in (0, 1)]
    ).astype(float)
    buckets = _count_in_buckets(targets, scores)
    return ScoreCounts([], _add(above, counts.above), _add(buckets, counts.buckets), confidence)


def _concatenate(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    targets, scores = (np.concatenate(part) for part in zip(*rows, strict=True))
    return targets, scores


def _count_in_buckets(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns number, sum of targets and sum of scores, float64 ``[3, k, b]``, from ``[n, k]`` of both."""
    classes = scores.shape[1]
    bins = np.clip((scores * BUCKETS).astype(int), 0, BUCKETS - 1) + BUCKETS * np.arange(classes)
    return np.stack(
        [
            np.bincount(bins.ravel(), values.ravel(), minlength=classes * BUCKETS).reshape(classes, BUCKETS)
            for values in (np.ones_like(scores), targets, scores)
        ]
    )


def compute_calibration_error(confidence: np.ndarray) -> float:
    """Computes the expected calibration error: the mean over images of |confidence - share that is right|.

    Guo, C., Pleiss, G., Sun, Y., Weinberger, K. Q. (2017): On calibration of modern neural networks. ICML, section 2,
    equation 3, with ten buckets.

    Args:
        confidence: see ``ScoreCounts``.

    Returns:
        From 0 to 1; NaN if there is no image.
    """
    number, right, scores = confidence
    total = number.sum()
    return float(np.abs(right - scores).sum() / total) if total else float("nan")


class CalibrationError(tfma.metrics.Metric):
    """``compute_calibration_error`` of a classifier."""

    def __init__(self, name: str = "calibration_error"):
        super().__init__(metric_util.merge_per_key_computations(_build_calibration_error), name=name)


class ClassCurves(tfma.metrics.Metric):
    """Plots: confusion matrices at thresholds and calibration by class; for a classifier its confidence as well.

    A class has no curves in a slice in which all images have it, or none has.

    Args:
        name: name of the metric.
        several: whether an image has any number of labels.
    """

    def __init__(self, name: str = "class_curves", several: bool = False):
        super().__init__(metric_util.merge_per_key_computations(_build_class_curves), name=name, several=several)


def _build_calibration_error(
    name: str, eval_config: config_pb2.EvalConfig | None = None, model_name: str = "", output_name: str = ""
) -> list[Any]:
    key = metric_types.MetricKey(name=name, model_name=model_name, output_name=output_name)
    counts = _build_counts(False, eval_config, model_name, output_name)

    def result(metrics: dict[Any, Any]) -> dict[Any, float]:
        return {key: compute_calibration_error(metrics[counts.keys[0]].confidence)}

    return [counts, metric_types.DerivedMetricComputation(keys=[key], result=result)]


def _build_class_curves(
    name: str,
    several: bool,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
) -> list[Any]:
    computation = _build_counts(several, eval_config, model_name, output_name)

    def key(plot: str, class_id: int | None = None) -> Any:
        sub_key = None if class_id is None else metric_types.SubKey(class_id=class_id)
        return metric_types.PlotKey(name=plot, model_name=model_name, output_name=output_name, sub_key=sub_key)

    def result(metrics: dict[Any, Any]) -> dict[Any, Any]:
        counts = metrics[computation.keys[0]]
        plots = {} if several else {key(CONFIDENCE): _plot_calibration(counts.confidence)}
        for class_id in range(0 if counts.above is None else counts.above.shape[1]):
            if counts.above[:, class_id].sum(axis=1).all():
                plots[key(CURVES, class_id)] = _plot_confusion(counts.above[:, class_id])
                plots[key(CALIBRATION, class_id)] = _plot_calibration(counts.buckets[:, class_id])
        return plots

    # Computed after the confidence intervals: plots have none. TFMA tells computations apart by the marker's name.
    marker = metric_types.PlotKey(name=name, model_name=model_name, output_name=output_name)
    return [computation, metric_types.CIDerivedMetricComputation(keys=[marker], result=result)]


def _plot_confusion(above: np.ndarray) -> metrics_for_slice_pb2.ConfusionMatrixAtThresholds:
    """Makes a plot from negatives and positives by the number of thresholds below them, ``[2, t + 1]``."""
    negatives, positives = above.cumsum(axis=1)  # up to each threshold
    matrices = binary_confusion_matrices.Matrices(
        thresholds=_THRESHOLDS.tolist(),
        tp=(positives[-1] - positives[:-1]).tolist(),
        fp=(negatives[-1] - negatives[:-1]).tolist(),
        fn=positives[:-1].tolist(),
        tn=negatives[:-1].tolist(),
    )
    return matrices.to_proto().confusion_matrix_at_thresholds


def _plot_calibration(buckets: np.ndarray) -> metrics_for_slice_pb2.CalibrationHistogramBuckets:
    """Makes a plot from number, sum of targets and sum of scores, ``[3, b]``."""
    plot = metrics_for_slice_pb2.CalibrationHistogramBuckets()
    for index, (number, targets, scores) in enumerate(buckets.T):
        bucket = plot.buckets.add(
            lower_threshold_inclusive=index / BUCKETS, upper_threshold_exclusive=(index + 1) / BUCKETS
        )
        bucket.num_weighted_examples.value = number
        bucket.total_weighted_label.value = targets
        bucket.total_weighted_refined_prediction.value = scores
    return plot


def _build_counts(several: bool, eval_config: config_pb2.EvalConfig | None, model_name: str, output_name: str) -> Any:
    """Counts once for all metrics: TFMA recognizes equal computations by their keys."""
    key = metric_types.MetricKey(name="_score_counts", model_name=model_name, output_name=output_name)
    return metric_types.MetricComputation(
        keys=[key], preprocessors=None, combiner=_ScoreCounter(key, several, eval_config)
    )


class _ScoreCounter(beam.CombineFn):
    """Accumulates ``ScoreCounts``. Few examples, as in the slice of a class, stay rows: they take less memory."""

    def __init__(self, key: Any, several: bool, eval_config: config_pb2.EvalConfig | None):
        self._key = key
        self._several = several
        self._eval_config = eval_config

    def create_accumulator(self) -> ScoreCounts:
        return ScoreCounts([], None, None, np.zeros((3, BUCKETS)))

    def add_input(self, accumulator: ScoreCounts, element: Any) -> ScoreCounts:
        labels, scores, _ = extract_labels(element, self._key, self._eval_config)
        # A label that the model doesn't know is none of its classes.
        targets = labels.ravel() if self._several else np.arange(len(scores)) == labels.item()
        accumulator.rows.append((targets[None], scores[None]))
        return fold_rows(accumulator) if len(accumulator.rows) >= _FOLD else accumulator

    def compact(self, accumulator: ScoreCounts) -> ScoreCounts:
        # Before Beam encodes it, which it does array by array, and 20 times for the jackknife.
        counts = _fold_many_rows(accumulator)
        return counts._replace(rows=[_concatenate(counts.rows)]) if counts.rows else counts

    def merge_accumulators(self, accumulators: Iterable[ScoreCounts]) -> ScoreCounts:
        merged = self.create_accumulator()
        for counts in accumulators:
            merged = _fold_many_rows(
                ScoreCounts(
                    [*merged.rows, *counts.rows],
                    _add(merged.above, counts.above),
                    _add(merged.buckets, counts.buckets),
                    merged.confidence + counts.confidence,
                )
            )
        return merged

    def extract_output(self, accumulator: ScoreCounts) -> dict[Any, ScoreCounts]:
        return {self._key: fold_rows(accumulator)}


def _fold_many_rows(counts: ScoreCounts) -> ScoreCounts:
    return fold_rows(counts) if sum(len(scores) for _, scores in counts.rows) >= _FOLD else counts


def _add(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return other if one is None else one if other is None else one + other


for metric in (CalibrationError, ClassCurves):
    metric_types.register_metric(metric)
