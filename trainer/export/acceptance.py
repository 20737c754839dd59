"""Whether a faster form of a network may answer in its place, judged by what it does to the answers.

Three comparisons of the form with the network in float32:

- *Agreement*, for which no labels are needed: images about which both give the same label; with several labels the
  same set of them; of a regression values that differ by at most a tenth of the network's own root mean squared error,
  which makes that grow by 0.5 % (the square root of 1 + 0.1²). The interval is the exact one: Clopper, C. J., Pearson,
  E. S. (1934): The use of confidence or fiducial limits illustrated in the case of the binomial. Biometrika 26 (4).
  Images of a group (a patient, a burst) change their answers together, so that they count as fewer: Korn, E. L.,
  Graubard, B. I. (1998): Confidence intervals for proportions with small expected number of positive counts estimated
  from survey data. Survey Methodology 24 (2), 193-201. Their design effect is estimated with one more group, of average
  size and all of it differing: else images that all agree would pass for independent ones.
- *Loss* of the task's main metric, on images that the network was not trained on, paired. Of shares of right answers:
  Newcombe, R. G. (1998): Improved confidence intervals for the difference between binomial proportions based on paired
  data. Statistics in Medicine 17, 2635-2650, method 10. Of means over images, and where there are groups: Student's t
  of the differences, summed by group (Kish's effective number of groups less one are its degrees of freedom). That a
  loss up to a margin is no reason to refuse is the idea of non-inferiority: Wellek, S. (2010): Testing statistical
  hypotheses of equivalence and noninferiority, chapter 5.
- *Calibration error*, on the same images: the largest difference between the cumulated probabilities and the cumulated
  right answers, for which no bins are to be chosen: Gupta, K. et al. (2021): Calibration of neural networks using
  splines. ICLR, section 3. One image that changes its label moves it by 0.02 if there are 50, so a rise counts if the
  interval by a bootstrap over groups lies above 0: Efron, B., Tibshirani, R. J. (1993): An introduction to the
  bootstrap, chapter 13.

Few images show little: they can't prove that a form agrees, and can't show that it does harm. A form that nobody asked
for has to be proven; one that was asked for is refused if harm is shown.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from imagepipe.base.names import TaskName

_LEVEL = 0.95
_NOISE_SHARE = 0.1
_MAX_CALIBRATION_RISE = 0.01
_ROUNDS, _NUMBERS = 400, 2**22  # of a bootstrap; numbers in memory at a time
_ROUNDING = 1e-3  # of a probability, or of a target's standard deviation: the order of computation depends on the batch


class Classes(NamedTuple):
    """The outputs ``classes`` of a form, float32 ``[n, k]`` each.

    Attributes:
        sample: for images of the train split.
        held_out: for those that are set aside for validation.
    """

    sample: np.ndarray
    held_out: np.ndarray


class Groups(NamedTuple):
    """Of each image of ``Classes`` the number of its group, int ``[n]`` each; of one without, a number of its own."""

    sample: np.ndarray
    held_out: np.ndarray


class Bounds(NamedTuple):
    """The most that a form may do to the answers; see ``trainer.config.ServingConfig``."""

    max_loss: float
    min_agreement: float
    max_difference: float | None


class Judgement(NamedTuple):
    """The result of a comparison.

    Attributes:
        refusals: why the form is refused; empty if it is accepted.
        facts: ``max_difference``, ``agreement``, ``loss`` and ``calibration_error``, see the module; of what was not
            measured None.
    """

    refusals: list[str]
    facts: dict[str, Any]


def judge_form(
    task: TaskName,
    thresholds: Sequence[float],
    network: Classes,
    form: Classes,
    groups: Groups,
    targets: np.ndarray | None,
    bounds: Bounds,
    must_prove: bool,
) -> Judgement:
    """Judges a form by its answers and the network's to the same images.

    Args:
        task: gives the meaning of the outputs.
        thresholds: decision threshold per label of a multilabel task.
        network: the network's answers, in float32.
        form: the form's.
        groups: of the images.
        targets: of the held-out images, float32 ``[n, k]``; None if they are not to be looked at.
        bounds: what is allowed.
        must_prove: whether the form is refused, too, if the images are too few to show that it agrees.
    """
    unit = 1.0
    if task == "regression":
        unit = float(np.std(network.held_out if targets is None else targets)) or 1.0
    difference = max(_measure_difference(a, b) / unit for a, b in zip(network, form, strict=True))
    facts: dict[str, Any] = {"max_difference": difference, "agreement": None, "loss": None, "calibration_error": None}
    refusals = []
    if not math.isfinite(difference):
        return Judgement(["it gives answers that are not numbers"], facts)
    if bounds.max_difference is not None and difference > bounds.max_difference:
        refusals.append(
            f"an answer differs by {difference:.3g}, and serving.max_difference is {bounds.max_difference:g}"
        )
    if difference <= _ROUNDING:  # nothing but rounding: there is nothing to prove
        return Judgement(refusals, facts)

    noise = 0.0
    if task == "regression":
        errors = network.held_out - (np.mean(network.held_out) if targets is None else targets)
        noise = float(np.sqrt(np.mean(np.square(errors))))
    same = [_find_agreeing(task, thresholds, a, b, noise) for a, b in zip(network, form, strict=True)]
    both = np.concatenate(same), np.concatenate(groups)
    facts["agreement"] = agreement = _describe_agreement(*both, bounds.min_agreement)
    is_shown = agreement["low"] >= bounds.min_agreement
    if must_prove and not is_shown:
        refusals.append(_explain_agreement(agreement, bounds.min_agreement))
    for part in (both, (same[1], groups.held_out)):
        if len(part[0]) and (harm := _describe_agreement(*part, bounds.min_agreement))["high"] < bounds.min_agreement:
            refusals.append(_explain_agreement(harm, bounds.min_agreement))
            break
    if targets is not None:
        facts["loss"] = loss = _measure_loss(
            task, thresholds, network.held_out, form.held_out, targets, groups.held_out
        )
        if loss["low"] > bounds.max_loss:
            refusals.append(
                f"it loses {100 * loss['value']:.2f} points of {loss['metric']} on {loss['images']} images, at least "
                f"{100 * loss['low']:.2f}, and serving.max_loss is {100 * bounds.max_loss:g}"
            )
    if targets is not None and task != "regression":
        own, changed, low = compare_calibration(task, network.held_out, form.held_out, targets, groups.held_out)
        facts["calibration_error"] = {"network": own, "form": changed, "low": low}
        if changed - own > _MAX_CALIBRATION_RISE and low > 0:
            refusals.append(f"its probabilities are off by {changed:.3f}, the network's by {own:.3f}")
    return Judgement(list(dict.fromkeys(refusals)), facts)


def describe(facts: Mapping[str, Any]) -> str:
    """Returns what was measured as text, with what so many images could show at all."""
    parts = [f"answers differ by at most {facts['max_difference']:.2g}"]
    if agreement := facts["agreement"]:
        parts.append(
            f"{agreement['same']} of {agreement['images']} images get the same answer, which shows that "
            f"{agreement['low']:.2%} do, with 95 % confidence (so many images can show {agreement['best']:.2%} at best)"
        )
    if loss := facts["loss"]:
        parts.append(
            f"{loss['metric']} falls by {100 * loss['value']:.2f} points on {loss['images']} images (from "
            f"{100 * loss['low']:.2f} to {100 * loss['high']:.2f})"
        )
    if error := facts["calibration_error"]:
        parts.append(f"the calibration error goes from {error['network']:.3f} to {error['form']:.3f}")
    return "; ".join(parts)


def _measure_difference(network: np.ndarray, form: np.ndarray) -> float:
    return float(np.nan_to_num(np.abs(network - form), nan=np.inf).max(initial=0.0))


# --- agreement


def count_needed(rate: float, bound: float) -> int | None:
    """Returns with how many images, of which ``rate`` disagree, the interval would begin at the bound or above."""
    images = np.unique(np.geomspace(10, 1e7, 2000).astype(int))
    differing = np.ceil(rate * images)
    low = stats.beta.ppf((1 - _LEVEL) / 2, np.maximum(images - differing, 0.5), differing + 1)
    enough = images[low >= bound]
    return int(enough[0]) if len(enough) else None


def _find_agreeing(
    task: TaskName, thresholds: Sequence[float], network: np.ndarray, form: np.ndarray, noise: float
) -> np.ndarray:
    """Returns about which images both answer alike, bool ``[n]``."""
    if task == "regression":
        return np.abs(network - form)[:, 0] <= _NOISE_SHARE * noise
    if task == "multilabel":
        return np.all((network >= thresholds) == (form >= thresholds), axis=1)
    return np.argmax(network, axis=1) == np.argmax(form, axis=1)


def count_independent(groups: np.ndarray) -> float:
    """Returns as how many independent images those of some groups count if the answers in each change together.

    Kish, L. (1965): Survey sampling, section 8.2.

    Args:
        groups: number of each image's group, int ``[n]``, n at least 1.
    """
    sizes = np.unique(groups, return_counts=True)[1]
    return float(len(groups) ** 2 / np.square(sizes).sum())


def _describe_agreement(same: np.ndarray, groups: np.ndarray, bound: float) -> dict[str, Any]:
    count, images = int(same.sum()), len(same)
    independent = count_independent(groups)
    size, rate = images / independent, 1 - count / images
    numbers = np.unique(groups, return_inverse=True)[1]
    deviations = np.bincount(numbers, ~same - rate)
    further = (size * (1 - rate)) ** 2, size * (1 - rate) ** 2  # of the group that is added: to each of both sums
    expected = images * rate * (1 - rate) + further[1]
    effect = max((np.square(deviations).sum() + further[0]) / expected, 1.0) if expected else size
    low, high = _compute_exact_interval(count / effect, images / effect)
    needed = count_needed(rate, bound)
    return {
        "same": count,
        "images": images,
        "low": low,
        "high": high,
        "best": _compute_exact_interval(independent, independent)[0],
        "needed": needed and math.ceil(needed * effect),
    }


def _compute_exact_interval(count: float, images: float) -> tuple[float, float]:
    """Returns the ends of Clopper's and Pearson's interval, whose numbers need not be whole."""
    tail, others = (1 - _LEVEL) / 2, images - count
    low = stats.beta.ppf(tail, count, others + 1) if count > 0 else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, others) if others > 0 else 1.0
    return float(low), float(high)


def _explain_agreement(agreement: Mapping[str, Any], bound: float) -> str:
    text = (
        f"{agreement['same']} of {agreement['images']} images get the network's answer: the interval, from "
        f"{agreement['low']:.2%} to {agreement['high']:.2%}, "
    )
    if agreement["high"] < bound:
        return f"{text}lies below serving.min_agreement, {bound:.4g}"
    needed = agreement["needed"]
    return f"{text}begins below serving.min_agreement, {bound:.4g}" + (
        f"; with such a share about {needed:,} images would show enough" if needed else ""
    )


# --- loss of the main metric


def _measure_loss(
    task: TaskName,
    thresholds: Sequence[float],
    network: np.ndarray,
    form: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
) -> dict[str, Any]:
    """Returns by how much the task's main metric is worse, as a share: of a regression, of its mean absolute error."""
    unit = 1.0
    if task == "classification":
        right = [np.argmax(classes, axis=1) == np.argmax(targets, axis=1) for classes in (network, form)]
        losses = right[0].astype(float) - right[1]
        metric = "accuracy"
    elif task == "multilabel":
        right = [np.mean((classes >= thresholds) == (targets > 0), axis=1) for classes in (network, form)]
        losses = right[0] - right[1]
        metric = "binary_accuracy"
    else:
        errors = [np.abs(classes - targets)[:, 0] for classes in (network, form)]
        unit = float(np.mean(errors[0])) or 1.0
        losses = errors[1] - errors[0]
        metric = "mean_absolute_error"
    if task == "classification" and len(np.unique(groups)) == len(groups):
        value, low, high = compute_paired_interval(*right)
    else:
        value, low, high = (end / unit for end in _compute_mean_interval(losses, groups))
    return {"metric": metric, "images": len(targets), "value": value, "low": low, "high": high}


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
    ends = [stats.binomtest(round(share * n), n).proportion_ci(_LEVEL, "wilson") for share in shares]
    down, up = ([abs(share - end[side]) for share, end in zip(shares, ends, strict=True)] for side in (0, 1))
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    covariance = both * neither - only_first * only_second
    corrected = max(covariance - n / 2, 0) if covariance > 0 else covariance
    phi = corrected / math.sqrt(product) if product else 0.0
    difference = shares[0] - shares[1]
    below = math.sqrt(max(down[0] ** 2 - 2 * phi * down[0] * up[1] + up[1] ** 2, 0))
    above = math.sqrt(max(up[0] ** 2 - 2 * phi * up[0] * down[1] + down[1] ** 2, 0))
    return difference, difference - below, difference + above


def _compute_mean_interval(differences: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    mean = float(np.mean(differences))
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], differences - mean)
    if len(sums) < 2:
        return mean, -math.inf, math.inf
    degrees = max(count_independent(groups) * (1 - 1 / len(sums)), 1)
    error = math.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(differences)
    half = error * float(stats.t.ppf((1 + _LEVEL) / 2, degrees))
    return mean, mean - half, mean + half


# --- calibration


def compare_calibration(
    task: TaskName, network: np.ndarray, form: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float]:
    """Returns both calibration errors, see the module, and the lower end of the interval of the form's rise.

    Probabilities are those of the best class, or of each label.
    """
    images = len(targets)
    rises = []
    for weights in _draw_weights(groups):
        errors = [_measure_calibration(task, classes, targets, weights) for classes in (network, form)]
        rises.append(errors[1] - errors[0])
    alike = np.ones((1, images))
    own, changed = (float(_measure_calibration(task, classes, targets, alike)[0]) for classes in (network, form))
    return own, changed, float(np.quantile(np.concatenate(rises), (1 - _LEVEL) / 2))


def _draw_weights(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yields how often each image is drawn, with its group, in rounds of a bootstrap, float ``[rounds, images]``."""
    names, numbers = np.unique(groups, return_inverse=True)
    generator, chunk = np.random.default_rng(0), max(1, _NUMBERS // len(groups))
    for start in range(0, _ROUNDS, chunk):
        rounds = min(chunk, _ROUNDS - start)
        drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), rounds)
        yield drawn[:, numbers].astype(float)


def _measure_calibration(task: TaskName, classes: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if task == "classification":
        best = np.argmax(classes, axis=1)
        probabilities, right = np.max(classes, axis=1), targets[np.arange(len(targets)), best]
    else:
        probabilities, right = classes.ravel(), targets.ravel()
        weights = np.repeat(weights, classes.shape[1], axis=1)
    order = np.argsort(probabilities, kind="stable")
    sums = np.cumsum(weights[:, order] * (probabilities - right)[order], axis=1)
    return np.abs(sums).max(axis=1) / weights.sum(axis=1)
