"""What came out of the nodes, for the summary and the pictures of a run."""

import json
from typing import Any

import numpy as np
from tfx.utils import io_utils

from components.evaluator.evaluation_reader import load
from components.evaluator.evaluation import COUNT, Evaluation, Figures, Slice
from pipeline.runs.summary import Metrics

__all__ = ["best_hyperparameters", "by_class", "champion_metrics", "draw_confusion_matrix", "load", "metrics"]


def metrics(part: Slice) -> Metrics:
    """The candidate's figures of some images, and how many these are."""
    return _metrics(part.metrics, part)


def champion_metrics(part: Slice) -> Metrics | None:
    """The champion's figures of some images; None if there is none."""
    return None if part.champion is None else _metrics(part.champion, part)


def _metrics(figures: Figures, part: Slice) -> Metrics:
    return dict(sorted({COUNT: float(part.count), **{name: each.value for name, each in figures.items()}}.items()))


def by_class(evaluation: Evaluation, label: str) -> dict[str, Metrics]:
    """The candidate's figures by class or label; empty for a regression.

    Args:
        evaluation: what the Evaluator found.
        label: the feature that has the labels.
    """
    return evaluation.by_label or {
        part.columns[label]: metrics(part) for part in evaluation.slices if list(part.columns) == [label]
    }


def best_hyperparameters(folder: str) -> dict[str, Any]:
    """The best values that the Tuner found, by key of the section ``trainer``, from its artifact in ``folder``."""
    return json.loads(io_utils.read_string_file(io_utils.get_only_uri_in_dir(folder)))["values"]


def draw_confusion_matrix(confusion: dict[tuple[int, int], int], labels: list[str], path: str) -> None:
    """Draws the confusion matrix as PNG: a row an actual class, a column a predicted one, shaded by its share."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [*labels, *(["(unknown)"] if any(actual < 0 for actual, _ in confusion) else [])]
    counts = np.zeros((len(rows), len(labels)))
    for (actual, predicted), number in confusion.items():
        counts[actual, predicted] = number
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
