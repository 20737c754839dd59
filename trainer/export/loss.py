"""By how much a form of a network is worse than the network in the task's main metric, on the same images.

The metric is the one in which a candidate may not fall behind the champion, see ``METRICS``.

- *Accuracy*, of single images: Newcombe, R. G. (1998): Improved confidence intervals for the difference between
  binomial proportions based on paired data. Statistics in Medicine 17, 2635-2650, method 10.
- *Mean absolute error*, and accuracy where there are groups: Student's t of the differences, summed by group (Kish's
  effective number of groups less one are its degrees of freedom).
- *Macro F1*, which is no mean over images: a bootstrap over groups, in which both are measured on the same draws:
  Efron, B., Tibshirani, R. J. (1993): An introduction to the bootstrap, chapter 13. A single image of a rare label
  moves it by much, and is not drawn in a third of the rounds, so that it takes four such images to show a loss.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

from imagepipe.base.names import TaskName
from trainer.export.agreement import LEVEL, count_independent

# Written down again, as imagepipe.base.metrics names the modules of the Evaluator, on which no training depends.
METRICS: dict[TaskName, str] = {
    "classification": "accuracy",
    "multilabel": "macro_f1",
    "regression": "mean_absolute_error",
}
"""The main metric by task."""

_ROUNDS, _NUMBERS = 400, 2**22  # of a bootstrap; numbers in memory at a time


def measure_loss(
    task: TaskName,
    thresholds: Sequence[float],
    network: np.ndarray,
    form: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
) -> dict[str, Any]:
    """Measures the loss, as a difference of the metric; of a regression, as a share of its mean absolute error.

    Args:
        task: gives the meaning of the outputs.
        thresholds: decision threshold per label of a multilabel task.
        network: the network's answers, float32 ``[n, k]``.
        form: the form's.
        targets: float32 ``[n, k]``.
        groups: numbers of the images' groups, int ``[n]``, more than two.

    Returns:
        ``metric``, its name; number of ``images``; ``value``, the loss, and ``low`` and ``high``, its interval.
    """
    if task == "multilabel":
        value, low, high = _compare_macro_f1(network >= thresholds, form >= thresholds, targets > 0, groups)
    elif task == "regression":
        errors = [np.abs(classes - targets)[:, 0] for classes in (network, form)]
        unit = float(np.mean(errors[0])) or 1.0
        value, low, high = (end / unit for end in _compute_mean_interval(errors[1] - errors[0], groups))
    else:
        right = [np.argmax(classes, axis=1) == np.argmax(targets, axis=1) for classes in (network, form)]
        if len(np.unique(groups)) == len(groups):
            value, low, high = compute_paired_interval(*right)
        else:
            value, low, high = _compute_mean_interval(right[0].astype(float) - right[1], groups)
    return {"metric": METRICS[task], "images": len(targets), "value": value, "low": low, "high": high}


def compute_paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Returns the difference of two shares, first minus second, and the ends of its interval; see the module.

    Args:
        first: whether each image has the property by the first, bool ``[n]``.
        second: the same, by the second.
    """
    n = len(first)
    both, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second, neither = int((~first & second).sum()), int((~first & ~second).sum())
    shares = (both + only_first) / n, (both + only_second) / n
    ends = [stats.binomtest(round(share * n), n).proportion_ci(LEVEL, "wilson") for share in shares]
    down, up = ([abs(share - end[side]) for share, end in zip(shares, ends, strict=True)] for side in (0, 1))
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    covariance = both * neither - only_first * only_second
    corrected = max(covariance - n / 2, 0) if covariance > 0 else covariance
    phi = corrected / math.sqrt(product) if product else 0.0
    difference = shares[0] - shares[1]
    below = math.sqrt(max(down[0] ** 2 - 2 * phi * down[0] * up[1] + up[1] ** 2, 0))
    above = math.sqrt(max(up[0] ** 2 - 2 * phi * up[0] * down[1] + down[1] ** 2, 0))
    return difference, difference - below, difference + above


def draw_weights(groups: np.ndarray, size: int = 1) -> Iterator[np.ndarray]:
    """Yields how often each image is drawn, with its group, in rounds of a bootstrap, float ``[rounds, images]``.

    Args:
        groups: numbers of the images' groups, int ``[n]``.
        size: numbers that a caller makes of each weight, by which memory is bounded.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    generator, chunk = np.random.default_rng(0), max(1, _NUMBERS // (size * len(groups)))
    for start in range(0, _ROUNDS, chunk):
        rounds = min(chunk, _ROUNDS - start)
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), rounds)
        yield drawn[:, numbers].astype(float)


def _compare_macro_f1(
    network: np.ndarray, form: np.ndarray, actual: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float]:
    """Returns the loss and the ends of its interval, of labels bool ``[n, k]``."""

    def measure(weights: np.ndarray) -> np.ndarray:
        one, other = (_compute_macro_f1(labels, actual, weights) for labels in (network, form))
        return one - other

    losses = np.concatenate([measure(weights) for weights in draw_weights(groups)])
    low, high = np.quantile(losses, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(measure(np.ones((1, len(actual))))[0]), float(low), float(high)


def _compute_macro_f1(labels: np.ndarray, actual: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean of F1 over those labels that occur or are predicted, by round of a bootstrap; 0 if none is."""
    right, predicted, occurring = (weights @ part.astype(float) for part in (labels & actual, labels, actual))
    numbers = predicted + occurring
    scores = np.divide(2 * right, numbers, out=np.zeros_like(right), where=numbers > 0)
    return scores.sum(axis=1) / np.maximum((numbers > 0).sum(axis=1), 1)


def _compute_mean_interval(differences: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    mean = float(np.mean(differences))
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], differences - mean)
    degrees = count_independent(groups) * (1 - 1 / len(sums))
    error = math.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(differences)
    half = error * float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    return mean, mean - half, mean + half
