"""One pass over the data, to train or to evaluate: steps, metrics, optimizer, the same under every strategy."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from imagepipe.base.errors import TrainingError
from trainer.config import TrainerConfig
from trainer.tasks import Task

_log = logging.getLogger("trainer.progress")
_LOG_SECONDS = 5.0
_STEPS_DOWN = {0.5: 0.1, 0.75: 0.01}  # He et al. 2015 (ResNet) divide by 10 at a half and at three quarters

Batches: TypeAlias = tf.data.Dataset | tf.distribute.DistributedDataset
Step: TypeAlias = tf.types.experimental.GenericFunction
"""A function of a batch of (inputs, target), with the method ``get_concrete_function``, which traces it."""


class RunningMetrics:
    """Mean loss and a task's metrics over the steps since ``reset``. Create it in the strategy's scope."""

    def __init__(self, task: Task):
        self.loss = keras.metrics.Mean("loss")
        self.metrics = task.make_metrics()

    def update(self, target: tf.Tensor, outputs: tf.Tensor, losses: tf.Tensor) -> None:
        """Adds a batch: targets and outputs in their unit ``[n, outputs]``, losses ``[n]``."""
        self.loss.update_state(losses)
        for metric in self.metrics.values():
            metric.update_state(target, outputs)

    def compute_results(self, prefix: str = "") -> dict[str, float]:
        """Returns the current values by name, each name with a prefix."""
        return {
            f"{prefix}{name}": float(metric.result()) for name, metric in {"loss": self.loss, **self.metrics}.items()
        }

    def reset(self) -> None:
        """Starts anew."""
        for metric in (self.loss, *self.metrics.values()):
            metric.reset_state()

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that a state must contain."""
        return [variable for metric in (self.loss, *self.metrics.values()) for variable in metric.variables]


@dataclass
class PassClock:
    """Where the time of a pass goes.

    Attributes:
        total: seconds so far.
        waiting: seconds of it in which no batch was ready.
        steps: steps so far.
    """

    total: float = 0.0
    waiting: float = 0.0
    steps: int = 0


def distribute_batches(strategy: tf.distribute.Strategy, batches: tf.data.Dataset) -> Batches:
    """Distributes batches over the devices, one per device and step."""
    if strategy.num_replicas_in_sync == 1:
        return batches
    return strategy.distribute_datasets_from_function(lambda _: batches)


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    task: Task,
    optimizer: keras.optimizers.Optimizer,
    metrics: RunningMetrics,
    batch_size: int,
    class_weights: np.ndarray | None,
    spec: Any,
) -> Step:
    """Returns the function that takes one training step.

    Args:
        strategy: the strategy that distributes the step.
        model: the model to train, from inputs to outputs for standardized targets.
        task: gives the loss.
        optimizer: built for the model's trainable weights.
        metrics: updated with loss and metrics of the step.
        batch_size: over all devices; a smaller last batch counts for less.
        class_weights: float32 ``[outputs]`` or None; scales an example's loss by the weight of its target.
        spec: of the function's argument, a batch of (inputs, target).
    """

    def run_replica(inputs: Any, target: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            losses = task.loss(task.standardize(target), outputs)
            if class_weights is not None:
                losses *= tf.linalg.matvec(target, class_weights)
            # The mean over the whole batch; the optimizer adds up the gradients of the replicas.
            loss = optimizer.scale_loss(tf.reduce_sum(losses) / batch_size)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        metrics.update(target, task.restore(outputs), losses)

    return _compile_step(strategy, run_replica, spec)


def make_eval_step(
    strategy: tf.distribute.Strategy, model: keras.Model, task: Task, metrics: RunningMetrics, spec: Any
) -> Step:
    """Returns the function that evaluates one batch of (inputs, target); it returns the losses, ``[n]`` per device."""

    def run_replica(inputs: Any, target: tf.Tensor) -> tf.Tensor:
        outputs = model(inputs, training=False)
        losses = task.loss(task.standardize(target), outputs)
        metrics.update(target, task.restore(outputs), losses)
        return losses

    return _compile_step(strategy, run_replica, spec)


def _compile_step(strategy: tf.distribute.Strategy, run_replica: Callable[..., Any], spec: Any) -> Step:
    is_alone = strategy.num_replicas_in_sync == 1
    # As in Keras's fit: XLA pays on accelerators, and not across replicas.
    compiled = is_alone and bool(tf.config.list_physical_devices("GPU"))

    # Without the signature a smaller last batch would be traced anew: half a minute for a deep network.
    @tf.function(input_signature=[spec], jit_compile=compiled or None)
    def step(batch: Any) -> Any:
        return run_replica(*batch) if is_alone else strategy.run(run_replica, args=batch)

    return step


def run_pass(step: Step, batches: Iterator[Any], clock: PassClock) -> Iterator[Any]:
    """Runs a step on each batch.

    Args:
        step: takes a batch.
        batches: of this pass, or what an interrupted pass has left of them.
        clock: continues from where it stands.

    Yields:
        What each step returns.
    """
    start = time.perf_counter() - clock.total
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        clock.waiting += time.perf_counter() - asked
        if batch is None:
            return
        result = step(batch)
        clock.steps += 1
        clock.total = time.perf_counter() - start
        yield result


class ProgressLog:
    """Logs every few seconds how far an epoch is, and stops training if the loss is not finite."""

    def __init__(self, label: str, steps: int, batch_size: int, metrics: RunningMetrics):
        self._label = label
        self._steps = steps
        self._batch_size = batch_size
        self._metrics = metrics
        self._last_logged = time.perf_counter()

    def log_step(self, clock: PassClock) -> None:
        """Logs a step, if it is time to; call it after each step of the epoch, with the epoch's clock."""
        now = time.perf_counter()
        if clock.steps < self._steps and now - self._last_logged < _LOG_SECONDS:
            return
        self._last_logged = now
        loss = float(self._metrics.loss.result())
        check_finite(loss, f"{self._label}, at or before step {clock.steps} of {self._steps}")
        rate = clock.steps * self._batch_size / clock.total
        left = (self._steps - clock.steps) * clock.total / clock.steps
        _log.info(
            "%s: step %d of %d, loss %.4f, %.0f images/s, %.0f%% waiting for input, %s left in this epoch",
            self._label,
            clock.steps,
            self._steps,
            loss,
            rate,
            100 * clock.waiting / clock.total,
            format_duration(left),
        )


def check_finite(loss: float, where: str) -> None:
    """Raises TrainingError if a loss is infinite or not a number."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"The loss is {loss} in {where}. Nothing is exported. Lower the learning rate (trainer.learning_rate, "
            "trainer.fine_tune_learning_rate), or clip gradients (trainer.clip_norm: 1)."
        )


def format_duration(seconds: float) -> str:
    """Returns ``m:ss``, or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@keras.saving.register_keras_serializable("imagepipe")
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to another schedule's rate over the first steps, and follows that schedule from then on."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int):
        super().__init__()
        self._schedule = schedule
        self._steps = steps

    def __call__(self, step: Any) -> Any:
        """Returns the rate at a step, a scalar tensor or number."""
        share = ops.minimum(1.0, (ops.cast(step, "float32") + 1) / self._steps)
        return share * self._schedule(step)

    def get_config(self) -> dict:
        """Returns what Keras saves."""
        return {"schedule": keras.saving.serialize_keras_object(self._schedule), "steps": self._steps}


def make_learning_rate(config: TrainerConfig, peak: float, epochs: int, steps_per_epoch: int) -> Warmup:
    """Returns the learning rate of a phase, by step.

    Args:
        config: ``schedule`` and ``warmup_epochs``.
        peak: the highest rate.
        epochs: of the phase, if it doesn't stop early.
        steps_per_epoch: number of batches per epoch.
    """
    steps = epochs * steps_per_epoch
    match config.schedule:
        case "cosine":
            schedule = keras.optimizers.schedules.CosineDecay(peak, steps)
        case "step":
            boundaries = [max(1, round(share * steps)) for share in _STEPS_DOWN]
            rates = [peak, *(peak * factor for factor in _STEPS_DOWN.values())]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
        case "constant":
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay([steps], [peak, peak])
    return Warmup(schedule, max(1, round(min(config.warmup_epochs, epochs / 2) * steps_per_epoch)))


def make_optimizer(
    config: TrainerConfig, rate: keras.optimizers.schedules.LearningRateSchedule, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Returns the optimizer for a model's trainable weights; call it in the scope of the strategy.

    Weight decay exempts biases and the scales and offsets of normalization: everything with one dimension.
    """
    common = {
        "learning_rate": rate,
        "weight_decay": config.weight_decay or None,
        "global_clipnorm": config.clip_norm,
        "use_ema": config.ema is not None,
        "ema_momentum": config.ema or 0.99,
    }
    match config.optimizer:
        case "adam":
            optimizer = keras.optimizers.Adam(**common)
        case "adamw":
            optimizer = keras.optimizers.AdamW(**{**common, "weight_decay": config.weight_decay})
        case "sgd":
            optimizer = keras.optimizers.SGD(momentum=config.momentum, nesterov=True, **common)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) < 2])
    if model.dtype_policy.name == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
