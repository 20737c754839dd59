"""Fits what stands between a network's outputs and its answers, on images that it was not trained on."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from trainer.config import TrainerConfig
from trainer.data import TrainingData
from trainer.export.agreement import Parts
from trainer.export.answers import make_answers
from trainer.export.calibration import NO_CALIBRATION, Calibration, compute_log_loss, fit_calibration
from trainer.export.novelty import MAX_REFERENCES, Novelty, Tensors, fit_novelty
from trainer.inputs import LoadedSplit, make_batches

_BATCH = 32

_log = logging.getLogger("trainer")


Arrays = dict[str, np.ndarray]


class Outputs(NamedTuple):
    """A network's ``logits`` ``[n, k]`` and ``embedding`` ``[n, d]``, float32.

    Attributes:
        sample: for the images of ``draw_sample``.
        held_out: for ``data.validation``.
    """

    sample: Arrays
    held_out: Arrays


def draw_sample(data: TrainingData) -> LoadedSplit:
    """Returns ``MAX_REFERENCES`` images that were trained on, drawn at random, or all of them."""
    chosen = np.sort(np.random.default_rng(0).permutation(data.train.count)[:MAX_REFERENCES])
    return data.train.select(chosen)


def compute_outputs(network: Callable[[Tensors], Mapping[str, Any]], data: TrainingData) -> Outputs:
    """Computes the outputs that the answers are fitted to.

    Args:
        network: from a batch of inputs to ``logits`` and ``embedding``, tensors or arrays.
        data: the images.
    """
    return Outputs(compute_split(network, draw_sample(data)), compute_split(network, data.validation))


def compute_split(network: Callable[[Tensors], Mapping[str, Any]], split: LoadedSplit) -> Arrays:
    """Returns a network's ``logits`` ``[n, k]`` and ``embedding`` ``[n, d]`` for all images of a split, float32."""
    rows = [network(features) for features, _ in make_batches(split, _BATCH).prefetch(2)]
    return {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in ("logits", "embedding")}


def compile_network(network: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    """Returns a TensorFlow network, in inference mode, as a graph for batches of any size."""
    options = {"training": False} if isinstance(network, keras.Model) else {}
    return tf.function(lambda features: network(features, **options), reduce_retracing=True)


class Fitted(NamedTuple):
    """The way from one form's outputs to its answers.

    Attributes:
        answers: see ``trainer.export.answers``.
        calibration: of the logits.
        novelty: of the logits, without it, and the embedding.
        unknown: which images of the outputs get no label as they are too novel, bool ``[n]``.
        facts: about the calibration, for people, see ``calibrate``.
    """

    answers: Callable[[Tensors], Tensors]
    calibration: Calibration
    novelty: Novelty
    unknown: Parts
    facts: dict[str, Any]


def fit_answers(
    config: TrainerConfig, data: TrainingData, outputs: Outputs, chosen: Outputs | None, unknown_from: float | None
) -> Fitted:
    """Fits calibration and novelty to the outputs of a form of the network.

    Args:
        config: the settings.
        data: the images that the outputs are of.
        outputs: of this form.
        chosen: of the network that was not trained on ``data.validation``, if it is another one, after
            ``trainer.refit``; both are then fitted to it.
        unknown_from: the novelty from which on an image gets no label; None for no limit.
    """
    held_out = (chosen or outputs).held_out
    calibration, facts = calibrate(config, data, held_out["logits"])
    references = [part.sample["embedding"] for part in (outputs, chosen) if part]
    novelty = fit_novelty(data.task.name, references[0], held_out, *references[1:])
    answers = make_answers(
        data.task.name, data.output_names, config.label_thresholds, calibration, novelty, unknown_from
    )
    unknown = Parts(*(np.zeros(len(arrays["logits"]), bool) for arrays in outputs))
    if unknown_from is not None:
        own = fit_novelty(data.task.name, references[1], held_out) if chosen else novelty  # of what gave ``held_out``
        unknown = Parts(*(np.asarray(x) >= unknown_from for x in (novelty(outputs.sample), own(held_out))))
    return Fitted(answers, calibration, novelty, unknown, facts)


def calibrate(config: TrainerConfig, data: TrainingData, logits: np.ndarray) -> tuple[Calibration, dict[str, Any]]:
    """Fits the calibration, or chooses none and logs why.

    Args:
        config: whether there is to be one.
        data: its ``validation`` has the targets.
        logits: of ``data.validation``, float32 ``[n, k]``.

    Returns:
        The calibration, and facts for people: ``method`` (temperature, vector or none), ``temperature`` (None unless it
        is the method), ``images``, the mean ``log_loss`` on them and ``log_loss_without``; or ``why`` there is none.
    """
    if data.task.name == "regression":
        return NO_CALIBRATION, {"method": "none", "why": "a regression has no probabilities"}
    if config.calibration == "none":
        return NO_CALIBRATION, {"method": "none", "why": "trainer.calibration is none"}
    if not data.is_set_aside:
        why = "too few images are set aside for validation, and the eval split is the gate's"
        _log.warning("the probabilities are not calibrated: %s", why)
        return NO_CALIBRATION, {"method": "none", "why": why}
    targets = np.asarray(data.task.encode(tf.constant(data.validation.targets)))
    calibration = fit_calibration(data.task.name, logits, targets)
    plain, calibrated = (compute_log_loss(data.task.name, c, logits, targets) for c in (NO_CALIBRATION, calibration))
    is_one = data.task.name == "classification"
    facts = {
        "method": "temperature" if is_one else "vector",
        "temperature": 1 / calibration.factors[0] if is_one else None,
        "images": len(logits),
        "log_loss": calibrated,
        "log_loss_without": plain,
    }
    _log.info("calibrated on %d images: log loss %.3f, %.3f without", len(logits), calibrated, plain)
    return calibration, facts
