"""TFMA metrics of classifications and regressions that TFMA lacks. TFMA finds them by class name and module."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_metrics import multi_class_confusion_matrices
from tensorflow_model_analysis.proto import config_pb2

_EPSILON = 1e-7  # Keras's, for the logarithm of a probability
_ROUNDING = 1e-12  # of sums of squares: equal targets of 0.1 have a variation of 1e-17


class MacroF1(tfma.metrics.Metric):
    """Mean over the classes of F1 by arg max; a class counts if it is a label or a prediction of some example."""

    def __init__(self, name: str = "macro_f1"):
        super().__init__(metric_util.merge_per_key_computations(_build_macro_f1), name=name)


def _build_macro_f1(
    name: str,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
    example_weighted: bool = False,
) -> list[Any]:
    key = metric_types.MetricKey(
        name=name, model_name=model_name, output_name=output_name, example_weighted=example_weighted
    )
    computations = multi_class_confusion_matrices(
        thresholds=[0.0],
        eval_config=eval_config,
        model_name=model_name,
        output_name=output_name,
        example_weighted=example_weighted,
    )
    matrices_key = computations[-1].keys[-1]

    def result(metrics: dict[Any, Any]) -> dict[Any, float]:
        return {key: compute_macro_f1(metrics[matrices_key][0.0])}

    return [*computations, metric_types.DerivedMetricComputation(keys=[key], result=result)]


def compute_macro_f1(matrix: dict[tuple[int, int], float]) -> float:
    """Returns the mean F1 of a confusion matrix, counts by (actual class, predicted class); NaN if it is empty."""
    correct: dict[int, float] = {}
    total: dict[int, float] = {}  # as label plus as prediction: the denominator of F1 = 2 TP / (2 TP + FP + FN)
    for (actual, predicted), count in matrix.items():
        for class_id in (actual, predicted):
            total[class_id] = total.get(class_id, 0) + count
        if actual == predicted:
            correct[actual] = correct.get(actual, 0) + count
    return float(np.mean([2 * correct.get(c, 0) / count for c, count in total.items()])) if total else float("nan")


class LogLoss(tfma.metrics.Metric):
    """Mean negative logarithm of the label's probability, which is taken as 1e-7 for a label the model doesn't know.

    Keras's cross-entropy fails for such a label, and a champion meets one whenever the data has got a new class.
    """

    def __init__(self, name: str = "log_loss"):
        super().__init__(metric_util.merge_per_key_computations(_build_log_loss), name=name)


def _build_log_loss(
    name: str,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
    example_weighted: bool = False,
) -> list[Any]:
    key = metric_types.MetricKey(
        name=name, model_name=model_name, output_name=output_name, example_weighted=example_weighted
    )
    combiner = _LogLossCombiner(key, eval_config)
    return [metric_types.MetricComputation(keys=[key], preprocessors=None, combiner=combiner)]


class _LossSums(NamedTuple):
    loss: float
    weight: float


class _LogLossCombiner(beam.CombineFn):
    """Accumulates ``_LossSums``."""

    def __init__(self, key: Any, eval_config: config_pb2.EvalConfig | None):
        self._key = key
        self._eval_config = eval_config

    def create_accumulator(self) -> _LossSums:
        return _LossSums(0.0, 0.0)

    def add_input(self, accumulator: _LossSums, element: Any) -> _LossSums:
        label, probabilities, weight = extract_label(element, self._key, self._eval_config)
        probability = probabilities[int(label)] if label >= 0 else 0.0
        loss = -float(np.log(max(probability, _EPSILON)))
        return _LossSums(accumulator.loss + weight * loss, accumulator.weight + weight)

    def merge_accumulators(self, accumulators: Iterable[_LossSums]) -> _LossSums:
        losses, weights = zip(*accumulators, strict=True)
        return _LossSums(sum(losses), sum(weights))

    def extract_output(self, accumulator: _LossSums) -> dict[Any, float]:
        return {self._key: accumulator.loss / accumulator.weight if accumulator.weight else float("nan")}


def extract_label(element: Any, key: Any, eval_config: config_pb2.EvalConfig | None) -> tuple[float, np.ndarray, float]:
    """Returns the one label of an example, the model's outputs ``[k]`` and the weight."""
    label, prediction, weight = extract_labels(element, key, eval_config)
    return label.item(), prediction, weight


def extract_labels(
    element: Any, key: Any, eval_config: config_pb2.EvalConfig | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns an example's label, or 0 or 1 for each of several ``[k]``; the model's outputs ``[k]``; the weight."""
    labels, prediction, weight = next(
        metric_util.to_label_prediction_example_weight(
            element,
            eval_config=eval_config,
            model_name=key.model_name,
            output_name=key.output_name,
            example_weighted=key.example_weighted,
            flatten=False,
            require_single_example_weight=True,
        )
    )
    return np.asarray(labels), np.atleast_1d(prediction), float(np.asarray(weight).item())


class RegressionScore(tfma.metrics.Metric):
    """A metric of a regression's errors.

    TFMA's own MeanAbsoluteError and MeanSquaredError, up to 0.52 at least, count the first of the accumulators that are
    merged twice, so that with the jackknife they are means of some images more than of others. Its
    SquaredPearsonCorrelation doesn't see predictions that are off by a factor.

    Args:
        name: a key of ``REGRESSION_SCORES``.
    """

    def __init__(self, name: str):
        super().__init__(metric_util.merge_per_key_computations(_build_regression_score), name=name)


class ErrorSums(NamedTuple):
    """Sums of weights, of targets, of their squares, of absolute errors and of squared errors."""

    weight: float
    targets: float
    squares: float
    absolute: float
    squared: float


def _compute_r_squared(sums: ErrorSums) -> float:
    variation = sums.squares - sums.targets**2 / sums.weight
    return 1 - sums.squared / variation if variation > _ROUNDING * sums.squares else float("nan")


REGRESSION_SCORES: dict[str, Callable[[ErrorSums], float]] = {
    "mean_absolute_error": lambda sums: sums.absolute / sums.weight,
    "mean_squared_error": lambda sums: sums.squared / sums.weight,
    "r_squared": _compute_r_squared,
}
"""``r_squared`` is the coefficient of determination: 1 is perfect, 0 no better than always predicting the mean of the
targets. It is NaN if all targets are the same."""


def _build_regression_score(
    name: str, eval_config: config_pb2.EvalConfig | None = None, model_name: str = "", output_name: str = ""
) -> list[Any]:
    """Sums up once for all metrics: TFMA recognizes equal computations by their keys."""
    sums_key = metric_types.MetricKey(name="_error_sums", model_name=model_name, output_name=output_name)
    key = metric_types.MetricKey(name=name, model_name=model_name, output_name=output_name)

    def result(metrics: dict[Any, Any]) -> dict[Any, float]:
        sums = metrics[sums_key]
        return {key: REGRESSION_SCORES[name](sums) if sums.weight else float("nan")}

    combiner = _ErrorCombiner(sums_key, eval_config)
    sums = metric_types.MetricComputation(keys=[sums_key], preprocessors=None, combiner=combiner)
    return [sums, metric_types.DerivedMetricComputation(keys=[key], result=result)]


class _ErrorCombiner(beam.CombineFn):
    """Accumulates ``ErrorSums``."""

    def __init__(self, key: Any, eval_config: config_pb2.EvalConfig | None):
        self._key = key
        self._eval_config = eval_config

    def create_accumulator(self) -> ErrorSums:
        return ErrorSums(0.0, 0.0, 0.0, 0.0, 0.0)

    def add_input(self, accumulator: ErrorSums, element: Any) -> ErrorSums:
        target, (value,), weight = extract_label(element, self._key, self._eval_config)
        error = target - float(value)
        sums = ErrorSums(weight, weight * target, weight * target**2, weight * abs(error), weight * error**2)
        return self.merge_accumulators([accumulator, sums])

    def merge_accumulators(self, accumulators: Iterable[ErrorSums]) -> ErrorSums:
        return ErrorSums(*map(sum, zip(*accumulators, strict=True)))

    def extract_output(self, accumulator: ErrorSums) -> dict[Any, ErrorSums]:
        return {self._key: accumulator}


for metric in (MacroF1, LogLoss, RegressionScore):
    metric_types.register_metric(metric)
