"""Metrics that TFMA lacks. TFMA finds them by class name and module."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_metrics import multi_class_confusion_matrices
from tensorflow_model_analysis.proto import config_pb2

from imagepipe.base.features import LABEL_SEPARATOR

_EPSILON = 1e-7  # Keras's, for the logarithm of a probability


class MacroF1(tfma.metrics.Metric):
    """Mean over the classes of F1 by arg max; a class counts if it is a label or a prediction of some example."""

    def __init__(self, name: str = "macro_f1"):
        super().__init__(metric_util.merge_per_key_computations(_macro_f1), name=name)


def _macro_f1(
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
        return {key: macro_f1(metrics[matrices_key][0.0])}

    return [*computations, metric_types.DerivedMetricComputation(keys=[key], result=result)]


def macro_f1(matrix: dict[tuple[int, int], float]) -> float:
    """Mean F1 of a confusion matrix, from (actual class, predicted class) to a count; NaN if it is empty."""
    correct: dict[int, float] = {}
    seen: dict[int, float] = {}  # as label plus as prediction: the denominator of F1 = 2 TP / (2 TP + FP + FN)
    for (actual, predicted), count in matrix.items():
        for one in (actual, predicted):
            seen[one] = seen.get(one, 0) + count
        if actual == predicted:
            correct[actual] = correct.get(actual, 0) + count
    return float(np.mean([2 * correct.get(one, 0) / total for one, total in seen.items()])) if seen else float("nan")


def _by(combiner: Callable[[Any, config_pb2.EvalConfig | None], beam.CombineFn]) -> Callable[..., list[Any]]:
    """Makes what TFMA calls for a metric that one combiner computes, given the metric's key and the configuration."""

    def computations(
        name: str,
        eval_config: config_pb2.EvalConfig | None = None,
        model_name: str = "",
        output_name: str = "",
        example_weighted: bool = False,
    ) -> list[Any]:
        key = metric_types.MetricKey(
            name=name, model_name=model_name, output_name=output_name, example_weighted=example_weighted
        )
        return [metric_types.MetricComputation(keys=[key], preprocessors=None, combiner=combiner(key, eval_config))]

    return computations


class LogLoss(tfma.metrics.Metric):
    """Mean negative logarithm of the label's probability, which is taken as 1e-7 for a label the model doesn't know.

    Keras's cross-entropy fails for such a label, and a champion meets one whenever the data has got a new class.
    """

    def __init__(self, name: str = "log_loss"):
        super().__init__(metric_util.merge_per_key_computations(_by(_LogLossCombiner)), name=name)


class _Total(NamedTuple):
    loss: float
    weight: float


class _LogLossCombiner(beam.CombineFn):
    def __init__(self, key: Any, eval_config: config_pb2.EvalConfig | None):
        self._key = key
        self._eval_config = eval_config

    def create_accumulator(self) -> _Total:
        return _Total(0.0, 0.0)

    def add_input(self, accumulator: _Total, element: Any) -> _Total:
        label, probabilities, w = label_prediction_weight(element, self._key, self._eval_config)
        probability = probabilities[int(label)] if label >= 0 else 0.0
        return _Total(accumulator.loss - w * float(np.log(max(probability, _EPSILON))), accumulator.weight + w)

    def merge_accumulators(self, accumulators: Iterable[_Total]) -> _Total:
        losses, weights = zip(*accumulators, strict=True)
        return _Total(sum(losses), sum(weights))

    def extract_output(self, accumulator: _Total) -> dict[Any, float]:
        return {self._key: accumulator.loss / accumulator.weight if accumulator.weight else float("nan")}


def label_prediction_weight(
    element: Any, key: Any, eval_config: config_pb2.EvalConfig | None
) -> tuple[float, np.ndarray, float]:
    """Of an example with one label: the label, the model's outputs ``[k]`` and the weight."""
    label, prediction, weight = labels_prediction_weight(element, key, eval_config)
    return label.item(), prediction, weight


def labels_prediction_weight(
    element: Any, key: Any, eval_config: config_pb2.EvalConfig | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of an example: the label, or of several 0 or 1 each, ``[k]``; the model's outputs ``[k]``; the weight."""
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
    """A figure of a regression's errors.

    TFMA's own MeanAbsoluteError and MeanSquaredError, up to 0.52 at least, count the first of the accumulators that are
    merged twice, so that with the jackknife they are means of some images more than of others. Its
    SquaredPearsonCorrelation doesn't see predictions that are off by a factor.

    Args:
        name: a key of ``REGRESSION_SCORES``.
    """

    def __init__(self, name: str):
        super().__init__(metric_util.merge_per_key_computations(_regression_score), name=name)


class ErrorSums(NamedTuple):
    """Sums of weights, of targets, of their squares, of absolute errors and of squared errors."""

    weight: float
    targets: float
    squares: float
    absolute: float
    squared: float


def _r_squared(sums: ErrorSums) -> float:
    variation = sums.squares - sums.targets**2 / sums.weight
    return 1 - sums.squared / variation if variation > 0 else float("nan")


REGRESSION_SCORES: dict[str, Callable[[ErrorSums], float]] = {
    "mean_absolute_error": lambda sums: sums.absolute / sums.weight,
    "mean_squared_error": lambda sums: sums.squared / sums.weight,
    "r_squared": _r_squared,
}
"""``r_squared`` is the coefficient of determination: 1 is perfect, 0 no better than always to say the targets' mean. It
is NaN where all targets are the same."""


def _regression_score(
    name: str, eval_config: config_pb2.EvalConfig | None = None, model_name: str = "", output_name: str = ""
) -> list[Any]:
    """Sums up once for all metrics: TFMA knows equal computations by their keys."""
    sums_key = metric_types.MetricKey(name="_error_sums", model_name=model_name, output_name=output_name)
    key = metric_types.MetricKey(name=name, model_name=model_name, output_name=output_name)

    def result(metrics: dict[Any, Any]) -> dict[Any, float]:
        sums = metrics[sums_key]
        return {key: REGRESSION_SCORES[name](sums) if sums.weight else float("nan")}

    combiner = _ErrorSummer(sums_key, eval_config)
    sums = metric_types.MetricComputation(keys=[sums_key], preprocessors=None, combiner=combiner)
    return [sums, metric_types.DerivedMetricComputation(keys=[key], result=result)]


class _ErrorSummer(beam.CombineFn):
    """Accumulates ``ErrorSums``."""

    def __init__(self, key: Any, eval_config: config_pb2.EvalConfig | None):
        self._key = key
        self._eval_config = eval_config

    def create_accumulator(self) -> ErrorSums:
        return ErrorSums(0.0, 0.0, 0.0, 0.0, 0.0)

    def add_input(self, accumulator: ErrorSums, element: Any) -> ErrorSums:
        target, (value,), w = label_prediction_weight(element, self._key, self._eval_config)
        error = target - float(value)
        one = ErrorSums(w, w * target, w * target**2, w * abs(error), w * error**2)
        return self.merge_accumulators([accumulator, one])

    def merge_accumulators(self, accumulators: Iterable[ErrorSums]) -> ErrorSums:
        return ErrorSums(*map(sum, zip(*accumulators, strict=True)))

    def extract_output(self, accumulator: ErrorSums) -> dict[Any, ErrorSums]:
        return {self._key: accumulator}


class LabelCount(NamedTuple):
    """How a label was said: rightly, wrongly, or not although it should have been; in number of examples."""

    right: float = 0
    wrong: float = 0
    missed: float = 0


LabelCounts = dict[str, LabelCount]


class LabelScore(tfma.metrics.Metric):
    """A figure of what a model with several labels says, its thresholds included: of its output ``label``.

    The names that it says are held against those in the Example, so that a label it doesn't know is one that it missed,
    and models that know other labels can be compared.

    Args:
        name: a key of ``LABEL_SCORES``.
        label_feature: the feature of an Example with its labels.
    """

    def __init__(self, name: str, label_feature: str):
        super().__init__(metric_util.merge_per_key_computations(_label_score), name=name, label_feature=label_feature)


class LabelDetails(tfma.metrics.Metric):
    """By label what ``label_scores`` gives, as JSON in bytes. Arguments as those of ``LabelScore``."""

    def __init__(self, name: str, label_feature: str):
        super().__init__(metric_util.merge_per_key_computations(_label_details), name=name, label_feature=label_feature)


def _label_score(name: str, label_feature: str, model_name: str = "", output_name: str = "") -> list[Any]:
    return _of_label_counts(name, label_feature, model_name, output_name, lambda counts: label_score(name, counts))


def _label_details(name: str, label_feature: str, model_name: str = "", output_name: str = "") -> list[Any]:
    def details(counts: LabelCounts) -> bytes:
        return json.dumps({label: scores(count) for label, count in sorted(counts.items())}).encode()

    return _of_label_counts(name, label_feature, model_name, output_name, details)


def _of_label_counts(
    name: str, label_feature: str, model_name: str, output_name: str, figure: Callable[[LabelCounts], Any]
) -> list[Any]:
    """Counts once for all metrics: TFMA knows equal computations by their keys."""
    counts_key = metric_types.MetricKey(name="_label_counts", model_name=model_name, output_name=output_name)
    key = metric_types.MetricKey(name=name, model_name=model_name, output_name=output_name)

    def result(metrics: dict[Any, Any]) -> dict[Any, Any]:
        return {key: figure(metrics[counts_key])}

    counts = metric_types.MetricComputation(
        keys=[counts_key],
        preprocessors=[metric_types.FeaturePreprocessor(feature_keys=[label_feature])],
        combiner=_LabelCounter(counts_key, label_feature),
    )
    return [counts, metric_types.DerivedMetricComputation(keys=[key], result=result)]


class _LabelCounter(beam.CombineFn):
    """Accumulates a count of labels rightly said, wrongly said, and missed."""

    def __init__(self, key: Any, label_feature: str):
        self._key = key
        self._label_feature = label_feature

    def create_accumulator(self) -> tuple[Counter, Counter, Counter]:
        return Counter(), Counter(), Counter()

    def add_input(self, accumulator: tuple[Counter, Counter, Counter], element: Any) -> Any:
        actual = actual_labels(element, self._label_feature)
        said = said_labels(element, self._key.model_name)
        for counter, labels in zip(accumulator, (said & actual, said - actual, actual - said), strict=True):
            counter.update(labels)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tuple[Counter, Counter, Counter]]) -> Any:
        return tuple(sum(counters, Counter()) for counters in zip(*accumulators, strict=True))

    def extract_output(self, accumulator: tuple[Counter, Counter, Counter]) -> dict[Any, LabelCounts]:
        labels = set().union(*accumulator)
        return {self._key: {label: LabelCount(*(counter[label] for counter in accumulator)) for label in labels}}


def actual_labels(element: Any, label_feature: str) -> set[str]:
    """The labels that an example has."""
    values = (element.features or {}).get(label_feature)
    return {_text(value) for value in np.asarray([] if values is None else values).ravel().tolist()} - {""}


def said_labels(element: Any, model_name: str) -> set[str]:
    """The labels that a model says of an example."""
    answer = element.get_predictions(model_name)["label"]
    return set(_text(np.asarray(answer).item()).split(LABEL_SEPARATOR)) - {""}


def _text(value: bytes | str | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return numerator / denominator


_RATIOS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "precision": lambda counts: _ratio(counts[..., 0], counts[..., 0] + counts[..., 1]),
    "recall": lambda counts: _ratio(counts[..., 0], counts[..., 0] + counts[..., 2]),
    "f1": lambda counts: _ratio(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]),
}


def scores(count: LabelCount) -> dict[str, float | None]:
    """Precision, recall and F1 of a label, and the number of its examples; None for what divides by zero."""
    ratios = {name: float(ratio(np.array(count))) for name, ratio in _RATIOS.items()}
    return {
        "example_count": count.right + count.missed,
        **{name: None if np.isnan(value) else value for name, value in ratios.items()},
    }


def _pooled(name: str, counts: np.ndarray) -> np.ndarray:
    return _RATIOS[name](counts.sum(axis=-2))


def _mean_f1(counts: np.ndarray) -> np.ndarray:
    values = _RATIOS["f1"](counts)
    return _ratio(np.nansum(values, axis=-1), (~np.isnan(values)).sum(axis=-1))


LABEL_SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "precision": functools.partial(_pooled, "precision"),
    "recall": functools.partial(_pooled, "recall"),
    "micro_f1": functools.partial(_pooled, "f1"),
    "macro_f1": _mean_f1,
}
"""From counts ``[..., l, 3]``, ``LabelCount`` of l labels, to a figure over all of them ``[...]``, NaN where it is not
defined: pooled; but ``macro_f1`` is the mean over those labels that occur or are said."""


def label_score(name: str, counts: LabelCounts) -> float:
    """A key of ``LABEL_SCORES``, of labels that were counted."""
    return float(LABEL_SCORES[name](np.array(list(counts.values()), float).reshape(-1, 3)))


for metric in (MacroF1, LogLoss, RegressionScore, LabelScore, LabelDetails):
    metric_types.register_metric(metric)
