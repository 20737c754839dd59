"""The number of groups of images as a TFMA metric. TFMA finds it by class name and module."""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types

from components.evaluator.groups import MAX_GROUPS, RECORD_HASH, extract_group
from components.evaluator.metric_names import GROUP_COUNT, UNGROUPED_COUNT


class GroupCount(tfma.metrics.Metric):
    """The metrics ``GROUP_COUNT`` and ``UNGROUPED_COUNT``.

    Args:
        group_feature: the feature of an Example with its group, if it has one; see ``components.evaluator.groups``.
        name: of the first of them.
    """

    def __init__(self, group_feature: str, name: str = GROUP_COUNT):
        super().__init__(_build_group_count, name=name, group_feature=group_feature)


def _build_group_count(name: str, group_feature: str) -> list[Any]:
    counts_key = metric_types.MetricKey(name="_groups")
    keys = [metric_types.MetricKey(name=name), metric_types.MetricKey(name=UNGROUPED_COUNT)]

    def result(metrics: dict[Any, Any]) -> dict[Any, float]:
        return dict(zip(keys, map(float, metrics[counts_key]), strict=True))

    counts = metric_types.MetricComputation(
        keys=[counts_key],
        preprocessors=[
            metric_types.FeaturePreprocessor(feature_keys=[group_feature, RECORD_HASH])
        ],  # or TFMA drops them
        combiner=_GroupCounter(counts_key, group_feature),
    )
    # Computed after the confidence intervals: a count has none.
    return [counts, metric_types.CIDerivedMetricComputation(keys=keys, result=result)]


class _GroupCounter(beam.CombineFn):
    """Accumulates groups, ``MAX_GROUPS`` + 1 at most, and the number of images without one."""

    def __init__(self, key: Any, group_feature: str):
        self._key = key
        self._group_feature = group_feature

    def create_accumulator(self) -> tuple[frozenset[int], int]:
        return frozenset(), 0

    def add_input(self, accumulator: tuple[frozenset[int], int], element: Any) -> tuple[frozenset[int], int]:
        groups, ungrouped = accumulator
        group = extract_group(element, self._group_feature)
        if group is None:
            return groups, ungrouped + 1
        return (groups if group in groups or len(groups) > MAX_GROUPS else groups | {group}), ungrouped

    def merge_accumulators(self, accumulators: Iterable[tuple[frozenset[int], int]]) -> tuple[frozenset[int], int]:
        groups, ungrouped = zip(*accumulators, strict=True)
        return frozenset(sorted(frozenset().union(*groups))[: MAX_GROUPS + 1]), sum(ungrouped)

    def extract_output(self, accumulator: tuple[frozenset[int], int]) -> dict[Any, tuple[int, int]]:
        groups, ungrouped = accumulator
        return {self._key: (len(groups), ungrouped)}


metric_types.register_metric(GroupCount)
