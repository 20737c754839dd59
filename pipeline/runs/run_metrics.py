"""Metrics, best hyperparameters and the confusion matrix of a run, for its summary and its pictures."""

import json
from typing import Any

import numpy as np
from tfx.utils import io_utils

from components.evaluator.evaluation import Evaluation, MetricValues, Slice
from components.evaluator.metric_names import EXAMPLE_COUNT
from imagepipe.base import filesystem
from pipeline.runs.summary import Metrics

_MAX_COUNTED, _MAX_NAMED = 30, 150  # classes whose counts, or names, are legible
_MAX_CELLS = 1000  # rows or columns of a picture; a class is then two or three pixels wide


def collect_candidate_metrics(part: Slice) -> Metrics:
    """Returns the candidate's metrics on some images, and the number of images."""
    return _collect_metrics(part.metrics, part)


def collect_champion_metrics(part: Slice) -> Metrics | None:
    """Returns the champion's metrics on some images; None if there is no champion."""
    return None if part.champion_metrics is None else _collect_metrics(part.champion_metrics, part)


def _collect_metrics(values: MetricValues, part: Slice) -> Metrics:
    by_name = {name: metric.value for name, metric in values.items()}
    return dict(sorted({EXAMPLE_COUNT: float(part.count), **by_name}.items()))


def collect_metrics_by_class(evaluation: Evaluation, label: str) -> dict[str, Metrics]:
    """Returns the candidate's metrics by class or label; empty for a regression.

    Args:
        evaluation: the Evaluator's result.
        label: name of the feature with the labels.
    """
    return evaluation.by_label or {
        part.columns[label]: collect_candidate_metrics(part)
        for part in evaluation.slices
        if list(part.columns) == [label]
    }


def read_best_hyperparameters(folder: str) -> dict[str, Any]:
    """Reads the Tuner's best values, by key of the section ``trainer``, from its artifact in ``folder``."""
    return json.loads(filesystem.read_text(io_utils.get_only_uri_in_dir(folder)))["values"]


def draw_confusion_matrix(confusion: dict[tuple[int, int], int], labels: list[str], path: str) -> None:
    """Draws the confusion matrix as PNG: one row per actual class, one column per predicted one, shaded by share.

    Of many classes, neighbours share a row and a column, and the axes have numbers in place of names.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [*labels, *(["(unknown)"] if any(actual < 0 for actual, _ in confusion) else [])]
    width = -(-len(rows) // _MAX_CELLS)  # classes per row
    counts = np.zeros((-(-len(rows) // width), -(-len(labels) // width)))
    for (actual, predicted), number in confusion.items():
        counts[actual % len(rows) // width, predicted // width] += number
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    side = min(4 + 0.4 * len(labels), 24)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    bottom, right = (size * width - 0.5 for size in counts.shape)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, extent=(-0.5, right, bottom, -0.5))
    if len(labels) <= _MAX_NAMED:
        # Between two $, matplotlib reads a formula.
        axes.set_xticks(range(len(labels)), labels, rotation=90, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    if len(labels) <= _MAX_COUNTED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:g}", ha="center", va="center", color=color)
    figure.savefig(path, dpi=120)
    plt.close(figure)
