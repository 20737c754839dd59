"""Whether a faster form of a network may answer in its place, judged by what it does to the answers.

Three comparisons of the form with the network in float32:

- *Agreement*, for which no labels are needed: images about which both give the same label, be it '' as the image is too
  novel; with several labels the same set of them; of a regression values that differ by at most a tenth of the
  network's own root mean squared error, which makes that grow by 0.5 % (the square root of 1 + 0.1²). See
  ``trainer.export.agreement``.
- *Loss* of the task's main metric, on images that the network was not trained on, paired: ``trainer.export.loss``. That
  a loss up to a margin is no reason to refuse is the idea of non-inferiority: Wellek, S. (2010): Testing statistical
  hypotheses of equivalence and noninferiority, chapter 5.
- *Calibration error*, on the same images: the largest difference between the cumulated probabilities and the cumulated
  right answers, for which no bins are to be chosen: Gupta, K. et al. (2021): Calibration of neural networks using
  splines. ICLR, section 3. One image that changes its label moves it by 0.02 if there are 50, so a rise counts if the
  interval by a bootstrap over groups lies above 0: Efron, B., Tibshirani, R. J. (1993): An introduction to the
  bootstrap, chapter 13.

Few images show little: they can't prove that a form agrees, and can't show that it does harm. A form that nobody asked
for has to be proven; one that was asked for is refused if harm is shown. Of fewer than ``_MIN_GROUPS`` groups neither
interval means anything: it may have no width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagepipe.base.names import TaskName
from trainer.export.agreement import (
    LEVEL,
    Parts,
    count_independent,
    count_same,
    explain_agreement,
    find_same_answers,
    measure_agreement,
)
from trainer.export.loss import draw_weights, measure_loss

_MAX_CALIBRATION_RISE = 0.01
_MIN_GROUPS = 5  # or single images, set aside: the fewest that a loss is measured by
_ROUNDING = 1e-3  # of a probability, or of a target's standard deviation: the order of computation depends on the batch
_ROUNDING_STEPS = 4  # of float32 at the answer, where the values of a regression are large


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
            measured None. ``few_groups``: as how many the groups set aside count, if they are too few for the last two.
    """

    refusals: list[str]
    facts: dict[str, Any]


def judge_form(
    task: TaskName,
    thresholds: Sequence[float],
    network: Parts,
    form: Parts,
    *,
    unknown: tuple[Parts, Parts],
    groups: Parts,
    targets: np.ndarray | None,
    noise: float,
    bounds: Bounds,
    must_prove: bool,
) -> Judgement:
    """Judges a form by its answers and the network's to the same images.

    Args:
        task: gives the meaning of the outputs.
        thresholds: decision threshold per label of a multilabel task.
        network: the network's answers, its outputs ``classes`` in float32; at least one image is held out.
        form: the form's.
        unknown: which images get no label as they are too novel, bool ``[n]``, by the network and by the form.
        groups: of each image the number of its group, int; of one without, a number of its own.
        targets: of the held-out images, float32 ``[n, k]``; None if they are not to be looked at.
        noise: of a regression, the network's root mean squared error.
        bounds: what is allowed.
        must_prove: whether the form is refused, too, if the images are too few to show that it agrees.
    """
    unit = 1.0
    if task == "regression":
        unit = float(np.std(network.held_out if targets is None else targets, dtype=np.float64)) or 1.0
    difference = max(_measure_difference(a, b) / unit for a, b in zip(network, form, strict=True))
    facts: dict[str, Any] = {"max_difference": difference}
    facts |= dict.fromkeys(("agreement", "loss", "calibration_error", "few_groups"))
    refusals = []
    if not math.isfinite(difference):
        return Judgement(["it gives answers that are not numbers"], facts)
    if bounds.max_difference is not None and difference > bounds.max_difference:
        refusals.append(
            f"an answer differs by {difference:.3g}, and serving.max_difference is {bounds.max_difference:g}"
        )
    if all(_is_rounding(a, b, unit) for a, b in zip(network, form, strict=True)) and all(
        map(np.array_equal, *unknown)
    ):  # nothing is to be proven
        return Judgement(refusals, facts)

    compared = zip(network, form, *unknown, strict=True)
    same = Parts(*(find_same_answers(task, thresholds, noise, *answers) for answers in compared))
    facts["agreement"] = agreement = measure_agreement(same, groups, bounds.min_agreement)
    is_harmful = min(agreement["high"], agreement["held_out"]["high"]) < bounds.min_agreement
    if is_harmful or (must_prove and agreement["low"] < bounds.min_agreement):
        refusals.append(explain_agreement(agreement, bounds.min_agreement))
    if targets is None:
        return Judgement(refusals, facts)
    if (independent := count_independent(groups.held_out)) < _MIN_GROUPS:
        facts["few_groups"] = independent
        return Judgement(refusals, facts)
    answers = network.held_out, form.held_out, targets, groups.held_out
    facts["loss"] = loss = measure_loss(task, thresholds, *answers)
    if loss["low"] > bounds.max_loss:
        refusals.append(
            f"it loses {100 * loss['value']:.2f} points of {loss['metric']} on {loss['images']} images, at least "
            f"{100 * loss['low']:.2f}, and serving.max_loss is {100 * bounds.max_loss:g}"
        )
    if task != "regression":
        own, changed, is_chance = compare_calibration(task, *answers)
        facts["calibration_error"] = {"network": own, "form": changed}
        if not is_chance:
            refusals.append(f"its probabilities are off by {changed:.3f}, the network's by {own:.3f}")
    return Judgement(refusals, facts)


def describe(facts: Mapping[str, Any]) -> str:
    """Returns what was measured as text, with what so many images show if all agree."""
    parts = [f"answers differ by at most {facts['max_difference']:.2g}"]
    if agreement := facts["agreement"]:
        parts.append(f"{count_same(agreement)}, {_describe_interval(agreement)}")
    if loss := facts["loss"]:
        parts.append(
            f"{loss['metric']} falls by {100 * loss['value']:.2f} points on {loss['images']} images (from "
            f"{100 * loss['low']:.2f} to {100 * loss['high']:.2f})"
        )
    if error := facts["calibration_error"]:
        parts.append(f"the calibration error goes from {error['network']:.3f} to {error['form']:.3f}")
    if facts["few_groups"]:
        parts.append(f"the images set aside count as {facts['few_groups']:.1f} groups, too few to measure a loss by")
    return "; ".join(parts)


def _describe_interval(agreement: Mapping[str, Any]) -> str:
    low, best = agreement["low"], agreement["best"]
    if agreement["is_alone"]:
        return (
            f"which shows that {low:.2%} of new images do, with 95 % confidence (those set aside, which change more, "
            f"show {best:.2%} if all do)"
        )
    return f"which shows that {low:.2%} of images like all of these do, with 95 % confidence ({best:.2%} if all do)"


def _measure_difference(network: np.ndarray, form: np.ndarray) -> float:
    return float(np.nan_to_num(np.abs(network - form), nan=np.inf).max(initial=0.0))


def _is_rounding(network: np.ndarray, form: np.ndarray, unit: float) -> bool:
    """Returns whether no answer differs by more than rounding: each is judged by its own size."""
    steps = np.spacing(np.abs(network).astype(np.float32))
    return bool(np.all(np.abs(network - form) <= np.maximum(_ROUNDING * unit, _ROUNDING_STEPS * steps)))


def compare_calibration(
    task: TaskName, network: np.ndarray, form: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[float, float, bool]:
    """Returns both calibration errors, see the module, and whether the form's can be higher by chance.

    Probabilities are those of the best class, or of each label. Chance is asked about a rise alone that would matter:
    with a thousand labels it takes minutes.
    """
    images, outputs = targets.shape
    errors = [_make_calibration_error(task, classes, targets) for classes in (network, form)]
    own, changed = (float(measure(np.ones((1, images)))[0]) for measure in errors)
    if changed - own <= _MAX_CALIBRATION_RISE:
        return own, changed, True
    size = 1 if task == "classification" else outputs  # probabilities of an image
    rises = [errors[1](weights) - errors[0](weights) for weights in draw_weights(groups, size)]
    return own, changed, float(np.quantile(np.concatenate(rises), (1 - LEVEL) / 2)) <= 0


def _make_calibration_error(
    task: TaskName, classes: np.ndarray, targets: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from weights of images, ``[rounds, n]``, to errors, ``[rounds]``."""
    images = np.arange(len(targets))
    if task == "classification":
        best = np.argmax(classes, axis=1)
        probabilities, right = np.max(classes, axis=1), targets[images, best]
    else:
        probabilities, right = classes.ravel(), targets.ravel()
        images = np.repeat(images, classes.shape[1])
    order = np.argsort(probabilities, kind="stable")
    images, excesses = images[order], (probabilities - right)[order].astype(np.float64)

    def measure(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, images]
        return np.abs(np.cumsum(drawn * excesses, axis=1)).max(axis=1) / drawn.sum(axis=1)

    return measure
