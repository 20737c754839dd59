"""How often a form of a network gives the network's answer, and what images can show of it.

The interval is the exact one: Clopper, C. J., Pearson, E. S. (1934): The use of confidence or fiducial limits
illustrated in the case of the binomial. Biometrika 26 (4). What stands against its assumptions makes images count as
fewer: Korn, E. L., Graubard, B. I. (1998): Confidence intervals for proportions with small expected number of positive
counts estimated from survey data. Survey Methodology 24 (2), 193-201.

- *Images that the network was trained on* are more numerous, but it is surer of them than of others, so that they
  change less (measured: 0.4 % of those, 3.3 % of others). An answer changes where the network is unsure; so images are
  weighted by how sure it is of them, as often as it is so of images set aside. That is sampling in two phases: Cochran,
  W. G. (1977): Sampling techniques, 3rd edition, section 12.2. Where it is hardly ever as unsure of images that it was
  trained on, those show little.
- *Images of a group* (a patient, a burst) change their answers together. Their design effect is estimated with one more
  group, of average size and all of it differing: else images that all agree would pass for independent ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from imagepipe.base.names import TaskName

LEVEL = 0.95
"""Of all intervals by which forms are judged."""

_NOISE_SHARE = 0.1
_STRATUM_IMAGES = 5  # set aside, at least
_TINY = 1e-12


class Parts(NamedTuple):
    """One array ``[n, ...]`` for each kind of images.

    Attributes:
        sample: for images that the network was trained on.
        held_out: for those that are set aside for validation.
    """

    sample: np.ndarray
    held_out: np.ndarray


def measure_certainty(task: TaskName, thresholds: Sequence[float], classes: np.ndarray) -> np.ndarray:
    """Returns how far the network is from another answer, in logits, float ``[n]``; of a regression 0.

    Args:
        task: gives the meaning of the outputs.
        thresholds: decision threshold per label of a multilabel task.
        classes: the network's answers, float32 ``[n, k]``.
    """
    if task == "regression" or (classes.shape[1] < 2 and task == "classification"):
        return np.zeros(len(classes))
    shares = np.clip(classes.astype(float), _TINY, 1 - _TINY)
    if task == "multilabel":
        limits = np.clip(np.asarray(thresholds, float), _TINY, 1 - _TINY)
        return np.abs(np.log(shares / (1 - shares)) - np.log(limits / (1 - limits))).min(axis=1)
    ordered = np.sort(shares, axis=1)
    return np.log(ordered[:, -1] / ordered[:, -2])


def compare_answers(
    task: TaskName, thresholds: Sequence[float], network: np.ndarray, form: np.ndarray, noise: float
) -> np.ndarray:
    """Returns about which images both answer alike, bool ``[n]``; of a regression within a tenth of ``noise``."""
    if task == "regression":
        return np.abs(network - form)[:, 0] <= _NOISE_SHARE * noise
    if task == "multilabel":
        return np.all((network >= thresholds) == (form >= thresholds), axis=1)
    return np.argmax(network, axis=1) == np.argmax(form, axis=1)


def measure_agreement(same: Parts, certainty: Parts, groups: Parts, bound: float) -> dict[str, Any]:
    """Measures the share of new images that get the network's answer.

    Args:
        same: about which images both answer alike, bool.
        certainty: see ``measure_certainty``.
        groups: numbers of the images' groups, int.
        bound: the share to be shown.

    Returns:
        ``low`` and ``high``, the ends of its interval; ``best``, the lower end if all agreed; ``needed``, about how
        many images would show enough with such a share, None if none would; by part, ``trained`` and ``held_out``,
        ``same`` of so many ``images``; of ``held_out`` its own ``high`` too.
    """
    result = _describe(np.concatenate(same), np.concatenate(groups), _divide(certainty), bound)
    alone = _Strata(np.zeros(len(same.held_out), int), np.ones(1), len(same.held_out))
    high = _describe(same.held_out, groups.held_out, alone, bound)["high"]
    trained, held_out = ({"same": int(part.sum()), "images": len(part)} for part in same)
    return result | {"trained": trained, "held_out": held_out | {"high": high}}


def show_at_best(certainty: Parts, groups: Parts) -> float:
    """Returns the share of new images that could be shown to agree, if all images did."""
    weights = _weigh(_divide(certainty))
    return _compute_exact_interval(*[count_independent(np.concatenate(groups), weights)] * 2)[0]


def explain_agreement(agreement: Mapping[str, Any], bound: float) -> str:
    """Returns why an agreement isn't enough."""
    if agreement["held_out"]["high"] < bound:
        return (
            f"{count_same(agreement)}: of images set aside at most {agreement['held_out']['high']:.2%} do, below "
            f"serving.min_agreement, {bound:.4g}"
        )
    text = f"{count_same(agreement)}: the interval, from {agreement['low']:.2%} to {agreement['high']:.2%}, "
    if agreement["high"] < bound:
        return f"{text}lies below serving.min_agreement, {bound:.4g}"
    needed = agreement["needed"]
    return f"{text}begins below serving.min_agreement, {bound:.4g}" + (
        f"; with such a share about {needed:,} images would show enough" if needed else ""
    )


def count_same(agreement: Mapping[str, Any]) -> str:
    """Returns how many images agree, as text."""
    trained, held_out = (
        f"{part['same']} of {part['images']}" for part in (agreement["trained"], agreement["held_out"])
    )
    return f"{trained} images that it was trained on and {held_out} set aside get the same answer"


def count_independent(groups: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Returns as how many independent images some count if the answers in each group change together.

    Kish, L. (1965): Survey sampling, section 8.2.

    Args:
        groups: number of each image's group, int ``[n]``, n at least 1.
        weights: of the images, float ``[n]``; by default all count the same.
    """
    sizes = np.bincount(np.unique(groups, return_inverse=True)[1], weights)
    return float(sizes.sum() ** 2 / np.square(sizes).sum())


class _Strata(NamedTuple):
    """Images divided by how sure the network is of them.

    Attributes:
        numbers: each image's stratum, int ``[n]``, images of both parts.
        shares: each stratum's share of the images set aside, float ``[s]``.
        held_out: number of these.
    """

    numbers: np.ndarray
    shares: np.ndarray
    held_out: int


def _divide(certainty: Parts) -> _Strata:
    """Halves the images set aside by how sure the network is of them, then the less sure half, and so on."""
    images, held_out = np.concatenate(certainty), len(certainty.held_out)
    halvings = int(np.log2(max(held_out / _STRATUM_IMAGES, 1)))
    edges = np.unique(np.quantile(certainty.held_out, 0.5 ** np.arange(1, halvings + 1))) if halvings else np.zeros(0)
    numbers = np.searchsorted(edges, images, side="right")
    shares = np.bincount(numbers[len(certainty.sample) :], minlength=len(edges) + 1) / held_out
    return _Strata(numbers, shares, held_out)


def _weigh(strata: _Strata) -> np.ndarray:
    """Returns the images' weights, of mean 1, which give each stratum its share."""
    counts = np.bincount(strata.numbers, minlength=len(strata.shares))
    return (strata.shares / np.maximum(counts, 1))[strata.numbers] * len(strata.numbers)


def _describe(same: np.ndarray, groups: np.ndarray, strata: _Strata, bound: float) -> dict[str, Any]:
    images, weights = len(same), _weigh(strata)
    independent = count_independent(groups, weights)
    size, rate = images / independent, float(np.mean(weights * ~same))
    totals = np.bincount(strata.numbers, weights, len(strata.shares))
    rates = (np.bincount(strata.numbers, weights * ~same, len(totals)) / np.maximum(totals, _TINY))[strata.numbers]
    deviations = weights * (~same - rates)
    # By the images set aside the strata's shares are known.
    deviations[images - strata.held_out :] += images / strata.held_out * (rates - rate)[images - strata.held_out :]
    variation = np.square(np.bincount(np.unique(groups, return_inverse=True)[1], deviations)).sum()
    further = (size * (1 - rate)) ** 2, size * (1 - rate) ** 2  # of the group that is added: to each of both sums
    expected = images * rate * (1 - rate) + further[1]
    effect = max((variation + further[0]) / expected, 1.0) if expected else size
    low, high = _compute_exact_interval(images * (1 - rate) / effect, images / effect)
    needed = _count_needed(rate, bound)
    return {
        "low": low,
        "high": high,
        "best": _compute_exact_interval(independent, independent)[0],
        "needed": needed and math.ceil(needed * effect),
    }


def _count_needed(rate: float, bound: float) -> int | None:
    """Returns with how many images, of which ``rate`` disagree, the interval would begin at the bound or above."""
    images = np.unique(np.geomspace(10, 1e7, 2000).astype(int))
    differing = np.ceil(rate * images)
    low = stats.beta.ppf((1 - LEVEL) / 2, np.maximum(images - differing, 0.5), differing + 1)
    enough = images[low >= bound]
    return int(enough[0]) if len(enough) else None


def _compute_exact_interval(count: float, images: float) -> tuple[float, float]:
    """Returns the ends of Clopper's and Pearson's interval, whose numbers need not be whole."""
    tail, others = (1 - LEVEL) / 2, images - count
    low = stats.beta.ppf(tail, count, others + 1) if count > _TINY else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, others) if others > _TINY * images else 1.0
    return float(low), float(high)
