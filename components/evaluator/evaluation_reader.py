"""Reads the artifact ``evaluation`` that the Evaluator wrote."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.slicer import slicer_lib

from components.evaluator.evaluation import (
    CANDIDATE,
    CHAMPION,
    CalibrationBucket,
    Curves,
    Evaluation,
    McNemarResult,
    MetricValue,
    MetricValues,
    Slice,
)
from components.evaluator.gate_rules import SliceKey, read_outcomes
from components.evaluator.intervals import compute_interval
from components.evaluator.metric_names import (
    CONFIDENCE,
    CONFUSION_MATRIX,
    EXAMPLE_COUNT,
    GROUP_COUNT,
    LABEL_DETAILS,
    MCNEMAR,
    ONLY_CANDIDATE,
    ONLY_CHAMPION,
    UNGROUPED_COUNT,
    parse_paired_test,
)
from imagepipe.base import filesystem
from imagepipe.base.filesystem import link_plainly
from imagepipe.base.metrics import METRICS_BY_NAME

SAVED_MODEL = "saved_model"
"""Folder in an evaluation, of the same version's SavedModel where another form serves."""

CHAMPION_NOTE = "champion_note.txt"
"""File in an evaluation: why the champion was not judged by its form for OpenVINO."""


def read_evaluation(folder: str) -> Evaluation:
    """Reads the artifact in ``folder``; among its rules are those that the version's SavedModel fails."""
    with link_plainly(folder) as files:
        evaluation = _read_files(str(files))
    if not filesystem.exists(f"{folder}/{SAVED_MODEL}"):
        return evaluation
    failed = [rule for rule in read_evaluation(f"{folder}/{SAVED_MODEL}").rules if rule.verdict == "refused"]
    rules = [replace(rule, because=f"as TensorFlow serves it: {rule.because}") for rule in failed]
    return replace(evaluation, rules=[*evaluation.rules, *rules])


def _read_files(folder: str) -> Evaluation:
    slices, note = {}, f"{folder}/{CHAMPION_NOTE}"
    details: dict[str, Any] = {}
    for message in tfma.load_metrics(folder):
        key = slicer_lib.deserialize_slice_key(message.slice_key)
        slices[key] = _read_slice(key, message.metric_keys_and_values)
        if not key:
            details = {
                kv.key.name: kv.value
                for kv in message.metric_keys_and_values
                if kv.key.model_name in ("", CANDIDATE) and not kv.key.is_diff
            }
    curves, confidence = _read_plots(folder)
    return Evaluation(
        slices=[slices[key] for key in sorted(slices, key=lambda key: (len(key), [(c, str(v)) for c, v in key]))],
        by_label=json.loads(details[LABEL_DETAILS].bytes_value) if LABEL_DETAILS in details else {},
        confusion=_read_confusion(details),
        curves=curves,
        confidence=confidence,
        rules=list(read_outcomes(folder, slices)),
        champion_note=filesystem.read_text(note) if filesystem.exists(note) else "",
    )


def _read_slice(key: SliceKey, values: Any) -> Slice:
    by_model: dict[tuple[str, bool], MetricValues] = {}
    for kv in values:
        if kv.value.WhichOneof("type") == "double_value":
            # Without a champion, TFMA gives the only model no name.
            model = (kv.key.model_name or CANDIDATE, kv.key.is_diff)
            by_model.setdefault(model, {})[kv.key.name] = _read_value(kv)
    metrics, champion_metrics = by_model[CANDIDATE, False], by_model.get((CHAMPION, False))
    differences = by_model.get((CANDIDATE, True), {})
    # Paired tests compare two models, but have no value for one of them.
    tests = {name: differences.pop(name).value for name in list(differences) if name not in metrics}
    p_values = {metric: p for name, p in tests.items() if (metric := parse_paired_test(name)) is not None}
    mcnemar = None
    if MCNEMAR in tests:
        only_candidate, only_champion, p = (tests[name] or 0.0 for name in (ONLY_CANDIDATE, ONLY_CHAMPION, MCNEMAR))
        mcnemar = McNemarResult(int(only_candidate), int(only_champion), p)
        p_values["accuracy"] = p
    return Slice(
        columns={c: v.decode(errors="replace") if isinstance(v, bytes) else str(v) for c, v in key},
        count=int(metrics[EXAMPLE_COUNT].value or 0),
        metrics=_drop_counts(metrics),
        champion_metrics=_drop_counts(champion_metrics) if champion_metrics else None,
        differences=_drop_counts(differences),
        mcnemar=mcnemar,
        p_values=p_values,
        groups=_read_count(metrics, GROUP_COUNT),
        ungrouped=_read_count(metrics, UNGROUPED_COUNT),
    )


def _read_count(metrics: Mapping[str, MetricValue], name: str) -> int:
    """Returns a number of groups; 0 in results of versions that did not count them."""
    return int(metrics[name].value or 0) if name in metrics else 0


def _read_value(kv: Any) -> MetricValue:
    value, stored = kv.value.double_value.value, kv.confidence_interval
    interval = None
    if kv.HasField("confidence_interval"):
        error, degrees = stored.standard_error.double_value.value, stored.degrees_of_freedom.value
        interval = compute_interval(value, error, degrees, *_get_range(kv.key.name, kv.key.is_diff))
    return MetricValue(value if math.isfinite(value) else None, interval)


def _get_range(name: str, is_difference: bool) -> tuple[float, float]:
    """Returns the minimum and maximum of a metric, or of the difference of two of its values."""
    if name not in METRICS_BY_NAME:
        return -math.inf, math.inf
    lowest, highest = METRICS_BY_NAME[name].lowest, METRICS_BY_NAME[name].highest
    return (lowest - highest, highest - lowest) if is_difference else (lowest, highest)


def _drop_counts(metrics: MetricValues) -> MetricValues:
    counts = (EXAMPLE_COUNT, GROUP_COUNT, UNGROUPED_COUNT)
    return {name: value for name, value in sorted(metrics.items()) if name not in counts}


def _read_confusion(details: Mapping[str, Any]) -> dict[tuple[int, int], int]:
    if CONFUSION_MATRIX not in details:
        return {}
    (matrix,) = details[CONFUSION_MATRIX].multi_class_confusion_matrix_at_thresholds.matrices
    return {(e.actual_class_id, e.predicted_class_id): int(e.num_weighted_examples) for e in matrix.entries}


def _read_plots(folder: str) -> tuple[dict[str, dict[int, Curves]], dict[str, list[CalibrationBucket]]]:
    """Reads curves by model and class, and the calibration of the most probable class by model; of the whole split."""
    curves: dict[str, dict[int, Curves]] = {}
    confidence = {}
    for message in tfma.load_plots(folder):
        for kv in () if message.slice_key.single_slice_keys else message.plot_keys_and_values:
            model = kv.key.model_name or CANDIDATE
            calibration = [
                CalibrationBucket(
                    low=bucket.lower_threshold_inclusive,
                    high=bucket.upper_threshold_exclusive,
                    count=int(bucket.num_weighted_examples.value),
                    mean_score=bucket.total_weighted_refined_prediction.value / bucket.num_weighted_examples.value,
                    share_right=bucket.total_weighted_label.value / bucket.num_weighted_examples.value,
                )
                for bucket in kv.value.calibration_histogram_buckets.buckets
                if bucket.num_weighted_examples.value
            ]
            if kv.key.name == CONFIDENCE:
                confidence[model] = calibration
            else:
                matrices = kv.value.confusion_matrix_at_thresholds.matrices
                curves.setdefault(model, {})[kv.key.sub_key.class_id.value] = _compute_curves(matrices, calibration)
    return curves, confidence


def _compute_curves(matrices: Any, calibration: list[CalibrationBucket]) -> Curves:
    precision, recall, f1 = (np.array([getattr(m, name) for m in matrices]) for name in ("precision", "recall", "f1"))
    false_positive_rate = np.array([m.false_positive_rate for m in matrices])
    # ROC runs from (0, 0), every answer no, to (1, 1), every answer yes; thresholds ascend, so the other way.
    roc_x = np.concatenate([[0], false_positive_rate[::-1], [1]])
    roc_y = np.concatenate([[0], recall[::-1], [1]])
    return Curves(
        thresholds=[m.threshold for m in matrices],
        precision=precision.tolist(),
        recall=recall.tolist(),
        false_positive_rate=false_positive_rate.tolist(),
        f1=f1.tolist(),
        auc=float(np.trapezoid(roc_y, roc_x)),
        average_precision=float((np.diff(recall[::-1], prepend=0) * precision[::-1]).sum()),
        best_threshold=matrices[int(f1.argmax())].threshold,
        calibration=calibration,
    )
