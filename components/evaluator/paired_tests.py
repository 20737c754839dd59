"""The paired tests of ``components.evaluator.significance`` as TFMA metrics.

TFMA has a metric that compares models as a difference from the baseline; without one there is none. What is computed
here comes after the confidence intervals: a probability has none.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import model_util

from components.evaluator.significance import (
    MISSED,
    RIGHT,
    WRONG,
    Comparison,
    Errors,
    Labels,
    Pairs,
    p_if_worse,
)
from components.evaluator.tfma_metrics import (
    LABEL_SCORES,
    actual_labels,
    label_prediction_weight,
    said_labels,
)

MCNEMAR, ONLY_CANDIDATE, ONLY_CHAMPION = "mcnemar", "only_candidate_right", "only_champion_right"
P = "_paired_p"
"""Ends the name of a ``PairedTest``, which begins with its metric."""
WORSE = "_not_worse_by_"
"""In the name of a ``WorseThanChance``, between its metric and its margin."""


class McNemar(tfma.metrics.Metric):
    """p of ``significance.Pairs``, and beside it the counts ``only_candidate_right`` and ``only_champion_right``."""

    def __init__(self, name: str = MCNEMAR):
        super().__init__(_mcnemar, name=name)


class PairedTest(tfma.metrics.Metric):
    """p of the test that belongs to a metric.

    Args:
        name: of this one.
        metric: the metric, see ``imagepipe.base.metrics``; one that has a test.
        label_feature: the feature of an Example with its labels; of several labels only.
    """

    def __init__(self, name: str, metric: str, label_feature: str = ""):
        super().__init__(_paired_test, name=name, metric=metric, label_feature=label_feature)


class WorseThanChance(tfma.metrics.Metric):
    """``significance.p_if_worse``, for a gate: it is to be at least the significance that is asked for.

    Args:
        name: of this one.
        metric: as of ``PairedTest``.
        margin: by so much the candidate may be behind the champion, whatever the test says; see ``Comparison``.
        label_feature: as of ``PairedTest``.
    """

    def __init__(self, name: str, metric: str, margin: float, label_feature: str = ""):
        super().__init__(_worse_than_chance, name=name, metric=metric, margin=margin, label_feature=label_feature)


def _mcnemar(name: str, eval_config: config_pb2.EvalConfig, model_names: Sequence[str]) -> list[Any]:
    def figures(pairs: Pairs) -> dict[str, float]:
        return {name: pairs.p(), ONLY_CANDIDATE: pairs.only_candidate, ONLY_CHAMPION: pairs.only_champion}

    return _compared(figures, [name, ONLY_CANDIDATE, ONLY_CHAMPION], "accuracy", "", eval_config, model_names)


def _paired_test(
    name: str, metric: str, label_feature: str, eval_config: config_pb2.EvalConfig, model_names: Sequence[str]
) -> list[Any]:
    return _compared(lambda found: {name: found.p()}, [name], metric, label_feature, eval_config, model_names)


def _worse_than_chance(
    name: str,
    metric: str,
    margin: float,
    label_feature: str,
    eval_config: config_pb2.EvalConfig,
    model_names: Sequence[str],
) -> list[Any]:
    def figures(found: Comparison) -> dict[str, float]:
        return {name: p_if_worse(found, margin)}

    return _compared(figures, [name], metric, label_feature, eval_config, model_names)


def _compared(
    figures: Callable[[Any], dict[str, float]],
    names: Sequence[str],
    metric: str,
    label_feature: str,
    eval_config: config_pb2.EvalConfig,
    model_names: Sequence[str],
) -> list[Any]:
    """Counts once for all figures of a metric: TFMA knows equal computations by their keys."""
    baseline = model_util.get_baseline_model_spec(eval_config)
    made: list[Any] = []
    for model in model_names if baseline else ():
        if model == baseline.name:
            continue
        counts = metric_types.MetricKey(name=f"_{metric}_compared", model_name=model, is_diff=True)
        keys = {name: metric_types.MetricKey(name=name, model_name=model, is_diff=True) for name in names}

        def result(metrics: dict[Any, Any], counts: Any = counts, keys: dict[str, Any] = keys) -> dict[Any, float]:
            return {keys[name]: value for name, value in figures(metrics[counts]).items()}

        features = [metric_types.FeaturePreprocessor(feature_keys=[label_feature])] if label_feature else None
        combiner = _COMPARERS[metric](counts, baseline.name, eval_config, metric, label_feature)
        made.append(metric_types.MetricComputation(keys=[counts], preprocessors=features, combiner=combiner))
        made.append(metric_types.CIDerivedMetricComputation(keys=list(keys.values()), result=result))
    return made


class _Comparer(beam.CombineFn):
    """Looks at two models' answers to an example; gives a ``Comparison`` in what ``metric`` measures."""

    def __init__(self, key: Any, baseline: str, eval_config: config_pb2.EvalConfig, metric: str, label_feature: str):
        self._key = key
        self._models = [metric_types.MetricKey(name="", model_name=name) for name in (key.model_name, baseline)]
        self._eval_config = eval_config
        self._metric = metric
        self._label_feature = label_feature

    def _answers(self, element: Any) -> list[tuple[float, np.ndarray]]:
        """Of the candidate and of the champion: the label, in a classification as a number of its own; the outputs."""
        return [label_prediction_weight(element, model, self._eval_config)[:2] for model in self._models]


class _ComparesAccuracy(_Comparer):
    """A model is right if its most probable class is the label, as accuracy has it."""

    def create_accumulator(self) -> Pairs:
        return Pairs()

    def add_input(self, accumulator: Pairs, element: Any) -> Pairs:
        candidate, champion = (bool(np.argmax(prediction) == label) for label, prediction in self._answers(element))
        return Pairs(
            accumulator.only_candidate + (candidate and not champion),
            accumulator.only_champion + (champion and not candidate),
            accumulator.images + 1,
        )

    def merge_accumulators(self, accumulators: Iterable[Pairs]) -> Pairs:
        return Pairs(*map(sum, zip(*accumulators, strict=True)))

    def extract_output(self, accumulator: Pairs) -> dict[Any, Comparison]:
        return {self._key: accumulator}


class _ComparesErrors(_Comparer):
    """Accumulates float64 ``[6]``, sums over images.

    Of 1; of the candidate's error, the champion's, and their difference squared; of the target, and the target squared.
    """

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(6)

    def add_input(self, accumulator: np.ndarray, element: Any) -> np.ndarray:
        answers = self._answers(element)
        target = answers[0][0]
        error = np.abs if self._metric == "mean_absolute_error" else np.square
        candidate, champion = (float(error(target - float(value))) for _, (value,) in answers)
        return accumulator + np.array([1, candidate, champion, (candidate - champion) ** 2, target, target**2])

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return np.sum(list(accumulators), axis=0)

    def extract_output(self, accumulator: np.ndarray) -> dict[Any, Comparison]:
        images, candidate, champion, squares, total, squared = accumulator.tolist()
        # A margin of R squared, 1 less the share of the targets' variation that is left, is a share of that variation.
        unit = champion if self._metric != "r_squared" else squared - total**2 / images if images else 0.0
        return {self._key: Errors(round(images), candidate, champion, squares, unit)}


class _ComparesLabels(_Comparer):
    """Accumulates what the champion says; and of the images of which the candidate says other labels, which."""

    def create_accumulator(self) -> tuple[Counter, Counter]:
        return Counter(), Counter()

    def add_input(self, accumulator: tuple[Counter, Counter], element: Any) -> tuple[Counter, Counter]:
        actual = actual_labels(element, self._label_feature)
        candidate, champion = (said_labels(element, model.model_name) for model in self._models)
        how = {RIGHT: champion & actual, WRONG: champion - actual, MISSED: actual - champion}
        accumulator[0].update((label, place) for place, labels in how.items() for label in labels)
        if candidate != champion:
            way = tuple((label, label in actual, label in candidate) for label in sorted(candidate ^ champion))
            accumulator[1][way] += 1
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tuple[Counter, Counter]]) -> tuple[Counter, Counter]:
        said, differences = zip(*accumulators, strict=True)
        return sum(said, Counter()), sum(differences, Counter())

    def extract_output(self, accumulator: tuple[Counter, Counter]) -> dict[Any, Comparison]:
        return {self._key: Labels(LABEL_SCORES[self._metric], *accumulator)}


_COMPARERS: dict[str, type[_Comparer]] = {
    "accuracy": _ComparesAccuracy,
    **dict.fromkeys(("mean_absolute_error", "mean_squared_error", "r_squared"), _ComparesErrors),
    **dict.fromkeys(LABEL_SCORES, _ComparesLabels),
}
"""By metric, for those that have a test by ``imagepipe.base.metrics``."""

for metric in (McNemar, PairedTest, WorseThanChance):
    metric_types.register_metric(metric)
