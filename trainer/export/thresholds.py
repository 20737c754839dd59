"""Decision thresholds of a multilabel task, chosen on the images that are set aside for it."""

import logging
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import DEFAULT_THRESHOLD, HIGHEST_F1, TrainerConfig, list_thresholds
from trainer.data import TrainingData
from trainer.export.answers import compute_classes
from trainer.export.fitting import calibrate

MIN_IMAGES = 20
"""Images with a label, and without it, that it takes to choose: one of fewer moves the recall by over five points."""

_log = logging.getLogger("trainer")

Facts = dict[str, dict[str, Any]]


def settle_thresholds(config: TrainerConfig, data: TrainingData, logits: np.ndarray) -> Facts:
    """Returns the decision threshold of each label: the configured one, or the chosen one.

    Args:
        config: the settings.
        data: its ``validation`` has the targets.
        logits: of ``data.validation``, float32 ``[n, k]``, by a network that was not trained on it.

    Returns:
        By label its ``threshold`` and, for people, ``why`` it is that one; nothing in other tasks.
    """
    if data.task.name != "multilabel":
        return {}
    given = config.label_thresholds
    if given != HIGHEST_F1:
        values = list_thresholds(data.output_names, given)
        why = {name: "trainer.label_thresholds" if name in given else "the default" for name in data.output_names}
        return {
            name: {"threshold": value, "why": why[name]} for name, value in zip(data.output_names, values, strict=True)
        }
    if not data.is_set_aside:
        why_none = "too few images are set aside for validation, and the eval split is the gate's"
        _log.warning("no decision thresholds are chosen: %s", why_none)
        return {name: {"threshold": DEFAULT_THRESHOLD, "why": why_none} for name in data.output_names}
    classes = compute_classes(data.task.name, calibrate(config, data, logits)[0], tf.constant(logits)).numpy()
    targets = np.asarray(data.task.encode(tf.constant(data.validation.targets))) > 0
    facts = {name: _choose(classes[:, i], targets[:, i]) for i, name in enumerate(data.output_names)}
    for name, fact in facts.items():
        _log.info("decision threshold of %s: %.3f (%s)", name, fact["threshold"], fact["why"])
    return facts


def _choose(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Chooses the threshold of a label, with probabilities and targets ``[n]``."""
    fewest, kind = min((int(targets.sum()), "with"), (int((~targets).sum()), "without"))
    if fewest < MIN_IMAGES:
        why = f"too few images {kind} it are set aside to choose one: {fewest}, and {MIN_IMAGES} are the minimum"
        return {"threshold": DEFAULT_THRESHOLD, "why": why}
    threshold = find_highest_f1(probabilities, targets)
    chosen, default = (compute_f1(probabilities >= limit, targets) for limit in (threshold, DEFAULT_THRESHOLD))
    why = f"F1 {chosen:.3f}, the highest, on the {len(targets)} images set aside, {int(targets.sum())} of them with it"
    return {"threshold": threshold, "why": f"{why}; {default:.3f} at {DEFAULT_THRESHOLD}"}


def find_highest_f1(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Returns the threshold with the highest F1, halfway between two probabilities.

    Args:
        probabilities: of the label, float ``[n]``.
        targets: which images have it, bool ``[n]``; some do.
    """
    order = np.argsort(-probabilities, kind="stable")
    values, hits = probabilities[order].astype(float), np.cumsum(targets[order])
    scores = 2 * hits / (np.arange(1, len(values) + 1) + targets.sum())
    below = np.append(values[1:], 0.0)
    scores[values == below] = -1  # images of one probability have one answer
    limits = (values + below) / 2
    best = np.flatnonzero(scores == scores.max())
    return float(limits[best[np.argmin(np.abs(limits[best] - DEFAULT_THRESHOLD))]])


def compute_f1(answers: np.ndarray, targets: np.ndarray) -> float:
    """Returns F1 of a label's answers, bool ``[n]``; some targets, bool ``[n]``, are true."""
    return float(2 * (answers & targets).sum() / (answers.sum() + targets.sum()))
