"""What the Evaluator found, as the properties of which Kubeflow's page makes a table, a confusion matrix and ROC."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from kfp import dsl

from components.evaluator.results import CANDIDATE, COUNT, Curves, Evaluation, Figures

MOST_CLASSES = 40
"""In a confusion matrix, so that its cells can be read, and ML Metadata takes it: a record of 4 MB at most."""

OTHERS, UNKNOWN = "(others)", "(unknown)"


def figures(found: Evaluation, blessed: bool) -> dict[str, float]:
    """The figures of all eval images, by name.

    Args:
        found: what the Evaluator found.
        blessed: what it decided.

    Returns:
        ``blessed`` (1 or 0), ``example_count``, the candidate's metrics, and those of the champion, if there is one, as
        ``champion_<metric>``. One that is not a number is left out: there is none in JSON.
    """
    whole = found.whole
    champion = {f"champion_{name}": figure for name, figure in (whole.champion or {}).items()}
    return {"blessed": float(blessed), COUNT: float(whole.count), **_numbers(whole.metrics), **_numbers(champion)}


def _numbers(named: Figures) -> dict[str, float]:
    return {name: figure.value for name, figure in named.items() if figure.value is not None}


def classification(found: Evaluation, names: list[str]) -> dict[str, Any]:
    """The candidate's confusion matrix and ROC curve on all eval images, as kfp's ``ClassificationMetrics`` has them.

    Above ``MOST_CLASSES``, the matrix has those that are most often mistaken, and all others as one, whose diagonal
    holds their mistakes among each other as well.

    Of two classes the ROC curve is that of the second. Of more, and of several labels, it is the mean of each against
    the rest, at each threshold (Fawcett, T. (2006): An introduction to ROC analysis. Pattern Recognition Letters 27,
    section 9.2), so that a point still belongs to a threshold. There is none where the Evaluator made no curves: of
    more than ``components.evaluator.tfma_curves.MOST_CLASSES``.

    Args:
        found: what the Evaluator found.
        names: of the model's outputs.

    Returns:
        ``confusionMatrix`` of a classification, a row an actual class; ``confidenceMetrics``, the curve from its
        highest threshold on, and ``roc_of``, what it is of, in words. Empty for a regression.
    """
    made = dsl.ClassificationMetrics()
    if found.confusion:
        made.log_confusion_matrix(*_matrix(found.confusion, names))
    if curves := found.curves.get(CANDIDATE):
        two_classes = bool(found.confusion) and len(names) == 2
        made.log_roc_curve(*_roc([curves[1]] if two_classes else list(curves.values())))
        made.metadata["roc_of"] = names[1] if two_classes else f"mean of {len(curves)}, each against the rest"
    return made.metadata


def _matrix(confusion: Mapping[tuple[int, int], int], names: list[str]) -> tuple[list[str], list[list[int]]]:
    """Categories, and counts by actual and predicted category."""
    unknown = len(names)
    counts = np.zeros((unknown + 1, unknown + 1), int)
    for (actual, predicted), count in confusion.items():
        counts[actual, predicted] = count  # actual -1, a label that the model doesn't know, is the last row
    groups = [(name, [place]) for place, name in enumerate(names)]
    if len(names) > MOST_CLASSES:
        mistakes = (counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal())[:unknown]
        shown = sorted(np.argsort(-mistakes, kind="stable")[: MOST_CLASSES - 1].tolist())
        groups = [groups[place] for place in shown] + [(OTHERS, sorted(set(range(unknown)) - set(shown)))]
    if counts[unknown].any():
        groups.append((UNKNOWN, [unknown]))  # never predicted, but the matrix has to be square
    folded = [[int(counts[np.ix_(rows, columns)].sum()) for _, columns in groups] for _, rows in groups]
    return [name for name, _ in groups], folded


def _roc(curves: list[Curves]) -> tuple[list[float], list[float], list[float]]:
    """False positive rates, true positive rates and thresholds of the curves' mean, from nothing said to all said."""
    inner = [place for place, threshold in enumerate(curves[0].thresholds) if 0 < threshold < 1][::-1]
    wrong = np.mean([each.false_positive_rate for each in curves], axis=0)[inner]
    right = np.mean([each.recall for each in curves], axis=0)[inner]
    thresholds = np.array(curves[0].thresholds)[inner]
    return [0.0, *wrong.tolist(), 1.0], [0.0, *right.tolist(), 1.0], [1.0, *thresholds.tolist(), 0.0]
