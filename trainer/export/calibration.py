"""Calibration: a change to a network's logits after which its probabilities are as often right as they say.

- Classification: one temperature (Guo, Pleiss, Sun, Weinberger 2017: On calibration of modern neural networks, section
  4.2), which changes no answer.
- Several labels: a factor and an offset for each label (their vector scaling; for one label, Platt 1999).

Both minimize the log loss on images that the network was not trained on, and a penalty: the logarithm of a factor has a
normal prior around 0 with a standard deviation of 0.5, an offset with one of 1. So few images change little, and images
that are all answered right don't give a temperature of 0.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

from imagepipe.base.names import TaskName

_FACTOR_DEVIATION, _OFFSET_DEVIATION = 0.5, 1.0


class Calibration(NamedTuple):
    """Calibrated logits are ``logits * factors + offsets``.

    Attributes:
        factors: one for all outputs, or one for each.
        offsets: the same.
    """

    factors: tuple[float, ...] = (1.0,)
    offsets: tuple[float, ...] = (0.0,)


NO_CALIBRATION = Calibration()


def fit_calibration(task: TaskName, logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """Fits it on images that the network was not trained on.

    Args:
        task: classification or multilabel; a regression has no probabilities.
        logits: float32 ``[n, k]``.
        targets: one-hot or multi-hot, float32 ``[n, k]``.
    """
    is_one = task == "classification"
    parts = 1 if is_one else logits.shape[1]
    deviations = np.full(1, _FACTOR_DEVIATION) if is_one else np.repeat([_FACTOR_DEVIATION, _OFFSET_DEVIATION], parts)
    logits = logits.astype(float)

    def read(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.exp(parameters[:parts]), parameters[parts:] if len(parameters) > parts else np.zeros(1)

    def compute_loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the penalized sum of the log losses, and its gradient."""
        factors, offsets = read(parameters)
        losses, errors = _compute_losses(task, logits * factors + offsets, targets)
        by_factor = errors * logits * factors
        gradient = [[by_factor.sum()]] if is_one else [by_factor.sum(axis=0), errors.sum(axis=0)]
        penalty = np.sum((parameters / deviations) ** 2) / 2
        return losses.sum() + penalty, np.concatenate(gradient) + parameters / deviations**2

    factors, offsets = read(minimize(compute_loss, np.zeros(len(deviations)), jac=True, method="L-BFGS-B").x)
    return Calibration(tuple(factors.tolist()), tuple(offsets.tolist()))


def compute_log_loss(task: TaskName, calibration: Calibration, logits: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean log loss over images, and over labels if there are several; arguments as above."""
    return float(_compute_losses(task, logits * calibration.factors + calibration.offsets, targets)[0].mean())


def _compute_losses(task: TaskName, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log losses, ``[n]`` or one for each label ``[n, k]``, and their gradient by the logits ``[n, k]``."""
    if task == "classification":
        logs = log_softmax(logits, axis=1)
        return -np.sum(targets * logs, axis=1), np.exp(logs) - targets
    return np.logaddexp(0, logits) - targets * logits, expit(logits) - targets
