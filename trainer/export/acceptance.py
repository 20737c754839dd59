"""Whether a faster form of a network may answer in its place, judged by what it does to the answers.

Three comparisons of the form with the network in float32:

- *Agreement*, for which no labels are needed: images about which both give the same label; with several labels the
  same set of them; of a regression values that differ by at most a tenth of the network's own root mean squared error,
  which makes that grow by 0.5 % (the square root of 1 + 0.1²). See ``trainer.export.agreement``.
- *Loss* of the task's main metric, on images that the network was not trained on, paired: ``trainer.export.loss``. That
  a loss up to a margin is no reason to refuse is the idea of non-inferiority: Wellek, S. (2010): Testing statistical
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
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from imagepipe.base.names import TaskName
from trainer.export.agreement import (
    LEVEL,
    Parts,
    compare_answers,
    count_same,
    explain_agreement,
    measure_agreement,
)
from trainer.export.loss import draw_weights, measure_loss

_MAX_CALIBRATION_RISE = 0.01
_ROUNDING = 1e-3  # of a probability, or of a target's standard deviation: the order of computation depends on the batch


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
    network: Parts,
    form: Parts,
    groups: Parts,
    targets: np.ndarray | None,
    bounds: Bounds,
    must_prove: bool,
) -> Judgement:
    """Judges a form by its answers and the network's to the same images.

    Args:
        task: gives the meaning of the outputs.
        thresholds: decision threshold per label of a multilabel task.
        network: the network's answers, its outputs ``classes`` in float32; at least one image is held out.
        form: the form's.
        groups: of each image the number of its group, int; of one without, a number of its own.
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
    same = Parts(*(compare_answers(task, thresholds, *pair, noise) for pair in zip(network, form, strict=True)))
    facts["agreement"] = agreement = measure_agreement(same, groups, bounds.min_agreement)
    is_harmful = min(agreement["high"], agreement["held_out"]["high"]) < bounds.min_agreement
    if is_harmful or (must_prove and agreement["low"] < bounds.min_agreement):
        refusals.append(explain_agreement(agreement, bounds.min_agreement))
    if targets is not None:
        facts["loss"] = loss = measure_loss(task, thresholds, network.held_out, form.held_out, targets, groups.held_out)
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
    return Judgement(refusals, facts)


def describe(facts: Mapping[str, Any]) -> str:
    """Returns what was measured as text, with what so many images could show at all."""
    parts = [f"answers differ by at most {facts['max_difference']:.2g}"]
    if agreement := facts["agreement"]:
        parts.append(
            f"{count_same(agreement)}, which shows that {agreement['low']:.2%} of new images do, with 95 % confidence "
            f"({'those set aside, which change more,' if agreement['is_alone'] else 'so many'} can show "
            f"{agreement['best']:.2%} at best)"
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


def compare_calibration(
    task: TaskName, network: np.ndarray, form: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float]:
    """Returns both calibration errors, see the module, and the lower end of the interval of the form's rise.

    Probabilities are those of the best class, or of each label.
    """
    images = len(targets)
    rises = []
    for weights in draw_weights(groups):
        errors = [_measure_calibration(task, classes, targets, weights) for classes in (network, form)]
        rises.append(errors[1] - errors[0])
    alike = np.ones((1, images))
    own, changed = (float(_measure_calibration(task, classes, targets, alike)[0]) for classes in (network, form))
    return own, changed, float(np.quantile(np.concatenate(rises), (1 - LEVEL) / 2))


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
