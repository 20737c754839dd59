"""Metrics that TFMA lacks for classification by arg max. TFMA finds them by class name and module."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types, metric_util
from tensorflow_model_analysis.metrics.multi_class_confusion_matrix_metrics import multi_class_confusion_matrices
from tensorflow_model_analysis.proto import config_pb2

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


class LogLoss(tfma.metrics.Metric):
    """Mean negative logarithm of the label's probability, which is taken as 1e-7 for a label the model doesn't know.

    Keras's cross-entropy fails for such a label, and a champion meets one whenever the data has got a new class.
    """

    def __init__(self, name: str = "log_loss"):
        super().__init__(metric_util.merge_per_key_computations(_log_loss), name=name)


def _log_loss(
    name: str,
    eval_config: config_pb2.EvalConfig | None = None,
    model_name: str = "",
    output_name: str = "",
    example_weighted: bool = False,
) -> list[Any]:
    key = metric_types.MetricKey(
        name=name, model_name=model_name, output_name=output_name, example_weighted=example_weighted
    )
    return [metric_types.MetricComputation(keys=[key], preprocessors=None, combiner=_LogLossCombiner(key, eval_config))]


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
        label, probabilities, weight = next(
            metric_util.to_label_prediction_example_weight(
                element,
                eval_config=self._eval_config,
                model_name=self._key.model_name,
                output_name=self._key.output_name,
                example_weighted=self._key.example_weighted,
                flatten=False,
                require_single_example_weight=True,
            )
        )
        index, w = int(np.asarray(label).item()), float(np.asarray(weight).item())
        probability = probabilities[index] if index >= 0 else 0.0
        return _Total(accumulator.loss - w * float(np.log(max(probability, _EPSILON))), accumulator.weight + w)

    def merge_accumulators(self, accumulators: Iterable[_Total]) -> _Total:
        losses, weights = zip(*accumulators, strict=True)
        return _Total(sum(losses), sum(weights))

    def extract_output(self, accumulator: _Total) -> dict[Any, float]:
        return {self._key: accumulator.loss / accumulator.weight if accumulator.weight else float("nan")}


metric_types.register_metric(MacroF1)
metric_types.register_metric(LogLoss)
