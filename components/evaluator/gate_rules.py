"""Rules of the gate: what each demanded, and its outcome, with the reason as text."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow_model_analysis as tfma
from google.protobuf import json_format
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.slicer import slicer_lib

from components.evaluator.evaluation import MetricValue, RuleKind, RuleOutcome, Slice, Verdict
from components.evaluator.metric_names import TOP_K, parse_margin_test
from imagepipe.base import filesystem
from imagepipe.base.metrics import METRICS_BY_NAME

DEMANDED = "demanded.json"
"""File beside the evaluation: TFMA's configuration as it was given. TFMA's own copy lacks rules that had no champion to
compare with."""

SliceKey = tuple[tuple[str, Any], ...]
"""Columns and values of a slice, as TFMA has them."""


def read_outcomes(folder: str, slices: Mapping[SliceKey, Slice]) -> Iterator[RuleOutcome]:
    """Yields the outcome of each threshold that was demanded, by TFMA's list of failures.

    Args:
        folder: the artifact that the Evaluator wrote.
        slices: all slices of the evaluation.
    """
    validation = tfma.load_validation_result(folder)
    failures = [
        (slicer_lib.deserialize_slice_key(per_slice.slice_key), failure)
        for per_slice in (validation.metric_validations_per_slice if validation else ())
        for failure in per_slice.failures
    ]
    has_champion, measured = slices[()].champion_metrics is not None, slices[()].metrics
    for metric in _read_demanded_metrics(folder):
        options = json.loads(metric.config or "{}")
        name = options.get("name", "")
        for per_slice in metric.per_slice_thresholds:
            for spec in per_slice.slicing_specs:
                slice_key = next((key for key in slices if _is_about(spec, key)), None)
                for field in ("value_threshold", "change_threshold"):
                    if not per_slice.threshold.HasField(field):
                        continue
                    threshold = getattr(per_slice.threshold, field)
                    part = None if slice_key is None else slices[slice_key]
                    has_failed = part is None or any(
                        key == slice_key
                        and failure.metric_key.name == name
                        and getattr(failure.metric_threshold, field) == threshold
                        for key, failure in failures
                    )
                    is_change, is_constant = field == "change_threshold", TOP_K in options and name not in measured
                    verdict: Verdict = "refused" if has_failed else "passed"
                    if is_constant or (is_change and not has_champion):
                        verdict = "skipped"
                    elif is_change and part and part.differences.get(name, MetricValue(None)).value == 0:
                        # TFMA divides by the champion's error, and fails if both models have none.
                        verdict = "passed"
                    demand = _parse_threshold(name, threshold)
                    yield _judge(demand, dict(spec.feature_values), part, verdict, is_constant)


def _is_about(spec: config_pb2.SlicingSpec, key: SliceKey) -> bool:
    """Returns whether a rule is about a slice: numbers compare as TFMA compares them, texts exactly.

    To TFMA, texts that are numbers are numbers: class 7 is class 007, and camera 1.0 is camera 1.00.
    """
    is_applicable = slicer_lib.SingleSliceSpec(spec=spec).is_slice_applicable(key)
    return is_applicable and all(spec.feature_values[c] == value for c, value in key if isinstance(value, str))


def _read_demanded_metrics(folder: str) -> list[config_pb2.MetricConfig]:
    demanded = filesystem.read_text(f"{folder}/{DEMANDED}")
    config = json_format.Parse(demanded, config_pb2.EvalConfig(), ignore_unknown_fields=True)
    return [metric for specs in config.metrics_specs for metric in specs.metrics]


@dataclass(frozen=True)
class _Demand:
    """The demand of a threshold of TFMA; see ``RuleOutcome``."""

    metric: str
    kind: RuleKind
    bound: float
    lower_is_better: bool = False
    relative: bool = False
    significance: float | None = None


def _parse_threshold(name: str, threshold: Any) -> _Demand:
    if isinstance(threshold, config_pb2.GenericValueThreshold):
        if threshold.HasField("upper_bound"):
            return _Demand(name, "max", threshold.upper_bound.value)
        return _Demand(name, "min", threshold.lower_bound.value)
    if margin_test := parse_margin_test(name):
        metric, margin = margin_test
        properties = METRICS_BY_NAME[metric]
        significance = threshold.absolute.value
        return _Demand(
            metric, "not_worse_than_champion", margin, properties.lower_is_better, properties.relative, significance
        )
    relative = threshold.HasField("relative")
    margin = abs(threshold.relative.value if relative else threshold.absolute.value)
    lower_is_better = threshold.direction == config_pb2.MetricDirection.LOWER_IS_BETTER
    return _Demand(name, "not_worse_than_champion", margin, lower_is_better, relative)


def _judge(
    demand: _Demand, columns: dict[str, str], part: Slice | None, verdict: Verdict, is_constant: bool
) -> RuleOutcome:
    missing = MetricValue(None)
    value, champion, difference = (
        (values or {}).get(demand.metric, missing)
        for values in ((part.metrics, part.champion_metrics, part.differences) if part else ({}, {}, {}))
    )
    p = part.p_values.get(demand.metric) if part and demand.significance is not None else None
    subject = demand.metric + "".join(f" of {column} {value}" for column, value in sorted(columns.items()))
    if is_constant:
        because = f"{subject} would always be 1: there are no more classes than evaluation.top_k"
    elif verdict == "skipped":
        because = f"{subject}: there is no champion to compare with"
    elif part is None:
        because = f"{subject} is not known: the eval split has no such image"
    else:
        shown = "not a number" if value.value is None else f"{value.value:.4f}"
        chance = None if p is None else f"p is {p:.2g}{part.counted and f' over {part.counted}'}"
        because = f"{subject} is {shown}, {_explain(demand, champion.value, difference.value, chance, verdict)}"
    return RuleOutcome(
        metric=demand.metric,
        slice=columns,
        kind=demand.kind,
        bound=demand.bound,
        relative=demand.relative,
        significance=demand.significance,
        value=value.value,
        interval=value.interval,
        champion=champion.value,
        difference=difference.value,
        difference_interval=difference.interval,
        p=p,
        verdict=verdict,
        because=because,
    )


def _explain(
    demand: _Demand, champion: float | None, difference: float | None, chance: str | None, verdict: Verdict
) -> str:
    """Compares a value with what is demanded of it, as text; ``chance`` is the result of a paired test."""
    if demand.kind != "not_worse_than_champion":
        side = "below" if demand.kind == "min" else "above"
        return f"{'' if verdict == 'refused' else 'not '}{side} the threshold of {demand.bound:g}"
    margin = f"{100 * demand.bound:g}%" if demand.relative else f"{demand.bound:g}"
    side = "above" if demand.lower_is_better else "below"
    comparison = f"than {margin} {side} the champion's {champion or 0:.4f}"
    if verdict == "refused":
        return f"more {comparison}" + (f", and not by chance: {chance}" if chance else "")
    behind = (difference or 0) if demand.lower_is_better else -(difference or 0)
    if chance and behind > demand.bound * ((champion or 0) if demand.relative else 1):
        return f"more {comparison}, which may be chance: {chance}, not below {demand.significance:g}"
    return f"not more {comparison}"
