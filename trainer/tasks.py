"""Tasks: what a target looks like, what the head's outputs mean, what is minimised and what is measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.names import TaskName
from trainer.config import TrainerConfig


@dataclass(frozen=True)
class Task:
    """A task with its number of outputs.

    Attributes:
        name: the task.
        outputs: number of classes or labels; 1 for regression.
        activation: of the output layer.
        loss: from targets and outputs, float32 ``[n, outputs]`` each, to losses float32 ``[n]``.
        metrics: makes the metrics, fresh ones each time, by name; the first is the one that people look at. They take
            targets and outputs as the loss does.
    """

    name: TaskName
    outputs: int
    activation: Literal["softmax", "sigmoid", "linear"]
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    metrics: Callable[[], dict[str, keras.Metric]]

    def encode(self, target: tf.Tensor) -> tf.Tensor:
        """Makes float32 ``[n, outputs]`` of the transform graph's target.

        Of a label that training has not seen all are zero in a classification.
        """
        if self.name == "classification":
            return tf.one_hot(target, self.outputs)
        return tf.reshape(tf.cast(target, tf.float32), [-1, self.outputs])

    def known(self, targets: np.ndarray) -> np.ndarray:
        """Which targets say something: not those of a class that training hasn't seen, and not missing numbers.

        Args:
            targets: float32 ``[n, outputs]``, encoded.

        Returns:
            bool ``[n]``; all true in a multilabel task, as no label at all is an answer too.
        """
        match self.name:
            case "classification":
                return np.any(targets, axis=1)
            case "multilabel":
                return np.ones(len(targets), bool)
            case "regression":
                return np.all(np.isfinite(targets), axis=1)


def make(name: TaskName, outputs: int, config: TrainerConfig) -> Task:
    """The task that a configuration names; ``outputs`` counts the classes or labels, 1 for regression."""
    if name == "regression":
        return regression(config.loss)
    made = classification if name == "classification" else multilabel
    return made(outputs, config.label_smoothing)


def classification(classes: int, label_smoothing: float = 0.0) -> Task:
    """One of several classes: softmax and categorical cross-entropy.

    Args:
        classes: number of classes.
        label_smoothing: share of the target that is spread over all classes, 0 to 1 (Szegedy et al. 2016, section 7).
    """

    def loss(target: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        return keras.losses.categorical_crossentropy(target, probabilities, label_smoothing=label_smoothing)

    return Task(
        "classification", classes, "softmax", loss, lambda: {"accuracy": keras.metrics.CategoricalAccuracy("accuracy")}
    )


def multilabel(labels: int, label_smoothing: float = 0.0) -> Task:
    """Any number of labels: a sigmoid each, and binary cross-entropy."""

    def loss(target: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        return keras.losses.binary_crossentropy(target, probabilities, label_smoothing=label_smoothing)

    return Task(
        "multilabel",
        labels,
        "sigmoid",
        loss,
        lambda: {
            "binary_accuracy": keras.metrics.BinaryAccuracy("binary_accuracy"),
            "auc": keras.metrics.AUC(name="auc", multi_label=True, num_labels=labels),
        },
    )


def regression(loss: Literal["mean_squared_error", "huber"]) -> Task:
    """A number: a linear output."""
    function = {"mean_squared_error": keras.losses.mean_squared_error, "huber": keras.losses.huber}[loss]
    return Task(
        "regression",
        1,
        "linear",
        function,
        lambda: {
            "mean_absolute_error": keras.metrics.MeanAbsoluteError("mean_absolute_error"),
            "root_mean_squared_error": keras.metrics.RootMeanSquaredError("root_mean_squared_error"),
        },
    )
