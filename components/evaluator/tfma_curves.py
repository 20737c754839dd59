"""Curves and calibration of each class, for TFMA: from one pass over the scores, as the plots that TFMA knows.

TFMA's own ``ConfusionMatrixPlot`` and ``CalibrationPlot`` of single classes go through each example once a class, in
each slice. With ten classes that takes longer than the model; here all classes of many examples are counted at once.
What is written is the same, so that TFMA's views draw it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import binary_confusion_matrices, metric_types, metric_util
from tensorflow_model_analysis.proto import config_pb2, metrics_for_slice_pb2

from components.evaluator.tfma_metrics import labels_prediction_weight

MOST_CLASSES = 100
"""Of a model with more, only the confidence is looked at: curves of each would be more than a page can show."""

BUCKETS = 10
"""Of calibration, equally wide, from 0 to 1."""

CURVES, CALIBRATION, CONFIDENCE = "confusion_matrix_plot", "calibration_plot", "confidence"
"""Names of the plots. The first two are TFMA's own, which it joins to one for each class."""

_FINE = np.geomspace(1e-6, 1e-2, 17)[:-1]
_THRESHOLDS = np.concatenate([[0.0], _FINE, np.linspace(0.01, 0.99, 99), 1 - _FINE[::-1]])
# Finer where the scores of a network that is sure of itself lie. Above each threshold is what is greater.

_FOLD = 512  # examples that are held as they are: of more, the counts are smaller


class Counts(NamedTuple):
    """What is known of scores; k classes, t thresholds, b buckets.

    Attributes:
        rows: of examples that are not counted yet: (targets ``[n, k]``, scores ``[n, k]``), any number of those.
        above: float64 ``[2, k, t + 1]``: negatives and positives by the number of thresholds below their score; None
            before anything is counted, or with too many classes.
        buckets: likewise float64 ``[3, k, b]``: number, sum of targets, sum of scores.
        confidence: float64 ``[3, b]``: the same of the most probable class, whose target is whether it is right.
    """

    rows: list[tuple[np.ndarray, np.ndarray]]
    above: np.ndarray | None
    buckets: np.ndarray | None
    confidence: np.ndarray


def folded(counts: Counts) -> Counts:
    """The same with all rows counted."""
    if not counts.rows:
        return counts
    targets, scores = _stacked(counts.rows)
    scores = scores.astype(float)
    best = scores.argmax(axis=1)
    each = np.arange(len(scores))
    confidence = counts.confidence + _in_buckets(targets[each, best][:, None], scores[each, best][:, None])[:, 0]
    classes = scores.shape[1]
    if classes > MOST_CLASSES:
        return Counts([], None, None, confidence)
    size = len(_THRESHOLDS) + 1
    place = np.searchsorted(_THRESHOLDS, scores) + size * np.arange(classes)
    above = np.stack(
        [np.bincount(place[targets == target], minlength=classes * size).reshape(classes, size) for target in (0, 1)]
    ).astype(float)
    return Counts([], _sum(above, counts.above), _sum(_in_buckets(targets, scores), counts.buckets), confidence)


def _stacked(rows: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    targets, scores = (np.concatenate(part) for part in zip(*rows, strict=True))
    return targets, scores


def _in_buckets(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Number, sum of targets and sum of scores, float64 ``[3, k, b]``, from ``[n, k]`` each."""
    classes = scores.shape[1]
    place = np.clip((scores * BUCKETS).astype(int), 0, BUCKETS - 1) + BUCKETS * np.arange(classes)
    return np.stack(
        [
            np.bincount(place.ravel(), values.ravel(), minlength=classes * BUCKETS).reshape(classes, BUCKETS)
            for values in (np.ones_like(scores), targets, scores)
        ]
    )


def calibration_error(confidence: np.ndarray) -> float:
    """Expected calibration error: by how much the confidence differs from the share that is right, mean over images.

    Guo, C., Pleiss, G., Sun, Y., Weinberger, K. Q. (2017): On calibration of modern neural networks. ICML, section 2,
    equation 3, with ten buckets.

    Args:
        confidence: see ``Counts``.

    Returns:
        From 0 to 1; NaN if there is no image.
    """
    number, right, said = confidence
    total = number.sum()
    return float(np.abs(right - said).sum() / total) if total else float("nan")


class CalibrationError(tfma.metrics.Metric):
    """``calibration_error`` of a classifier."""

    def __init__(self, name: str = "calibration_error"):
        super().__init__(metric_util.merge_per_key_computations(_calibration_error), name=name)


class ClassCurves(tfma.metrics.Metric):
    """Plots: by class confusion matrices at thresholds and calibration; of a classifier that of its confidence as well.

    A class of which a slice has all images or none has no curves there.

    Args:
        name: of the metric.
        several: whether an image has any number of labels.
    """

    def __init__(self, name: str = "class_curves", several: bool = False):
        super().__init__(metric_util.merge_per_key_computations(_class_curves), name=name, several=several)


def _calibration_error(
    name: str, eval_config: config_pb2.EvalConfig | None = None, model_name: str = "", output_name: str = ""
) -> list[Any]:
    key = metric_types.MetricKey(name=name, model_name=model_name, output_name=output_name)
    counts = _counted(False, eval_config, model_name, output_name)

    def result(metrics: dict[Any, Any]) -> dict[Any, float]:
        return {key: calibration_error(metrics[counts.keys[0]].confidence)}

    return [counts, metric_types.DerivedMetricComputation(keys=[key], result=result)]


def _class_curves(
    name: str,
    several: bool,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
) -> list[Any]:
    counts = _counted(several, eval_config, model_name, output_name)

    def key(plot: str, class_id: int | None = None) -> Any:
        sub_key = None if class_id is None else metric_types.SubKey(class_id=class_id)
        return metric_types.PlotKey(name=plot, model_name=model_name, output_name=output_name, sub_key=sub_key)

    def result(metrics: dict[Any, Any]) -> dict[Any, Any]:
        found = metrics[counts.keys[0]]
        plots = {} if several else {key(CONFIDENCE): _calibration_plot(found.confidence)}
        for class_id in range(0 if found.above is None else found.above.shape[1]):
            if found.above[:, class_id].sum(axis=1).all():
                plots[key(CURVES, class_id)] = _confusion_plot(found.above[:, class_id])
                plots[key(CALIBRATION, class_id)] = _calibration_plot(found.buckets[:, class_id])
        return plots

    # After the intervals, of which plots have none. The name is for TFMA, which tells computations apart by it.
    marker = metric_types.PlotKey(name=name, model_name=model_name, output_name=output_name)
    return [counts, metric_types.CIDerivedMetricComputation(keys=[marker], result=result)]


def _confusion_plot(above: np.ndarray) -> metrics_for_slice_pb2.ConfusionMatrixAtThresholds:
    """From negatives and positives by the number of thresholds below them, ``[2, t + 1]``."""
    negatives, positives = above.cumsum(axis=1)  # up to each threshold
    matrices = binary_confusion_matrices.Matrices(
        thresholds=_THRESHOLDS.tolist(),
        tp=(positives[-1] - positives[:-1]).tolist(),
        fp=(negatives[-1] - negatives[:-1]).tolist(),
        fn=positives[:-1].tolist(),
        tn=negatives[:-1].tolist(),
    )
    return matrices.to_proto().confusion_matrix_at_thresholds


def _calibration_plot(buckets: np.ndarray) -> metrics_for_slice_pb2.CalibrationHistogramBuckets:
    """From number, sum of targets and sum of scores, ``[3, b]``."""
    plot = metrics_for_slice_pb2.CalibrationHistogramBuckets()
    for place, (number, targets, scores) in enumerate(buckets.T):
        bucket = plot.buckets.add(
            lower_threshold_inclusive=place / BUCKETS, upper_threshold_exclusive=(place + 1) / BUCKETS
        )
        bucket.num_weighted_examples.value = number
        bucket.total_weighted_label.value = targets
        bucket.total_weighted_refined_prediction.value = scores
    return plot


def _counted(several: bool, eval_config: config_pb2.EvalConfig | None, model_name: str, output_name: str) -> Any:
    """Counts once for all metrics: TFMA knows equal computations by their keys."""
    key = metric_types.MetricKey(name="_score_counts", model_name=model_name, output_name=output_name)
    return metric_types.MetricComputation(
        keys=[key], preprocessors=None, combiner=_ScoreCounter(key, several, eval_config)
    )


class _ScoreCounter(beam.CombineFn):
    """Accumulates ``Counts``. Few examples, as in the slice of a class, are held as they are: that is less memory."""

    def __init__(self, key: Any, several: bool, eval_config: config_pb2.EvalConfig | None):
        self._key = key
        self._several = several
        self._eval_config = eval_config

    def create_accumulator(self) -> Counts:
        return Counts([], None, None, np.zeros((3, BUCKETS)))

    def add_input(self, accumulator: Counts, element: Any) -> Counts:
        labels, scores, _ = labels_prediction_weight(element, self._key, self._eval_config)
        # A label that the model doesn't know is none of its classes.
        targets = labels.ravel() if self._several else np.arange(len(scores)) == labels.item()
        accumulator.rows.append((targets[None], scores[None]))
        return folded(accumulator) if len(accumulator.rows) >= _FOLD else accumulator

    def compact(self, accumulator: Counts) -> Counts:
        # Before Beam encodes it, which it does array by array, and for the jackknife 20 times.
        counts = _folded_if_many(accumulator)
        return counts._replace(rows=[_stacked(counts.rows)]) if counts.rows else counts

    def merge_accumulators(self, accumulators: Iterable[Counts]) -> Counts:
        merged = self.create_accumulator()
        for each in accumulators:
            merged = _folded_if_many(
                Counts(
                    [*merged.rows, *each.rows],
                    _sum(merged.above, each.above),
                    _sum(merged.buckets, each.buckets),
                    merged.confidence + each.confidence,
                )
            )
        return merged

    def extract_output(self, accumulator: Counts) -> dict[Any, Counts]:
        return {self._key: folded(accumulator)}


def _folded_if_many(counts: Counts) -> Counts:
    return folded(counts) if sum(len(scores) for _, scores in counts.rows) >= _FOLD else counts


def _sum(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return other if one is None else one if other is None else one + other


for metric in (CalibrationError, ClassCurves):
    metric_types.register_metric(metric)
