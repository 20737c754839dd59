"""Tasks: the form of a target, the meaning of the head's outputs, the loss and the metrics."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.names import TaskName
from trainer.config import TrainerConfig

_BITS = np.array([128, 64, 32, 16, 8, 4, 2, 1], np.uint8)  # of a byte, in the order of np.packbits


@dataclass(frozen=True)
class Task:
    """A task with its number of outputs.

    Attributes:
        name: the task.
        outputs: number of classes or labels; 1 for regression.
        activation: of the output layer.
        loss: from standardized targets and outputs, float32 ``[n, outputs]`` each, to losses float32 ``[n]``.
        make_metrics: returns new metrics by name; the first is the main one. They take targets and outputs like the
            loss, but in the targets' own unit.
        mean: of a regression's targets in training; 0 in other tasks.
        deviation: their standard deviation; 1 in other tasks, and if all are the same.
    """

    name: TaskName
    outputs: int
    activation: Literal["softmax", "sigmoid", "linear"]
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    make_metrics: Callable[[], dict[str, keras.Metric]]
    mean: float = 0.0
    deviation: float = 1.0

    def standardize(self, target: tf.Tensor) -> tf.Tensor:
        """Returns encoded targets as the network learns them, whatever their unit."""
        return (target - self.mean) / self.deviation

    def restore(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the outputs of a network in training in the unit of its targets."""
        return outputs * self.deviation + self.mean

    def compact(self, target: tf.Tensor) -> tf.Tensor:
        """Returns the transform graph's target in the form in which a split keeps it in memory.

        For a million images of 1,000 classes that is 4 MB, with 1,000 labels 125 MB; as float32 ``[n, outputs]`` they
        would take 4 GB.

        Returns:
            The index of the class, int32 ``[n]``, -1 for one unseen in training; a bit for each label, as
            ``np.packbits`` packs them, uint8 ``[n, ceil(outputs / 8)]``; or the number, float32 ``[n, 1]``.
        """
        match self.name:
            case "classification":
                return tf.cast(target, tf.int32)
            case "multilabel":
                padded = tf.pad(tf.cast(target, tf.uint8), [[0, 0], [0, -self.outputs % 8]])
                bits = tf.reshape(padded, [-1, math.ceil(self.outputs / 8), 8])
                return tf.reduce_sum(bits * _BITS, axis=2)
            case "regression":
                return tf.reshape(tf.cast(target, tf.float32), [-1, 1])

    def encode(self, target: tf.Tensor) -> tf.Tensor:
        """Encodes compact targets as float32 ``[n, outputs]``; a class unseen in training as zeros."""
        match self.name:
            case "classification":
                return tf.one_hot(target, self.outputs)
            case "multilabel":
                bits = tf.bitwise.bitwise_and(target[:, :, None], _BITS) > 0
                return tf.reshape(tf.cast(bits, tf.float32), [-1, target.shape[1] * 8])[:, : self.outputs]
            case "regression":
                return tf.cast(target, tf.float32)

    def is_usable(self, targets: np.ndarray) -> np.ndarray:
        """Returns which targets can be learned: not those of a class unseen in training, and not missing numbers.

        Args:
            targets: compact targets of n examples.

        Returns:
            bool ``[n]``; all true in a multilabel task, in which no label at all is a valid target too.
        """
        match self.name:
            case "classification":
                return (targets >= 0) & (targets < self.outputs)
            case "multilabel":
                return np.ones(len(targets), bool)
            case "regression":
                return np.all(np.isfinite(targets), axis=1)


def make_task(name: TaskName, outputs: int, config: TrainerConfig) -> Task:
    """Returns the configured task; ``outputs`` is the number of classes or labels, 1 for regression."""
    if name == "regression":
        return make_regression(config.loss)
    make = make_classification if name == "classification" else make_multilabel
    return make(outputs, config.label_smoothing)


def measure_targets(task: Task, targets: np.ndarray) -> Task:
    """Returns the task with mean and deviation of the train split's compact targets, if they are numbers.

    An optimizer moves each weight by about the learning rate: with numbers in the hundreds of thousands, or in the ten
    thousandths, a head with random weights would never come near them.
    """
    if task.name != "regression":
        return task
    numbers = targets.astype(np.float64)  # in which equal ones have a deviation of exactly 0
    return replace(task, mean=float(numbers.mean()), deviation=float(numbers.std()) or 1.0)


def make_classification(classes: int, label_smoothing: float = 0.0) -> Task:
    """Returns the task of choosing one of several classes: softmax and categorical cross-entropy.

    Args:
        classes: number of classes.
        label_smoothing: share of the target that is spread over all classes, 0 to 1 (Szegedy et al. 2016, section 7).
    """

    def loss(target: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        return keras.losses.categorical_crossentropy(target, probabilities, label_smoothing=label_smoothing)

    return Task(
        "classification", classes, "softmax", loss, lambda: {"accuracy": keras.metrics.CategoricalAccuracy("accuracy")}
    )


def make_multilabel(labels: int, label_smoothing: float = 0.0) -> Task:
    """Returns the task of assigning any number of labels: one sigmoid per label and binary cross-entropy."""

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


def make_regression(loss: Literal["mean_squared_error", "huber"]) -> Task:
    """Returns the task of predicting a number: a linear output; see ``measure_targets``."""
    loss_function = {"mean_squared_error": keras.losses.mean_squared_error, "huber": keras.losses.huber}[loss]
    return Task(
        "regression",
        1,
        "linear",
        loss_function,
        lambda: {
            "mean_absolute_error": keras.metrics.MeanAbsoluteError("mean_absolute_error"),
            "root_mean_squared_error": keras.metrics.RootMeanSquaredError("root_mean_squared_error"),
        },
    )
