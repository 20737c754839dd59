"""The paired tests of ``components.evaluator.significance`` as TFMA metrics. TFMA finds them by class name and module.

For TFMA, a metric that compares models is a difference from the baseline; without a baseline there is none. The tests
are computed after the confidence intervals: a probability has none.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.utils import model_util

from components.evaluator.groups import GroupSums, extract_group, merge_groups
from components.evaluator.metric_names import MCNEMAR, ONLY_CANDIDATE, ONLY_CHAMPION
from components.evaluator.significance import (
    MISSED,
    RIGHT,
    WRONG,
    PairedCounts,
    PairedErrors,
    PairedLabels,
    PairedSums,
    compare_labels,
    compute_p_if_worse,
    count_changes,
)
from components.evaluator.tfma_label_metrics import LABEL_SCORES, extract_actual_labels, extract_predicted_labels
from components.evaluator.tfma_metrics import extract_label


class McNemar(tfma.metrics.Metric):
    """p of ``PairedCounts``, and the counts ``only_candidate_right`` and ``only_champion_right``.

    Args:
        group_feature: as in ``PairedTest``.
        name: name of p.
    """

    def __init__(self, group_feature: str, name: str = MCNEMAR):
        super().__init__(_build_mcnemar, name=name, group_feature=group_feature)


class PairedTest(tfma.metrics.Metric):
    """p of the test that belongs to a metric.

    Args:
        name: see ``metric_names.name_paired_test``.
        metric: a metric with a test, see ``imagepipe.base.metrics``.
        group_feature: the feature of an Example with its group, if it has one; see ``components.evaluator.groups``.
        label_feature: the feature of an Example with its labels; for multilabel tasks only.
    """

    def __init__(self, name: str, metric: str, group_feature: str, label_feature: str = ""):
        super().__init__(
            _build_paired_test, name=name, metric=metric, group_feature=group_feature, label_feature=label_feature
        )


class MarginTest(tfma.metrics.Metric):
    """``compute_p_if_worse``, for a rule of the gate: it has to be at least the rule's significance.

    Args:
        name: see ``metric_names.name_margin_test``.
        metric: as in ``PairedTest``.
        margin: the candidate may be worse than the champion by this much, whatever the test says; see ``PairedSums``.
        group_feature, label_feature: as in ``PairedTest``.
    """

    def __init__(self, name: str, metric: str, margin: float, group_feature: str, label_feature: str = ""):
        super().__init__(
            _build_margin_test,
            name=name,
            metric=metric,
            margin=margin,
            group_feature=group_feature,
            label_feature=label_feature,
        )


class _Features(NamedTuple):
    """The features of an Example that a test looks at; '' for none."""

    group: str
    label: str = ""


_Answer = tuple[float, np.ndarray]
"""The label as a model numbers it, and the model's outputs ``[k]``."""


def _build_mcnemar(
    name: str, group_feature: str, eval_config: config_pb2.EvalConfig, model_names: Sequence[str]
) -> list[Any]:
    def derive(counts: PairedCounts) -> dict[str, float]:
        return {
            name: counts.compute_p(),
            ONLY_CANDIDATE: counts.only_candidate,
            ONLY_CHAMPION: counts.only_champion,
        }

    names = [name, ONLY_CANDIDATE, ONLY_CHAMPION]
    return _build_comparison(derive, names, "accuracy", _Features(group_feature), eval_config, model_names)


def _build_paired_test(
    name: str,
    metric: str,
    group_feature: str,
    label_feature: str,
    eval_config: config_pb2.EvalConfig,
    model_names: Sequence[str],
) -> list[Any]:
    def derive(sums: PairedSums) -> dict[str, float]:
        return {name: sums.compute_p()}

    features = _Features(group_feature, label_feature)
    return _build_comparison(derive, [name], metric, features, eval_config, model_names)


def _build_margin_test(
    name: str,
    metric: str,
    margin: float,
    group_feature: str,
    label_feature: str,
    eval_config: config_pb2.EvalConfig,
    model_names: Sequence[str],
) -> list[Any]:
    def derive(sums: PairedSums) -> dict[str, float]:
        return {name: compute_p_if_worse(sums, margin)}

    features = _Features(group_feature, label_feature)
    return _build_comparison(derive, [name], metric, features, eval_config, model_names)


def _build_comparison(
    derive: Callable[[Any], dict[str, float]],
    names: Sequence[str],
    metric: str,
    features: _Features,
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

        preprocessor = metric_types.FeaturePreprocessor(feature_keys=[name for name in features if name])
        combiner = _COMBINERS[metric](sums_key, baseline.name, eval_config, metric, features)
        computations.append(
            metric_types.MetricComputation(keys=[sums_key], preprocessors=[preprocessor], combiner=combiner)
        )
        computations.append(metric_types.CIDerivedMetricComputation(keys=list(keys.values()), result=result))
    return computations


class _PairedCombiner(beam.CombineFn):
    """Compares two models' answers to each example; its output is the ``PairedSums`` of a metric."""

    def __init__(self, key: Any, baseline: str, eval_config: config_pb2.EvalConfig, metric: str, features: _Features):
        self._key = key
        self._models = [metric_types.MetricKey(name="", model_name=name) for name in (key.model_name, baseline)]
        self._eval_config = eval_config
        self._metric = metric
        self._features = features


class _NumberCombiner(_PairedCombiner):
    """Accumulates sums of an image's numbers: float64 ``[n]`` over all images, and by group."""

    _NUMBERS: ClassVar[int]

    def _measure(self, candidate: _Answer, champion: _Answer) -> list[float]:
        """Returns an image's numbers."""
        raise NotImplementedError

    def _summarize(self, sums: list[float], groups: list[list[float]]) -> PairedSums:
        """Returns the sums as those of a test."""
        raise NotImplementedError

    def create_accumulator(self) -> tuple[np.ndarray, GroupSums]:
        return np.zeros(self._NUMBERS), GroupSums()

    def add_input(self, accumulator: tuple[np.ndarray, GroupSums], element: Any) -> tuple[np.ndarray, GroupSums]:
        # Each model numbers the classes on its own, so that the label differs too.
        candidate, champion = (extract_label(element, model, self._eval_config)[:2] for model in self._models)
        numbers, (sums, groups) = self._measure(candidate, champion), accumulator
        group = extract_group(element, self._features.group)
        if group is not None:
            groups.add(group, dict(enumerate(numbers)))
        return sums + numbers, groups

    def merge_accumulators(self, accumulators: Iterable[tuple[np.ndarray, GroupSums]]) -> tuple[np.ndarray, GroupSums]:
        sums, groups = zip(*accumulators, strict=True)
        return np.sum(sums, axis=0), merge_groups(groups)

    def extract_output(self, accumulator: tuple[np.ndarray, GroupSums]) -> dict[Any, PairedSums]:
        sums, groups = accumulator
        return {self._key: self._summarize(sums.tolist(), [list(group.values()) for group in groups.list_sums()])}


class _CountCombiner(_NumberCombiner):
    """Accumulates ``PairedCounts``. A model is right if its most probable class is the label, as in accuracy."""

    _NUMBERS = 3

    def _measure(self, candidate: _Answer, champion: _Answer) -> list[float]:
        one, other = (bool(np.argmax(prediction) == label) for label, prediction in (candidate, champion))
        return [one and not other, other and not one, 1]

    def _summarize(self, sums: list[float], groups: list[list[float]]) -> PairedSums:
        only_candidate, only_champion, images = sums
        by_group = tuple((one, other) for one, other, _ in groups)
        return PairedCounts(only_candidate, only_champion, images, by_group)


class _ErrorCombiner(_NumberCombiner):
    """Accumulates ``PairedErrors``.

    The numbers are 1; the candidate's error; the champion's error; the square of their difference; the target; the
    square of the target.
    """

    _NUMBERS = 6

    def _measure(self, candidate: _Answer, champion: _Answer) -> list[float]:
        target, measure = candidate[0], np.abs if self._metric == "mean_absolute_error" else np.square
        one, other = (float(measure(target - float(value))) for _, (value,) in (candidate, champion))
        return [1, one, other, (one - other) ** 2, target, target**2]

    def _summarize(self, sums: list[float], groups: list[list[float]]) -> PairedSums:
        images, candidate, champion, squares, total, squared = sums
        # R squared is 1 minus the unexplained share of the targets' variation: its margin is a share of that variation.
        unit = champion if self._metric != "r_squared" else squared - total**2 / images if images else 0.0
        differences = tuple((number, one - other, square) for number, one, other, square, _, _ in groups)
        return PairedErrors(round(images), candidate, champion, squares, unit, differences)


class _LabelCombiner(_PairedCombiner):
    """Accumulates the champion's outcomes, and how the candidate's differ, by image or by group."""

    def create_accumulator(self) -> tuple[Counter, Counter, GroupSums]:
        return Counter(), Counter(), GroupSums()

    def add_input(self, accumulator: tuple[Counter, Counter, GroupSums], element: Any) -> Any:
        outcomes, differences, groups = accumulator
        actual = extract_actual_labels(element, self._features.label)
        candidate, champion = (extract_predicted_labels(element, model.model_name) for model in self._models)
        by_outcome = {RIGHT: champion & actual, WRONG: champion - actual, MISSED: actual - champion}
        outcomes.update((label, outcome) for outcome, labels in by_outcome.items() for label in labels)
        changes, group = compare_labels(actual, candidate, champion), extract_group(element, self._features.group)
        if group is None:
            differences.update(count_changes([changes]))
        else:
            groups.add(group, changes)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[tuple[Counter, Counter, GroupSums]]) -> Any:
        outcomes, differences, groups = zip(*accumulators, strict=True)
        return sum(outcomes, Counter()), sum(differences, Counter()), merge_groups(groups)

    def extract_output(self, accumulator: tuple[Counter, Counter, GroupSums]) -> dict[Any, PairedSums]:
        outcomes, differences, groups = accumulator
        differences = differences + count_changes(groups.list_sums())
        return {self._key: PairedLabels(LABEL_SCORES[self._metric], outcomes, differences)}


_COMBINERS: dict[str, type[_PairedCombiner]] = {
    "accuracy": _CountCombiner,
    **dict.fromkeys(("mean_absolute_error", "mean_squared_error", "r_squared"), _ErrorCombiner),
    **dict.fromkeys(LABEL_SCORES, _LabelCombiner),
}
"""By metric, for those with a test in ``imagepipe.base.metrics``."""

for metric in (McNemar, PairedTest, MarginTest):
    metric_types.register_metric(metric)
