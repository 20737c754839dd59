"""One pass over the data, to train or to evaluate: the same steps under every distribution strategy."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from trainer.tasks import Task

_log = logging.getLogger("trainer.progress")
_LOG_SECONDS = 5.0

Batches: TypeAlias = tf.data.Dataset | tf.distribute.DistributedDataset


class Trackers:
    """Mean loss and a task's metrics, over the steps since ``reset``. To be made in the strategy's scope."""

    def __init__(self, task: Task):
        self.loss = keras.metrics.Mean("loss")
        self.metrics = task.metrics()

    def update(self, target: tf.Tensor, outputs: tf.Tensor, losses: tf.Tensor) -> None:
        """Takes a batch: targets and outputs ``[n, outputs]``, losses ``[n]``."""
        self.loss.update_state(losses)
        for metric in self.metrics.values():
            metric.update_state(target, outputs)

    def results(self, prefix: str = "") -> dict[str, float]:
        """The figures by name, each with a prefix."""
        return {
            f"{prefix}{name}": float(metric.result()) for name, metric in {"loss": self.loss, **self.metrics}.items()
        }

    def reset(self) -> None:
        """Begins anew."""
        for metric in (self.loss, *self.metrics.values()):
            metric.reset_state()

    @property
    def variables(self) -> list[keras.Variable]:
        """What a state has to hold."""
        return [variable for metric in (self.loss, *self.metrics.values()) for variable in metric.variables]


@dataclass
class Clock:
    """Where the time of a pass goes, in seconds."""

    total: float = 0.0
    waiting: float = 0.0
    steps: int = 0


def distribute(strategy: tf.distribute.Strategy, batches: tf.data.Dataset) -> Batches:
    """Deals this worker's batches out to its devices, one each a step."""
    if strategy.num_replicas_in_sync == 1:
        return batches
    return strategy.distribute_datasets_from_function(lambda _: batches)


def train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    task: Task,
    optimizer: keras.optimizers.Optimizer,
    trackers: Trackers,
    batch_size: int,
    class_weights: np.ndarray | None,
    spec: Any,
) -> Callable[[Any], None]:
    """Makes the function that takes one step.

    Args:
        strategy: what it is spread over.
        model: what is trained, from inputs to outputs.
        task: says what is minimised.
        optimizer: built for the model's trainable weights.
        trackers: take loss and metrics of the step.
        batch_size: over all devices; a last, smaller batch counts for less.
        class_weights: float32 ``[outputs]`` or None; an example's loss counts as much as its target's weight.
        spec: of what the function takes, a batch of (inputs, target).
    """

    def of_replica(inputs: Any, target: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            losses = task.loss(target, outputs)
            if class_weights is not None:
                losses *= tf.linalg.matvec(target, class_weights)
            # The mean over the whole batch; the optimizer adds up what the replicas have.
            loss = optimizer.scale_loss(tf.reduce_sum(losses) / batch_size)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        trackers.update(target, outputs, losses)

    return _step(strategy, of_replica, spec)


def eval_step(
    strategy: tf.distribute.Strategy, model: keras.Model, task: Task, trackers: Trackers, spec: Any
) -> Callable[[Any], None]:
    """Makes the function that evaluates one batch of (inputs, target)."""

    def of_replica(inputs: Any, target: tf.Tensor) -> None:
        outputs = model(inputs, training=False)
        trackers.update(target, outputs, task.loss(target, outputs))

    return _step(strategy, of_replica, spec)


def _step(strategy: tf.distribute.Strategy, of_replica: Callable[..., None], spec: Any) -> Callable[[Any], None]:
    is_alone = strategy.num_replicas_in_sync == 1
    # As Keras's fit does: XLA pays on accelerators, and not across replicas.
    compiled = is_alone and bool(tf.config.list_physical_devices("GPU"))

    # Without the signature a last, smaller batch would be traced anew: half a minute for a deep network.
    @tf.function(input_signature=[spec], jit_compile=compiled or None)
    def step(batch: Any) -> None:
        if is_alone:
            of_replica(*batch)
        else:
            strategy.run(of_replica, args=batch)

    return step


def run(step: Callable[[Any], None], batches: Iterator[Any]) -> Iterator[Clock]:
    """Runs a step over batches.

    Yields:
        After each step the time so far: all of it, and that in which no batch was ready.
    """
    clock = Clock()
    begun = time.perf_counter()
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        clock.waiting += time.perf_counter() - asked
        if batch is None:
            return
        step(batch)
        clock.steps += 1
        clock.total = time.perf_counter() - begun
        yield clock


class Reporter:
    """Says every few seconds how far training is, and stops it where the loss is no number any more."""

    def __init__(self, label: str, steps: int, batch_size: int, trackers: Trackers):
        self._label = label
        self._steps = steps
        self._batch_size = batch_size
        self._trackers = trackers
        self._said = time.perf_counter()

    def after(self, step: int, clock: Clock, is_last: bool) -> None:
        """Call it after each step; ``step`` counts from the epoch's first."""
        now = time.perf_counter()
        if not is_last and now - self._said < _LOG_SECONDS:
            return
        self._said = now
        loss = float(self._trackers.loss.result())
        check_finite(loss, f"{self._label}, at or before step {step} of {self._steps}")
        rate = clock.steps * self._batch_size / clock.total
        left = (self._steps - step) * clock.total / clock.steps
        _log.info(
            "%s: step %d of %d, loss %.4f, %.0f images/s, %.0f%% waiting for input, %s left in it",
            self._label,
            step,
            self._steps,
            loss,
            rate,
            100 * clock.waiting / clock.total,
            _duration(left),
        )


def check_finite(loss: float, where: str) -> None:
    """Raises TrainingError if a loss is infinite or no number at all."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss is {loss} in {where}. Nothing is exported. Lower the learning rate (trainer.learning_rate, "
            "trainer.fine_tune_learning_rate), or clip gradients (trainer.clip_norm: 1)."
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
