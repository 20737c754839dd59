"""TFMA's confidence intervals by a jackknife that counts groups of images, where TFMA's counts images.

TFMA's also takes 19 degrees of freedom for the few images of a small slice, and goes over all slices 21 times, where
the time of a small evaluation goes.
"""

import contextlib
import functools
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from tensorflow_model_analysis.api.types import ValueWithTDistribution
from tensorflow_model_analysis.evaluators import jackknife
from tensorflow_model_analysis.evaluators import metrics_plots_and_validations_evaluator as evaluator

from components.evaluator.groups import extract_unit
from components.evaluator.intervals import compute_standard_error, count_degrees_of_freedom
from components.evaluator.leave_one_out import Combined, LeaveOneOutFn

Metrics = dict[Any, Any]
SliceKey = tuple[Any, ...]


@contextlib.contextmanager
def count_groups(feature: str) -> Iterator[None]:
    """Makes TFMA count groups: it has no argument for it.

    Args:
        feature: the feature of an Example with its group, if it has one. The evaluation needs a metric that looks at
            it and at ``RECORD_HASH``, such as ``GroupCount``: TFMA drops other features.
    """
    original = jackknife.ComputeWithConfidenceIntervals
    jackknife.ComputeWithConfidenceIntervals = functools.partial(_compute_with_intervals, group_feature=feature)
    try:
        yield
    finally:
        jackknife.ComputeWithConfidenceIntervals = original


@beam.ptransform_fn
def _compute_with_intervals(
    slices: beam.PCollection,
    group_feature: str,
    computations_combine_fn: beam.CombineFn,
    derived_metrics_ptransform: beam.PTransform,
    num_jackknife_samples: int,
    skip_ci_metric_keys: Iterable[Any] = (),
    random_seed_for_testing: int | None = None,
) -> beam.PCollection:
    """Computes metrics with intervals; arguments and result are those of TFMA's function.

    TFMA's derived metrics are computed slice by slice, whatever the slice's key, as long as no slices are compared with
    each other: so they can be computed in one go for all that is left if a part is left out.
    """
    return (
        slices
        | "FindUnit" >> beam.Map(_find_unit, group_feature)
        | "LeaveOneOut" >> beam.CombinePerKey(LeaveOneOutFn(computations_combine_fn))
        | "List" >> beam.FlatMapTuple(_list_metrics)
        | "AddDerivedMetrics" >> derived_metrics_ptransform
        | "KeepNumbers" >> beam.MapTuple(_keep_numbers)
        | "Gather" >> beam.GroupByKey()
        | "AddIntervals" >> beam.Map(_add_intervals, frozenset(skip_ci_metric_keys or ()))
    )


def _find_unit(keyed: tuple[SliceKey, Any], feature: str) -> tuple[SliceKey, tuple[int, Any]]:
    key, extracts = keyed
    (inputs,) = extracts[evaluator._DEFAULT_COMBINER_INPUT_KEY]
    return key, (extract_unit(inputs, feature), extracts)


def _list_metrics(key: SliceKey, combined: Combined) -> Iterator[tuple[tuple[SliceKey, int], Metrics]]:
    """Yields the metrics of all images, with size 0, and those without each part, with its size."""
    yield (key, 0), combined.total
    for size, metrics in zip(combined.sizes, combined.without, strict=True):
        yield (key, size), metrics


def _keep_numbers(key: tuple[SliceKey, int], metrics: Metrics) -> tuple[SliceKey, tuple[int, Metrics]]:
    """Drops counts and plots of the images without a part: nobody looks at them."""
    slice_key, size = key
    return slice_key, (size, {name: value for name, value in metrics.items() if not size or _is_number(value)})


def _add_intervals(
    keyed: tuple[SliceKey, Iterable[tuple[int, Metrics]]], skipped: frozenset[Any]
) -> tuple[SliceKey, Metrics]:
    key, outputs = keyed[0], list(keyed[1])
    (total,) = (metrics for size, metrics in outputs if not size)
    parts = [(size, metrics) for size, metrics in outputs if size]
    metrics = dict(total)
    if parts:
        degrees = count_degrees_of_freedom([size for size, _ in parts])
        for name, value in total.items():
            if _is_number(value) and name not in skipped:
                error = compute_standard_error([without[name] for _, without in parts])
                metrics[name] = ValueWithTDistribution(value, error, degrees, value)
    return key, metrics


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number)
