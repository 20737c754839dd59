"""Metrics for the run pages of Kubeflow and Vertex AI: properties of kfp's Metrics and ClassificationMetrics artifacts.

The pages make a table, a confusion matrix and an ROC curve of them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from kfp import dsl

from components.evaluator.evaluation import CANDIDATE, Curves, Evaluation, MetricValues
from components.evaluator.metric_names import EXAMPLE_COUNT

MAX_CLASSES = 40
"""Maximum in a confusion matrix, so that its cells are legible, and ML Metadata takes it: a record of 4 MB at most."""

OTHERS, UNKNOWN = "(others)", "(unknown)"


def collect_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Returns the metrics of all eval images by name, for kfp's ``Metrics``.

    Args:
        evaluation: the Evaluator's results.

    Returns:
        ``blessed`` (1 or 0), ``example_count``, the candidate's metrics, and those of the champion, if there is one, as
        ``champion_<metric>``. Values that are not a number are left out: JSON has none.
    """
    whole = evaluation.whole
    champion = {f"champion_{name}": metric for name, metric in (whole.champion_metrics or {}).items()}
    return {
        "blessed": float(not evaluation.refusals),
        EXAMPLE_COUNT: float(whole.count),
        **_drop_missing(whole.metrics),
        **_drop_missing(champion),
    }


def _drop_missing(metrics: MetricValues) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items() if metric.value is not None}


def collect_classification_metrics(evaluation: Evaluation, names: list[str]) -> dict[str, Any]:
    """Returns the candidate's confusion matrix and ROC curve on all eval images, for kfp's ``ClassificationMetrics``.

    Above ``MAX_CLASSES``, the matrix has the classes that are most often confused, and all others as one, whose
    diagonal holds their mistakes among each other as well.

    For two classes the ROC curve is that of the second. For more, and for several labels, it is the mean of each
    against the rest, at each threshold (Fawcett, T. (2006): An introduction to ROC analysis. Pattern Recognition
    Letters 27, section 9.2), so that a point still belongs to a threshold. There is none if the Evaluator computed no
    curves: for more than ``components.evaluator.tfma_curves.MAX_CLASSES``.

    Args:
        evaluation: the Evaluator's results.
        names: names of the model's outputs.

    Returns:
        ``confusionMatrix`` of a classification, one row per actual class; ``confidenceMetrics``, the curve from its
        highest threshold on, and ``roc_of``, the class or classes of the curve as text. Empty for a regression.
    """
    kfp_metrics = dsl.ClassificationMetrics()
    if evaluation.confusion:
        kfp_metrics.log_confusion_matrix(*_build_matrix(evaluation.confusion, names))
    if curves := evaluation.curves.get(CANDIDATE):
        two_classes = bool(evaluation.confusion) and len(names) == 2 and 1 in curves  # there is none without images
        kfp_metrics.log_roc_curve(*_average_roc([curves[1]] if two_classes else list(curves.values())))
        kfp_metrics.metadata["roc_of"] = names[1] if two_classes else f"mean of {len(curves)}, each against the rest"
    return kfp_metrics.metadata


def _build_matrix(confusion: Mapping[tuple[int, int], int], names: list[str]) -> tuple[list[str], list[list[int]]]:
    """Returns categories, and counts by actual and predicted category."""
    unknown = len(names)
    counts = np.zeros((unknown + 1, unknown + 1), int)
    for (actual, predicted), count in confusion.items():
        counts[actual, predicted] = count  # actual -1, a label that the model doesn't know, is the last row
    groups = [(name, [index]) for index, name in enumerate(names)]
    if len(names) > MAX_CLASSES:
        mistakes = (counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal())[:unknown]
        shown = sorted(np.argsort(-mistakes, kind="stable")[: MAX_CLASSES - 1].tolist())
        groups = [groups[index] for index in shown] + [(OTHERS, sorted(set(range(unknown)) - set(shown)))]
    if counts[unknown].any():
        groups.append((UNKNOWN, [unknown]))  # never predicted, but the matrix has to be square
    folded = [[int(counts[np.ix_(rows, columns)].sum()) for _, columns in groups] for _, rows in groups]
    return [name for name, _ in groups], folded


def _average_roc(curves: list[Curves]) -> tuple[list[float], list[float], list[float]]:
    """Returns false positive rates, true positive rates and thresholds of the curves' mean, from (0, 0) to (1, 1)."""
    inner = [index for index, threshold in enumerate(curves[0].thresholds) if 0 < threshold < 1][::-1]
    wrong = np.mean([curve.false_positive_rate for curve in curves], axis=0)[inner]
    right = np.mean([curve.recall for curve in curves], axis=0)[inner]
    thresholds = np.array(curves[0].thresholds)[inner]
    return [0.0, *wrong.tolist(), 1.0], [0.0, *right.tolist(), 1.0], [1.0, *thresholds.tolist(), 0.0]
