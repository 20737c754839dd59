"""The paired tests of ``components.evaluator.significance`` as TFMA metrics. TFMA finds them by class name and module.

For TFMA, a metric that compares models is a difference from the baseline; without a baseline there is none. The tests
are computed after the confidence intervals: a probability has none.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import model_util

from components.evaluator.metric_names import MCNEMAR, ONLY_CANDIDATE, ONLY_CHAMPION
from components.evaluator.significance import (
    MISSED,
    RIGHT,
    WRONG,
    PairedCounts,
    PairedErrors,
    PairedLabels,
    PairedSums,
    compute_p_if_worse,
)
from components.evaluator.tfma_label_metrics import LABEL_SCORES, extract_actual_labels, extract_predicted_labels
from components.evaluator.tfma_metrics import extract_label


class McNemar(tfma.metrics.Metric):
    """p of ``PairedCounts``, and the counts ``only_candidate_right`` and ``only_champion_right``."""

    def __init__(self, name: str = MCNEMAR):
        super().__init__(_build_mcnemar, name=name)


class PairedTest(tfma.metrics.Metric):
    """p of the test that belongs to a metric.

    Args:
        name: see ``metric_names.name_paired_test``.
        metric: a metric with a test, see ``imagepipe.base.metrics``.
        label_feature: the feature of an Example with its labels; for multilabel tasks only.
    """

    def __init__(self, name: str, metric: str, label_feature: str = ""):
        super().__init__(_build_paired_test, name=name, metric=metric, label_feature=label_feature)


class MarginTest(tfma.metrics.Metric):
    """``compute_p_if_worse``, for a rule of the gate: it has to be at least the rule's significance.

    Args:
        name: see ``metric_names.name_margin_test``.
        metric: as in ``PairedTest``.
        margin: the candidate may be worse than the champion by this much, whatever the test says; see ``PairedSums``.
        label_feature: as in ``PairedTest``.
    """

    def __init__(self, name: str, metric: str, margin: float, label_feature: str = ""):
        super().__init__(_build_margin_test, name=name, metric=metric, margin=margin, label_feature=label_feature)


def _build_mcnemar(name: str, eval_config: config_pb2.EvalConfig, model_names: Sequence[str]) -> list[Any]:
    def derive(counts: PairedCounts) -> dict[str, float]:
        return {
            name: counts.compute_p(),
            ONLY_CANDIDATE: counts.only_candidate,
            ONLY_CHAMPION: counts.only_champion,
        }

    return _build_comparison(derive, [name, ONLY_CANDIDATE, ONLY_CHAMPION], "accuracy", "", eval_config, model_names)


def _build_paired_test(
    name: str, metric: str, label_feature: str, eval_config: config_pb2.EvalConfig, model_names: Sequence[str]
) -> list[Any]:
    def derive(sums: PairedSums) -> dict[str, float]:
        return {name: sums.compute_p()}

    return _build_comparison(derive, [name], metric, label_feature, eval_config, model_names)


def _build_margin_test(
    name: str,
    metric: str,
    margin: float,
    label_feature: str,
    eval_config: config_pb2.EvalConfig,
    model_names: Sequence[str],
) -> list[Any]:
    def derive(sums: PairedSums) -> dict[str, float]:
        return {name: compute_p_if_worse(sums, margin)}

    return _build_comparison(derive, [name], metric, label_feature, eval_config, model_names)


def _build_comparison(
    derive: Callable[[Any], dict[str, float]],
    names: Sequence[str],
    metric: str,
    label_feature: str,
    eval_config: config_pb2.EvalConfig,
    model_names: Sequence[str],
) -> list[Any]:
    """Compares once for all tests of a metric: TFMA recognizes equal computations by their keys."""
    baseline = model_util.get_baseline_model_spec(eval_config)
    computations: list[Any] = []
    for model in model_names if baseline else ():
        if model == baseline.name:
            continue
        sums_key = metric_types.MetricKey(name=f"_{metric}_compared", model_name=model, is_diff=True)
        keys = {name: metric_types.MetricKey(name=name, model_name=model, is_diff=True) for name in names}

        def result(metrics: dict[Any, Any], sums_key: Any = sums_key, keys: dict[str, Any] = keys) -> dict[Any, float]:
            return {keys[name]: value for name, value in derive(metrics[sums_key]).items()}

        features = [metric_types.FeaturePreprocessor(feature_keys=[label_feature])] if label_feature else None
        combiner = _COMBINERS[metric](sums_key, baseline.name, eval_config, metric, label_feature)
        computations.append(metric_types.MetricComputation(keys=[sums_key], preprocessors=features, combiner=combiner))
        computations.append(metric_types.CIDerivedMetricComputation(keys=list(keys.values()), result=result))
    return computations


class _PairedCombiner(beam.CombineFn):
    """Compares two models' answers to each example; its output is the ``PairedSums`` of a metric."""

    def __init__(self, key: Any, baseline: str, eval_config: config_pb2.EvalConfig, metric: str, label_feature: str):
        self._key = key
        self._models = [metric_types.MetricKey(name="", model_name=name) for name in (key.model_name, baseline)]
        self._eval_config = eval_config
        self._metric = metric
        self._label_feature = label_feature

    def _extract_answers(self, element: Any) -> list[tuple[float, np.ndarray]]:
        """Returns (label, outputs) for the candidate and for the champion: each numbers the classes on its own."""
        return [extract_label(element, model, self._eval_config)[:2] for model in self._models]


class _CountCombiner(_PairedCombiner):
    """Accumulates ``PairedCounts``. A model is right if its most probable class is the label, as in accuracy."""

    def create_accumulator(self) -> PairedCounts:
        return PairedCounts()

    def add_input(self, accumulator: PairedCounts, element: Any) -> PairedCounts:
        answers = self._extract_answers(element)
        candidate, champion = (bool(np.argmax(prediction) == label) for label, prediction in answers)
        return PairedCounts(
            accumulator.only_candidate + (candidate and not champion),
            accumulator.only_champion + (champion and not candidate),
            accumulator.images + 1,
        )

    def merge_accumulators(self, accumulators: Iterable[PairedCounts]) -> PairedCounts:
        return PairedCounts(*map(sum, zip(*accumulators, strict=True)))

    def extract_output(self, accumulator: PairedCounts) -> dict[Any, PairedSums]:
        return {self._key: accumulator}


class _ErrorCombiner(_PairedCombiner):
    """Accumulates float64 ``[6]``, sums over images.

    In this order: 1; the candidate's error; the champion's error; the square of their difference; the target; the
    square of the target.
    """

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(6)

    def add_input(self, accumulator: np.ndarray, element: Any) -> np.ndarray:
        answers = self._extract_answers(element)
        target = answers[0][0]
        measure = np.abs if self._metric == "mean_absolute_error" else np.square
        candidate, champion = (float(measure(target - float(value))) for _, (value,) in answers)
        return accumulator + np.array([1, candidate, champion, (candidate - champion) ** 2, target, target**2])

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return np.sum(list(accumulators), axis=0)

    def extract_output(self, accumulator: np.ndarray) -> dict[Any, PairedSums]:
        images, candidate, champion, squares, total, squared = accumulator.tolist()
        # R squared is 1 minus the unexplained share of the targets' variation: its margin is a share of that variation.
        unit = champion if self._metric != "r_squared" else squared - total**2 / images if images else 0.0
        return {self._key: PairedErrors(round(images), candidate, champion, squares, unit)}


class _LabelCombiner(_PairedCombiner):
    """Accumulates the champion's outcomes, and how the candidate's labels differ for images where they do."""

    def create_accumulator(self) -> tuple[Counter, Counter]:
        return Counter(), Counter()

    def add_input(self, accumulator: tuple[Counter, Counter], element: Any) -> tuple[Counter, Counter]:
        actual = extract_actual_labels(element, self._label_feature)
        candidate, champion = (extract_predicted_labels(element, model.model_name) for model in self._models)
        outcomes = {RIGHT: champion & actual, WRONG: champion - actual, MISSED: actual - champion}
        accumulator[0].update((label, outcome) for outcome, labels in outcomes.items() for label in labels)
        if candidate != champion:
            way = tuple((label, label in actual, label in candidate) for label in sorted(candidate ^ champion))
            accumulator[1][way] += 1
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tuple[Counter, Counter]]) -> tuple[Counter, Counter]:
        outcomes, differences = zip(*accumulators, strict=True)
        return sum(outcomes, Counter()), sum(differences, Counter())

    def extract_output(self, accumulator: tuple[Counter, Counter]) -> dict[Any, PairedSums]:
        return {self._key: PairedLabels(LABEL_SCORES[self._metric], *accumulator)}


_COMBINERS: dict[str, type[_PairedCombiner]] = {
    "accuracy": _CountCombiner,
    **dict.fromkeys(("mean_absolute_error", "mean_squared_error", "r_squared"), _ErrorCombiner),
    **dict.fromkeys(LABEL_SCORES, _LabelCombiner),
}
"""By metric, for those with a test in ``imagepipe.base.metrics``."""

for metric in (McNemar, PairedTest, MarginTest):
    metric_types.register_metric(metric)
