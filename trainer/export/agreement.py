"""How often a form of a network gives the network's answer, and what images can show of it.

The interval is the exact one: Clopper, C. J., Pearson, E. S. (1934): The use of confidence or fiducial limits
illustrated in the case of the binomial. Biometrika 26 (4). What stands against its assumptions makes images count as
fewer: Korn, E. L., Graubard, B. I. (1998): Confidence intervals for proportions with small expected number of positive
counts estimated from survey data. Survey Methodology 24 (2), 193-201.

- *Images that the network was trained on* are more numerous, but it may be surer of them than of others, so that they
  change less (measured: 0.4 % of those, 3.3 % of others). If fewer images that are set aside agree than chance gives,
  by Fisher's exact test (Fisher, R. A. (1935): The design of experiments, section 11), those alone count; else all do.
  If few are set aside, the test sees large differences only; docs/training.md has figures.
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


class Parts(NamedTuple):
    """One array ``[n, ...]`` for each kind of images.

    Attributes:
        sample: for images that the network was trained on.
        held_out: for those that are set aside for validation.
    """

    sample: np.ndarray
    held_out: np.ndarray


def find_same_answers(
    task: TaskName,
    thresholds: Sequence[float],
    noise: float,
    network: np.ndarray,
    form: np.ndarray,
    unknown: np.ndarray,
    form_unknown: np.ndarray,
) -> np.ndarray:
    """Returns about which images both answer alike, bool ``[n]``; see ``acceptance.judge_form`` for the arguments."""
    if task == "regression":
        same = np.abs(network - form)[:, 0] <= _NOISE_SHARE * noise
    elif task == "multilabel":
        same = np.all((network >= thresholds) == (form >= thresholds), axis=1)
    else:
        same = np.argmax(network, axis=1) == np.argmax(form, axis=1)
    return np.where(unknown | form_unknown, unknown & form_unknown, same)


def measure_agreement(same: Parts, groups: Parts, bound: float) -> dict[str, Any]:
    """Measures the share of new images that get the network's answer.

    Args:
        same: about which images both answer alike, bool; at least one image is held out.
        groups: numbers of the images' groups, int.
        bound: the share to be shown.

    Returns:
        ``low`` and ``high``, the ends of its interval; ``best``, the lower end if all agreed; ``needed``, about how
        many images would show enough with such a share, None if none would; ``is_alone``, whether it is measured by the
        images set aside alone; by part, ``trained`` and ``held_out``, ``same`` of so many ``images``; of ``held_out``
        its own ``high`` too.
    """
    together = _describe(np.concatenate(same), np.concatenate(groups), bound)
    alone = _describe(same.held_out, groups.held_out, bound)
    is_alone = _change_more(same, together["effect"])
    trained, held_out = ({"same": int(part.sum()), "images": len(part)} for part in same)
    return (alone if is_alone else together) | {
        "is_alone": is_alone,
        "trained": trained,
        "held_out": held_out | {"high": alone["high"]},
    }


def _change_more(same: Parts, effect: float) -> bool:
    """Returns whether fewer of the images set aside agree than of the others, by more than chance gives.

    Args:
        same: see ``measure_agreement``.
        effect: the number of images that count as one, see ``_describe``.
    """
    table = [[round(np.sum(~part) / effect), round(np.sum(part) / effect)] for part in (same.held_out, same.sample)]
    return bool(stats.fisher_exact(table, alternative="greater").pvalue < 1 - LEVEL)


def show_at_best(groups: Parts) -> float:
    """Returns the share of new images that could be shown to agree, if all images did."""
    return _show_all(count_independent(np.concatenate(groups)))


def explain_agreement(agreement: Mapping[str, Any], bound: float) -> str:
    """Returns why an agreement isn't enough."""
    if agreement["held_out"]["high"] < bound:
        return (
            f"{count_same(agreement)}: of images set aside at most {agreement['held_out']['high']:.2%} do, below "
            f"serving.min_agreement, {bound:.4g}"
        )
    text = f"{count_same(agreement)}: the interval, from {agreement['low']:.2%} to {agreement['high']:.2%}"
    text += ", by those set aside alone, of which fewer do than chance gives, " if agreement["is_alone"] else ", "
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


def count_independent(groups: np.ndarray) -> float:
    """Returns as how many independent images those of some groups count if the answers in each change together.

    Kish, L. (1965): Survey sampling, section 8.2.

    Args:
        groups: number of each image's group, int ``[n]``, n at least 1.
    """
    sizes = np.unique(groups, return_counts=True)[1]
    return float(len(groups) ** 2 / np.square(sizes).sum())


def _describe(same: np.ndarray, groups: np.ndarray, bound: float) -> dict[str, Any]:
    """Returns what some images show, and as ``effect`` how many of them count as one."""
    count, images = int(same.sum()), len(same)
    independent = count_independent(groups)
    size, rate = images / independent, 1 - count / images
    deviations = np.bincount(np.unique(groups, return_inverse=True)[1], ~same - rate)
    further = (size * (1 - rate)) ** 2, size * (1 - rate) ** 2  # of the group that is added: to each of both sums
    expected = images * rate * (1 - rate) + further[1]
    effect = max((np.square(deviations).sum() + further[0]) / expected, 1.0) if expected else size
    low, high = _compute_exact_interval(count / effect, images / effect)
    needed = _count_needed(rate, bound)
    return {
        "low": low,
        "high": high,
        "best": _show_all(independent),
        "needed": needed and math.ceil(needed * effect),
        "effect": effect,
    }


def _show_all(independent: float) -> float:
    return _compute_exact_interval(independent, independent)[0]


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
    low = stats.beta.ppf(tail, count, others + 1) if count > 0 else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, others) if others > 0 else 1.0
    return float(low), float(high)
