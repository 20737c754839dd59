"""Metrics that TFMA lacks. TFMA finds them by class name and module."""

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

from transform.features import LABEL_SEPARATOR

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


class RSquared(tfma.metrics.Metric):
    """Coefficient of determination of a regression: 1 is perfect, 0 no better than always to say the targets' mean.

    NaN if all targets are the same. TFMA's SquaredPearsonCorrelation doesn't see predictions that are off by a factor.
    """

    def __init__(self, name: str = "r_squared"):
        super().__init__(metric_util.merge_per_key_computations(_by(_RSquaredCombiner)), name=name)


class _RSquaredCombiner(beam.CombineFn):
    """Accumulates float64 ``[4]``: the sums of weights, of targets, of their squares and of squared errors."""

    def __init__(self, key: Any, eval_config: config_pb2.EvalConfig | None):
        self._key = key
        self._eval_config = eval_config

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(4)

    def add_input(self, accumulator: np.ndarray, element: Any) -> np.ndarray:
        target, (value,), w = label_prediction_weight(element, self._key, self._eval_config)
        return accumulator + w * np.array([1, target, target**2, (target - float(value)) ** 2])

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return np.sum(list(accumulators), axis=0)

    def extract_output(self, accumulator: np.ndarray) -> dict[Any, float]:
        weight, total, squares, errors = accumulator
        variation = squares - total**2 / weight if weight else 0.0
        return {self._key: float(1 - errors / variation) if variation > 0 else float("nan")}


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
    return _of_label_counts(name, label_feature, model_name, output_name, LABEL_SCORES[name])


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
        values = (element.features or {}).get(self._label_feature)
        actual = {_text(value) for value in np.asarray([] if values is None else values).ravel().tolist()} - {""}
        answer = element.get_predictions(self._key.model_name)["label"]
        said = set(_text(np.asarray(answer).item()).split(LABEL_SEPARATOR)) - {""}
        for counter, labels in zip(accumulator, (said & actual, said - actual, actual - said), strict=True):
            counter.update(labels)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tuple[Counter, Counter, Counter]]) -> Any:
        return tuple(sum(counters, Counter()) for counters in zip(*accumulators, strict=True))

    def extract_output(self, accumulator: tuple[Counter, Counter, Counter]) -> dict[Any, LabelCounts]:
        labels = set().union(*accumulator)
        return {self._key: {label: LabelCount(*(counter[label] for counter in accumulator)) for label in labels}}


def _text(value: bytes | str | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def scores(count: LabelCount) -> dict[str, float | None]:
    """Precision, recall and F1 of a label, and the number of its examples; None for what divides by zero."""
    said, actual = count.right + count.wrong, count.right + count.missed
    return {
        "example_count": actual,
        "precision": count.right / said if said else None,
        "recall": count.right / actual if actual else None,
        "f1": 2 * count.right / (said + actual) if said + actual else None,
    }


def _pooled(name: str) -> Callable[[LabelCounts], float]:
    def figure(counts: LabelCounts) -> float:
        value = scores(LabelCount(*map(sum, zip(*counts.values(), strict=True))))[name]
        return float("nan") if value is None else value

    return figure


def _mean_f1(counts: LabelCounts) -> float:
    values = [scores(count)["f1"] or 0.0 for count in counts.values()]
    return sum(values) / len(values) if values else float("nan")


LABEL_SCORES: dict[str, Callable[[LabelCounts], float]] = {
    "precision": _pooled("precision"),
    "recall": _pooled("recall"),
    "micro_f1": _pooled("f1"),
    "macro_f1": _mean_f1,
}
"""Over all labels, pooled; but ``macro_f1`` is the mean over those labels that occur or are said."""

for metric in (MacroF1, LogLoss, RSquared, LabelScore, LabelDetails):
    metric_types.register_metric(metric)
