"""Reads the Evaluator's output: metrics, confusion matrix, and the reasons for a refusal in words."""

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

import tfx.components  # noqa: F401  first: it stands in for a module that TFDV and TFMA miss in tfx-bsl's wheel

# isort: split
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import config_pb2
from tfx.utils import io_utils

from pipeline.evaluation import CANDIDATE, CHAMPION, CONFUSION_MATRIX, LABEL_DETAILS
from pipeline.summary import Metrics


@dataclass(frozen=True)
class Evaluation:
    """What the Evaluator found.

    Attributes:
        metrics: of the candidate, on the whole eval split.
        champion_metrics: of the champion, None if there was none.
        metrics_by_class: of the candidate, by class or label; empty for a regression.
        confusion: of a classification, counts by (actual class, predicted class); actual -1 is a label unknown to the
            model. Empty for other tasks.
    """

    metrics: Metrics
    champion_metrics: Metrics | None
    metrics_by_class: dict[str, Metrics]
    confusion: dict[tuple[int, int], float]


def load(folder: str) -> Evaluation:
    """Reads what the Evaluator wrote to its artifact ``evaluation`` in ``folder``."""
    names = [spec.name for spec in tfma.load_eval_result(folder).config.model_specs]
    slices = _slices(folder, CANDIDATE if len(names) > 1 else names[0])
    champion = _slices(folder, CHAMPION) if len(names) > 1 else {}
    return Evaluation(
        metrics=_numbers(slices[()]),
        champion_metrics=_numbers(champion[()]) if champion else None,
        metrics_by_class=_by_label(slices[()])
        or {str(key[0][1]): _numbers(slices[key]) for key in sorted(slices) if key},
        confusion=_confusion(slices[()]),
    )


def _slices(folder: str, model_name: str) -> dict[Any, dict[str, Any]]:
    """Metrics by slice key, from TFMA's nesting by output name and sub key."""
    result = tfma.load_eval_result(folder, model_name=model_name)
    return {key: values[""][""] for key, values in result.slicing_metrics}


def _numbers(values: dict[str, Any]) -> Metrics:
    # Where there is a champion, TFMA adds the difference from it to each metric.
    numbers = {
        name: value["doubleValue"]
        for name, value in values.items()
        if "doubleValue" in value and not name.endswith("_diff")
    }
    return {name: None if math.isnan(number) else number for name, number in sorted(numbers.items())}


def _by_label(values: dict[str, Any]) -> dict[str, Metrics]:
    if LABEL_DETAILS not in values:
        return {}
    return json.loads(base64.b64decode(values[LABEL_DETAILS]["bytesValue"]))


def _confusion(values: dict[str, Any]) -> dict[tuple[int, int], float]:
    if CONFUSION_MATRIX not in values:
        return {}
    (matrix,) = values[CONFUSION_MATRIX]["multiClassConfusionMatrixAtThresholds"]["matrices"]
    return {
        (entry.get("actualClassId", 0), entry.get("predictedClassId", 0)): entry["numWeightedExamples"]
        for entry in matrix["entries"]
    }


def best_hyperparameters(folder: str) -> dict[str, Any]:
    """The best values that the Tuner found, by key of the section ``trainer``, from its artifact in ``folder``."""
    return json.loads(io_utils.read_string_file(io_utils.get_only_uri_in_dir(folder)))["values"]


def reasons(folder: str, evaluation: Evaluation) -> list[str]:
    """Why the gate refused a model, in words.

    Args:
        folder: that of the Evaluator's artifact ``evaluation``.
        evaluation: what was loaded from it.
    """
    return [
        _describe(failure, evaluation)
        for validations in tfma.load_validation_result(folder).metric_validations_per_slice
        for failure in validations.failures
    ]


def _describe(failure: Any, evaluation: Evaluation) -> str:
    name = failure.metric_key.name
    value = evaluation.metrics[name]
    shown = f"{name} is " + ("not a number" if value is None else f"{value:.4f}")
    if failure.metric_key.is_diff:
        change = failure.metric_threshold.change_threshold
        relative = change.HasField("relative")
        margin = f"{100 * abs(change.relative.value):g}%" if relative else f"{abs(change.absolute.value):g}"
        side = "above" if change.direction == config_pb2.MetricDirection.LOWER_IS_BETTER else "below"
        champion = (evaluation.champion_metrics or {}).get(name)
        return f"{shown}, more than {margin} {side} the champion's {champion or 0:.4f}"
    threshold = failure.metric_threshold.value_threshold
    if threshold.HasField("upper_bound"):
        return f"{shown}, above the threshold of {threshold.upper_bound.value:g}"
    return f"{shown}, below the threshold of {threshold.lower_bound.value:g}"


def draw_confusion_matrix(confusion: dict[tuple[int, int], float], labels: list[str], path: str) -> None:
    """Draws the confusion matrix as PNG: a row an actual class, a column a predicted one, shaded by its share."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [*labels, *(["(unknown)"] if any(actual < 0 for actual, _ in confusion) else [])]
    counts = np.zeros((len(rows), len(labels)))
    for (actual, predicted), count in confusion.items():
        counts[actual, predicted] = count
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    side = min(4 + 0.4 * len(labels), 24)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    if len(labels) <= 30:  # more would not be legible
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:g}", ha="center", va="center", color=color)
    figure.savefig(path, dpi=120)
    plt.close(figure)
