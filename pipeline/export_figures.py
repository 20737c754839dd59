"""How an exported network's answers compare with the model's, on images of the eval split."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from imagepipe.base.metrics import CHAMPION_METRIC

Answers = Mapping[str, np.ndarray]
Batches = Iterator[tuple[np.ndarray, Answers, np.ndarray]]
"""Of some images each: pixels, uint8 ``[n, height, width, 3]``; the model's answers; and targets, a class's index int64
``[n]``, labels ``[n, k]`` of 0 and 1, or a number, float32 ``[n]`` or ``[n, 1]``, NaN where it is missing."""


def compare_answers(
    ask: Callable[[np.ndarray], Answers], batches: Batches, task: str, thresholds: list[float], limit: float | None
) -> dict[str, Any]:
    """Returns figures on an export's answers and the model's.

    Args:
        ask: the export, from pixels to answers.
        batches: at least one.
        task: classification, multilabel or regression; gives the meaning of the answers.
        thresholds: of the decision on each label of several; unused in other tasks.
        limit: the novelty from which on an image is unknown; None if there is no such limit.
    """
    rows = [(ask(pixels), expected, targets) for pixels, expected, targets in batches]
    answers, own = ({name: np.concatenate([row[i][name] for row in rows]) for name in rows[0][i]} for i in (0, 1))
    targets = np.concatenate([row[2] for row in rows])
    figures = {"images": len(targets), **_measure_difference(answers["classes"], own["classes"])}
    if task == "classification":
        figures |= _count_same("same_label", answers["classes"].argmax(1) == own["classes"].argmax(1))
    elif task == "multilabel":
        labels, own_labels = (classes >= thresholds for classes in (answers["classes"], own["classes"]))
        figures |= _count_same("same_labels", (labels == own_labels).all(axis=1))
    for end, classes in (("", answers["classes"]), ("_of_the_model", own["classes"])):
        figures[f"{CHAMPION_METRIC[task]}{end}"] = _measure(task, classes, targets, thresholds)
    if "novelty" in answers and "novelty" in own:
        figures["novelty"] = _measure_difference(answers["novelty"], own["novelty"])
        if limit is not None:
            same = int(((answers["novelty"] >= limit) == (own["novelty"] >= limit)).sum())
            figures["novelty"]["same_unknown"] = same
    return figures


def describe_figures(figures: Mapping[str, Any]) -> str:
    """Returns figures of ``compare_answers`` for people."""
    text = (
        f"On {figures['images']:,} images of the eval split its answers differ from the model's by up to "
        f"{figures['largest_difference']:.2g}, on average by {figures['mean_difference']:.2g}."
    )
    for key, what in (("same_label", "its label"), ("same_labels", "the same labels")):
        if key in figures:
            low, high = figures[f"{key}_interval"]
            text += f" {figures[key]:,} have {what} (95 % interval of the share: {low:.3f} to {high:.3f})."
    for metric in (metric for metric in CHAMPION_METRIC.values() if figures.get(metric) is not None):
        name = metric.replace("_", " ").capitalize().replace("f1", "F1")
        text += f" {name} {figures[metric]:.4g}, the model's {figures[f'{metric}_of_the_model']:.4g}."
    if novelty := figures.get("novelty"):
        text += (
            f" Its novelty differs by up to {novelty['largest_difference']:.2g}, on average by "
            f"{novelty['mean_difference']:.2g}."
        )
        if "same_unknown" in novelty:
            text += f" {novelty['same_unknown']:,} are unknown, or not, as by the model."
    return text


def _measure_difference(actual: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    difference = np.abs(actual - expected)
    return {"largest_difference": float(difference.max()), "mean_difference": float(difference.mean())}


def _count_same(key: str, are_same: np.ndarray) -> dict[str, Any]:
    from scipy import stats

    same = int(are_same.sum())
    # The exact interval: Clopper, C. J., Pearson, E. S. (1934), Biometrika 26 (4), 404-413.
    interval = stats.binomtest(same, len(are_same)).proportion_ci(0.95, "exact")
    return {key: same, f"{key}_interval": [float(interval.low), float(interval.high)]}


def _measure(task: str, classes: np.ndarray, targets: np.ndarray, thresholds: list[float]) -> float | None:
    """Returns the task's main metric of answers float32 ``[n, k]``; None where no image has a target or a label."""
    if task == "classification":
        return float((classes.argmax(1) == targets).mean())
    if task == "multilabel":
        from sklearn.metrics import f1_score

        labels = classes >= thresholds  # a label that neither occurs nor is predicted doesn't count
        score = float(f1_score(targets > 0, labels, average="macro", zero_division=np.nan))
        return None if np.isnan(score) else score  # JSON knows no NaN
    errors = np.abs(classes.reshape(-1) - targets.reshape(-1))
    is_known = np.isfinite(errors)
    return float(errors[is_known].mean()) if is_known.any() else None
