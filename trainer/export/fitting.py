"""Fits what stands between a network's outputs and its answers, on images that it was not trained on."""

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config import TrainerConfig
from trainer.data import TrainingData
from trainer.export.calibration import NO_CALIBRATION, Calibration, compute_log_loss, fit_calibration
from trainer.export.novelty import MAX_REFERENCES, Tensors, fit_novelty
from trainer.inputs import LoadedSplit, make_batches

_BATCH = 32

_log = logging.getLogger("trainer")


def compute_outputs(served: keras.Model, split: LoadedSplit) -> dict[str, np.ndarray]:
    """Returns a network's ``logits`` ``[n, k]`` and ``embedding`` ``[n, d]`` for all images of a split, float32."""
    forward = tf.function(lambda features: served(features, training=False), reduce_retracing=True)
    rows = [forward(features) for features, _ in make_batches(split, _BATCH).prefetch(2)]
    return {name: np.concatenate([row[name].numpy() for row in rows]) for name in ("logits", "embedding")}


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


def fold_calibration(calibration: Calibration, logits: keras.layers.Dense) -> None:
    """Changes the weights of the layer that gives the logits, so that it gives calibrated ones."""
    kernel, bias = logits.get_weights()
    logits.set_weights([kernel * calibration.factors, bias * calibration.factors + calibration.offsets])


def measure_novelty(
    served: keras.Model, chosen: keras.Model, data: TrainingData, held_out: dict[str, np.ndarray]
) -> Callable[[Tensors], tf.Tensor]:
    """Returns the function from a network's outputs to novelty, see ``trainer.export.novelty``.

    Args:
        served: the network.
        chosen: the same, or the one that was not trained on ``data.validation``.
        data: of more than ``MAX_REFERENCES`` images in ``train``, a random sample is looked at.
        held_out: outputs of ``chosen`` for ``data.validation``, see ``compute_outputs``.
    """
    sample = np.sort(np.random.default_rng(0).permutation(data.train.count)[:MAX_REFERENCES])
    references, *others = (
        compute_outputs(network, data.train.select(sample))["embedding"]
        for network in ([served] if chosen is served else [served, chosen])
    )
    return fit_novelty(data.task.name, references, held_out, *others)
