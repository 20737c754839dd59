"""Reads what the Evaluator wrote, with what became of each rule."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tensorflow_model_analysis.slicer import slicer_lib
from tfx.dsl.io import fileio
from tfx.utils import io_utils, proto_utils

from components.evaluator.component import DEMANDED
from components.evaluator.paired_tests import MCNEMAR, ONLY_CANDIDATE, ONLY_CHAMPION, WORSE, P
from components.evaluator.results import (
    CANDIDATE,
    CHAMPION,
    COUNT,
    Bucket,
    Curves,
    Evaluation,
    Figure,
    Figures,
    Outcome,
    Paired,
    Slice,
)
from components.evaluator.tfma_curves import CONFIDENCE
from imagepipe.base.metrics import METRICS_BY_NAME

CONFUSION_MATRIX = "multi_class_confusion_matrix"
LABEL_DETAILS = "label_details"

_SliceKey = tuple[tuple[str, Any], ...]
_Kind = Literal["min", "max", "not_worse_than_champion"]
_Verdict = Literal["passed", "refused", "skipped"]


def load(folder: str) -> Evaluation:
    """Reads what the Evaluator wrote to its artifact ``evaluation`` in ``folder``."""
    found = {}
    details: dict[str, Any] = {}
    for message in tfma.load_metrics(folder):
        key = slicer_lib.deserialize_slice_key(message.slice_key)
        found[key] = _slice(key, message.metric_keys_and_values)
        if not key:
            details = {
                kv.key.name: kv.value
                for kv in message.metric_keys_and_values
                if kv.key.model_name in ("", CANDIDATE) and not kv.key.is_diff
            }
    curves, confidence = _plots(folder)
    return Evaluation(
        slices=[found[key] for key in sorted(found, key=lambda key: (len(key), [(c, str(v)) for c, v in key]))],
        by_label=json.loads(details[LABEL_DETAILS].bytes_value) if LABEL_DETAILS in details else {},
        confusion=_confusion(details),
        curves=curves,
        confidence=confidence,
        rules=list(_outcomes(folder, found)),
    )


def _slice(key: _SliceKey, values: Any) -> Slice:
    figures: dict[tuple[str, bool], Figures] = {}
    for kv in values:
        if kv.value.WhichOneof("type") == "double_value":
            # Without a champion, TFMA gives the only model no name.
            model = (kv.key.model_name or CANDIDATE, kv.key.is_diff)
            figures.setdefault(model, {})[kv.key.name] = _figure(kv)
    metrics, champion = figures[CANDIDATE, False], figures.get((CHAMPION, False))
    differences = figures.get((CANDIDATE, True), {})
    of_tests = {name: differences.pop(name).value for name in list(differences) if name not in metrics}
    paired = None
    if MCNEMAR in of_tests:
        only_candidate, only_champion, p = (of_tests[name] or 0.0 for name in (ONLY_CANDIDATE, ONLY_CHAMPION, MCNEMAR))
        paired = Paired(int(only_candidate), int(only_champion), p)
    return Slice(
        columns={column: _text(value) for column, value in key},
        count=int(metrics[COUNT].value or 0),
        metrics=_without_count(metrics),
        champion=_without_count(champion) if champion else None,
        differences=_without_count(differences),
        paired=paired,
        p_values={name.removesuffix(P): p for name, p in of_tests.items() if name.endswith(P)}
        | ({"accuracy": paired.p} if paired else {}),
    )


def _figure(kv: Any) -> Figure:
    ends = kv.confidence_interval.lower_bound.double_value.value, kv.confidence_interval.upper_bound.double_value.value
    value = kv.value.double_value.value
    known = kv.HasField("confidence_interval") and all(map(math.isfinite, ends))
    return Figure(
        value if math.isfinite(value) else None, _possible(kv.key.name, kv.key.is_diff, *ends) if known else None
    )


def _possible(name: str, is_difference: bool, low: float, high: float) -> tuple[float, float]:
    """An interval within what a metric, or the difference of two of its values, can be."""
    lowest, highest = (
        (METRICS_BY_NAME[name].lowest, METRICS_BY_NAME[name].highest)
        if name in METRICS_BY_NAME
        else (-math.inf, math.inf)
    )
    if is_difference:
        lowest, highest = lowest - highest, highest - lowest
    return min(max(low, lowest), highest), max(min(high, highest), lowest)


def _without_count(figures: Figures) -> Figures:
    return {name: figure for name, figure in sorted(figures.items()) if name != COUNT}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _confusion(details: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    if CONFUSION_MATRIX not in details:
        return {}
    (matrix,) = details[CONFUSION_MATRIX].multi_class_confusion_matrix_at_thresholds.matrices
    return {(e.actual_class_id, e.predicted_class_id): int(e.num_weighted_examples) for e in matrix.entries}


def _plots(folder: str) -> tuple[dict[str, dict[int, Curves]], dict[str, list[Bucket]]]:
    """Curves and calibration of the whole split."""
    curves: dict[str, dict[int, Curves]] = {}
    confidence = {}
    for message in tfma.load_plots(folder):
        for kv in () if message.slice_key.single_slice_keys else message.plot_keys_and_values:
            model = kv.key.model_name or CANDIDATE
            calibration = [
                Bucket(
                    low=each.lower_threshold_inclusive,
                    high=each.upper_threshold_exclusive,
                    count=int(each.num_weighted_examples.value),
                    said=each.total_weighted_refined_prediction.value / each.num_weighted_examples.value,
                    right=each.total_weighted_label.value / each.num_weighted_examples.value,
                )
                for each in kv.value.calibration_histogram_buckets.buckets
                if each.num_weighted_examples.value
            ]
            if kv.key.name == CONFIDENCE:
                confidence[model] = calibration
            else:
                matrices = kv.value.confusion_matrix_at_thresholds.matrices
                curves.setdefault(model, {})[kv.key.sub_key.class_id.value] = _curves(matrices, calibration)
    return curves, confidence


def _curves(matrices: Any, calibration: list[Bucket]) -> Curves:
    precision, recall, f1 = (np.array([getattr(m, name) for m in matrices]) for name in ("precision", "recall", "f1"))
    false_positives = np.array([m.false_positive_rate for m in matrices])
    # From (0, 0), nothing said, to (1, 1), all said; thresholds ascend, so that the curves run the other way.
    rates = np.concatenate([[0], false_positives[::-1], [1]])
    found = np.concatenate([[0], recall[::-1], [1]])
    return Curves(
        thresholds=[m.threshold for m in matrices],
        precision=precision.tolist(),
        recall=recall.tolist(),
        false_positive_rate=false_positives.tolist(),
        f1=f1.tolist(),
        auc=float(np.trapezoid(found, rates)),
        average_precision=float((np.diff(recall[::-1], prepend=0) * precision[::-1]).sum()),
        best_threshold=matrices[int(f1.argmax())].threshold,
        calibration=calibration,
    )


def _outcomes(folder: str, slices: Mapping[_SliceKey, Slice]) -> Iterator[Outcome]:
    """What became of the thresholds that were demanded, by what TFMA says of them."""
    validation = tfma.load_validation_result(folder)
    failures = [
        (slicer_lib.deserialize_slice_key(each.slice_key), failure)
        for each in (validation.metric_validations_per_slice if validation else ())
        for failure in each.failures
    ]
    has_champion = slices[()].champion is not None
    for metric in _demanded(folder):
        name = json.loads(metric.config or "{}").get("name", "")
        for per_slice in metric.per_slice_thresholds:
            for spec in per_slice.slicing_specs:
                applicable = slicer_lib.SingleSliceSpec(spec=spec).is_slice_applicable
                place = next((key for key in slices if applicable(key)), None)
                for kind in ("value_threshold", "change_threshold"):
                    if not per_slice.threshold.HasField(kind):
                        continue
                    threshold = getattr(per_slice.threshold, kind)
                    refused = place is None or any(
                        key == place
                        and failure.metric_key.name == name
                        and getattr(failure.metric_threshold, kind) == threshold
                        for key, failure in failures
                    )
                    skipped = kind == "change_threshold" and not has_champion
                    verdict: _Verdict = "skipped" if skipped else "refused" if refused else "passed"
                    found = None if place is None else slices[place]
                    yield _outcome(name, dict(spec.feature_values), threshold, found, verdict)


def _demanded(folder: str) -> list[config_pb2.MetricConfig]:
    path = f"{folder}/{DEMANDED}"
    if not fileio.exists(path):  # of an evaluation made before there was one
        return []
    config = proto_utils.json_to_proto(io_utils.read_string_file(path), config_pb2.EvalConfig())
    return [metric for specs in config.metrics_specs for metric in specs.metrics]


def _outcome(name: str, columns: dict[str, str], threshold: Any, found: Slice | None, verdict: _Verdict) -> Outcome:
    demand = _demand(name, threshold)
    none = Figure(None)
    value, champion, difference = (
        (figures or {}).get(demand.metric, none)
        for figures in ((found.metrics, found.champion, found.differences) if found else ({}, {}, {}))
    )
    p = found.p_values.get(demand.metric) if found and demand.significance is not None else None
    what = demand.metric + "".join(f" of {column} {value}" for column, value in sorted(columns.items()))
    if verdict == "skipped":
        because = f"{what}: there is no champion to compare with"
    elif found is None:
        because = f"{what} is not known: the eval split has no such image"
    else:
        shown = "not a number" if value.value is None else f"{value.value:.4f}"
        because = f"{what} is {shown}, {_comparison(demand, champion.value, difference.value, p, verdict)}"
    return Outcome(
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


@dataclass(frozen=True)
class _Demand:
    """What a threshold of TFMA's demands; see ``Outcome``."""

    metric: str
    kind: _Kind
    bound: float
    lower_is_better: bool = False
    relative: bool = False
    significance: float | None = None


def _demand(name: str, threshold: Any) -> _Demand:
    if isinstance(threshold, config_pb2.GenericValueThreshold):
        if threshold.HasField("upper_bound"):
            return _Demand(name, "max", threshold.upper_bound.value)
        return _Demand(name, "min", threshold.lower_bound.value)
    metric, is_tested, bound = name.partition(WORSE)
    if is_tested:
        measure, significance = METRICS_BY_NAME[metric], threshold.absolute.value
        of_errors = (measure.lower_is_better, measure.relative)
        return _Demand(metric, "not_worse_than_champion", float(bound), *of_errors, significance)
    relative = threshold.HasField("relative")
    margin = abs(threshold.relative.value if relative else threshold.absolute.value)
    lower_is_better = threshold.direction == config_pb2.MetricDirection.LOWER_IS_BETTER
    return _Demand(name, "not_worse_than_champion", margin, lower_is_better, relative)


def _comparison(
    demand: _Demand, champion: float | None, difference: float | None, p: float | None, verdict: _Verdict
) -> str:
    """A figure against what is demanded of it, in words."""
    if demand.kind != "not_worse_than_champion":
        side = "below" if demand.kind == "min" else "above"
        return f"{'' if verdict == 'refused' else 'not '}{side} the threshold of {demand.bound:g}"
    margin = f"{100 * demand.bound:g}%" if demand.relative else f"{demand.bound:g}"
    against = f"than {margin} {'above' if demand.lower_is_better else 'below'} the champion's {champion or 0:.4f}"
    if verdict == "refused":
        return f"more {against}" + ("" if p is None else f", and not by chance: p is {p:.2g}")
    behind = (difference or 0) if demand.lower_is_better else -(difference or 0)
    if p is not None and behind > demand.bound * ((champion or 0) if demand.relative else 1):
        return f"more {against}, which may be chance: p is {p:.2g}, not below {demand.significance:g}"
    return f"not more {against}"
