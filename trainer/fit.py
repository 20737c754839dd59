"""The training schedule: phases, epochs, early stopping, and going on after a kill."""

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from trainer import checkpoint, devices, inputs, loop, model, optimizers
from trainer.augmentation import augment
from trainer.checkpoint import Progress
from trainer.config import NO_WEIGHTS, TrainerConfig
from trainer.model import Network
from trainer.tasks import Task
from transform import datasets

_log = logging.getLogger("trainer")
_PREFETCHED = 2  # batches

History = list[dict[str, Any]]


@dataclass(frozen=True)
class Phase:
    """A part of the schedule.

    Attributes:
        name: for a person.
        model: what is trained, from the splits' inputs to the task's outputs; its frozen layers are set.
        variables: all that training may change, the kept state of dropout included.
        train: what it is trained on.
        evaluation: what it is evaluated on.
        augmented: whether the images of ``train`` are augmented.
        epochs: at most.
        learning_rate: the highest.
    """

    name: str
    model: keras.Model
    variables: list[keras.Variable]
    train: inputs.Split
    evaluation: inputs.Split
    augmented: bool
    epochs: int
    learning_rate: float


def fit(
    network: Network,
    task: Task,
    train: inputs.Split,
    evaluation: inputs.Split,
    config: TrainerConfig,
    folder: Path,
    strategy: tf.distribute.Strategy,
    class_weights: np.ndarray | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> History:
    """Trains a network in place and leaves it with the weights of its best epoch (least loss on the eval split).

    From scratch all layers are trained at once. With weights, first the head on the frozen base, then the base's upper
    blocks as well, at a lower rate.

    Args:
        network: made in the scope of ``strategy``.
        task: what is learned.
        train: what it is trained on: under several workers, this worker's share.
        evaluation: likewise.
        config: the schedule.
        folder: an existing local folder, for the state after each epoch and for what a frozen base makes of the images.
            A training that was killed goes on from the state it finds there.
        strategy: what it is spread over.
        class_weights: see ``loop.train_step``.
        report: called with the row of each epoch, also with those of epochs before a kill.

    Returns:
        A row an epoch: ``epoch`` (from 1), ``phase``, ``loss`` and the task's metrics, the same with ``val_`` before,
        ``learning_rate``, ``images_per_second`` (of training alone), ``input_wait`` (share of that time).

    Raises:
        TrainingError: if the loss is no number any more, or memory doesn't suffice.
        SystemExit: after SIGTERM, once the state is saved.
    """
    begin = _phases(network, train, evaluation, config, folder)
    found = checkpoint.load(folder)
    progress, arrays = found or (Progress(0, 0, 0, []), {})
    if found:
        _log.info("going on after %d epochs and %d steps", len(progress.history), progress.step)
    for before in progress.history:
        report(before)
    while progress.phase < len(begin):
        phase = begin[progress.phase]()
        training = _Training(phase, task, config, strategy, class_weights, progress)
        training.restore(arrays)
        best = arrays.get("best") or checkpoint.values(phase.variables)
        with _terminated() as is_terminated:
            while not _is_over(progress, phase, config.patience):
                try:
                    row = training.epoch(progress, is_terminated)
                except tf.errors.ResourceExhaustedError as error:
                    raise TrainingError(_out_of_memory(config)) from error
                if row is None:
                    checkpoint.save(folder, progress, training.state(best))
                    raise SystemExit(128 + signal.SIGTERM)
                if not progress.history or row["val_loss"] < min(before["val_loss"] for before in progress.history):
                    best = training.kept
                progress.history.append(row)
                report(row)
                progress.epoch, progress.step = progress.epoch + 1, 0
                state = training.state(best)  # on all workers: they add up what each of them has tracked
                if devices.is_chief(strategy):
                    checkpoint.save(folder, progress, state)
                # Last: once it is said, a kill can't undo it.
                _log.info("%s: %s", training.label(progress.epoch), _in_words(row))
        # From the best weights the next phase goes on, and they are what is exported.
        checkpoint.assign(phase.variables, best)
        progress.phase, progress.epoch, arrays = progress.phase + 1, 0, {}
    return progress.history


def _phases(
    network: Network, train: inputs.Split, evaluation: inputs.Split, config: TrainerConfig, folder: Path
) -> list[Callable[[], Phase]]:
    """What begins each phase: it freezes the layers that the phase doesn't train."""
    augmented = config.augmentation.is_on

    def whole(name: str, learning_rate: float) -> Phase:
        net = network.model
        return Phase(name, net, net.variables, train, evaluation, augmented, config.epochs, learning_rate)

    def everything() -> Phase:
        model.set_batch_norm_momentum(network.base, math.ceil(train.count / config.batch_size))
        return whole("all", config.learning_rate)

    def head() -> Phase:
        network.base.trainable = False
        epochs, rate = config.head_epochs, config.learning_rate
        if augmented:
            return Phase("head", network.model, network.head.variables, train, evaluation, True, epochs, rate)
        # Without augmentation the base says the same of an image each time: it is asked once.
        kept = [
            features(network, split, config.batch_size, folder / name)
            for name, split in (("train.features", train), ("eval.features", evaluation))
        ]
        return Phase("head", network.head, network.head.variables, kept[0], kept[1], False, epochs, rate)

    def upper_blocks() -> Phase:
        model.unfreeze_after(network.base, model.fine_tuned_after(config))
        return whole("upper blocks", config.fine_tune_learning_rate)

    return [everything] if config.weights == NO_WEIGHTS else [head, upper_blocks]


def features(network: Network, split: inputs.Split, batch_size: int, path: Path) -> inputs.Split:
    """A split with what a frozen base makes of its images in their place."""
    forward = tf.function(lambda images: network.pooled(images, training=False), reduce_retracing=True)
    with path.open("wb") as file:
        # Not in the dataset's map, which is for CPUs only.
        for batch, _ in inputs.batches(split, batch_size).prefetch(_PREFETCHED):
            file.write(forward(batch[IMAGE]).numpy().data)
    rows = inputs.Rows(path, network.pooled.output_shape[1:], np.dtype(np.float32))
    return inputs.Split(rows, split.side, split.targets)


def _is_over(progress: Progress, phase: Phase, patience: int) -> bool:
    losses = [row["val_loss"] for row in progress.history[len(progress.history) - progress.epoch :]]
    return progress.epoch >= phase.epochs or (
        progress.epoch > 0 and len(losses) - 1 - losses.index(min(losses)) >= patience
    )


def _in_words(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float))


def _out_of_memory(config: TrainerConfig) -> str:
    return (
        f"The device has too little memory for trainer.batch_size: {config.batch_size}. Try {config.batch_size // 2}"
        if config.batch_size > 1
        else "The device has too little memory for one image at a time. Try a smaller image.size"
    ) + ", or trainer.precision: mixed_float16."


@contextmanager
def _terminated() -> Iterator[Callable[[], bool]]:
    """Tells whether SIGTERM has come, which ends the process no more; where signals can't be caught, it never has."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


class _Training:
    """What lives as long as a phase."""

    def __init__(
        self,
        phase: Phase,
        task: Task,
        config: TrainerConfig,
        strategy: tf.distribute.Strategy,
        class_weights: np.ndarray | None,
        progress: Progress,
    ):
        self._phase = phase
        self._config = config
        self._strategy = strategy
        self._sizes = devices.batch_sizes(strategy, phase.train.count, config.batch_size)
        self._worker, self._workers = devices.worker(strategy)
        with strategy.scope():
            rate = optimizers.learning_rate(config, phase.learning_rate, phase.epochs, self._sizes.steps)
            self._optimizer = optimizers.optimizer(config, rate, phase.model)
            self._trackers = loop.Trackers(task)
        eval_batches = inputs.batches(phase.evaluation, self._sizes.replica).prefetch(_PREFETCHED)
        self._eval_batches = loop.distribute(strategy, eval_batches)
        # One dataset for all epochs: building and compiling it anew for each would cost a second of each.
        train_batches = self._batches(len(progress.history), progress.step)
        self._train_batches = iter(train_batches)
        self._train_step = loop.train_step(
            strategy,
            phase.model,
            task,
            self._optimizer,
            self._trackers,
            config.batch_size,
            class_weights,
            train_batches.element_spec,
        )
        self._eval_step = loop.eval_step(strategy, phase.model, task, self._trackers, self._eval_batches.element_spec)

    def state(self, best: list[np.ndarray]) -> checkpoint.Arrays:
        """All that a training has to find again, ``best`` being the weights of the best epoch so far."""
        return {name: checkpoint.values(variables) for name, variables in self._variables().items()} | {"best": best}

    def restore(self, arrays: checkpoint.Arrays) -> None:
        """Goes on from a state; without one, from the beginning."""
        for name, variables in self._variables().items() if arrays else ():
            checkpoint.assign(variables, arrays[name])

    def _variables(self) -> dict[str, list[keras.Variable]]:
        return {
            "weights": self._phase.variables,
            "optimizer": self._optimizer.variables,
            "trackers": self._trackers.variables,
        }

    def label(self, epoch: int) -> str:
        """What an epoch, from 1, is called."""
        return f"{self._phase.name}, epoch {epoch} of {self._phase.epochs}"

    def epoch(self, progress: Progress, is_terminated: Callable[[], bool]) -> dict[str, Any] | None:
        """Trains and evaluates for an epoch; returns its row, or None where SIGTERM came before all was trained."""
        number = len(progress.history) + 1
        label = self.label(progress.epoch + 1)
        reporter = loop.Reporter(label, self._sizes.steps, self._config.batch_size, self._trackers)
        if not progress.step:
            self._trackers.reset()
        first = progress.step
        clock = loop.Clock()
        for clock in loop.run(self._train_step, islice(self._train_batches, self._sizes.steps - first)):
            progress.step = first + clock.steps
            reporter.after(progress.step, clock, progress.step == self._sizes.steps)
            # It reaches several workers at different steps: together they can only go on from an epoch's end.
            if is_terminated() and self._workers == 1 and progress.step < self._sizes.steps:
                return None
        return {
            "epoch": number,
            "phase": self._phase.name,
            **self._trackers.results(),
            **self._evaluate(),
            "learning_rate": float(self._optimizer.learning_rate),
            "images_per_second": round(
                self._workers * (self._sizes.examples - first * self._sizes.local) / clock.total, 1
            ),
            "input_wait": round(clock.waiting / clock.total, 4),
        }

    def _batches(self, epoch: int, step: int) -> loop.Batches:
        """All batches from a step of an epoch on: the same ones, whatever was trained in this process before."""
        sizes, seed, split = self._sizes, self._config.seed, self._phase.train
        batches_in_epoch = -(-sizes.examples // sizes.replica)
        skipped = step * (sizes.local // sizes.replica)
        indices = inputs.epochs(split.count, sizes.examples, sizes.replica, seed, epoch)
        batches = inputs.read(split, indices.skip(skipped))
        if self._phase.augmented:
            change = augment(self._config.augmentation)

            def one_batch(
                number: tf.Tensor, batch: tuple[inputs.Tensors, tf.Tensor]
            ) -> tuple[inputs.Tensors, tf.Tensor]:
                of_batch = tf.cast([seed, number * self._workers + self._worker], tf.int32)
                images, target = change(batch[0][IMAGE], batch[1], of_batch)
                return {**batch[0], IMAGE: images}, target

            first = epoch * batches_in_epoch + skipped
            batches = batches.enumerate(first).map(one_batch, num_parallel_calls=datasets.CORES, deterministic=True)
        return loop.distribute(self._strategy, batches.prefetch(_PREFETCHED))

    def _evaluate(self) -> dict[str, float]:
        """Evaluates, with averaged weights where the configuration asks for them, and keeps a copy of the weights."""
        training_weights = checkpoint.values(self._phase.model.trainable_variables) if self._config.ema else None
        self._optimizer.finalize_variable_values(self._phase.model.trainable_variables)
        self._trackers.reset()
        for _ in loop.run(self._eval_step, iter(self._eval_batches)):
            pass
        self.kept = checkpoint.values(self._phase.variables)
        if training_weights:
            checkpoint.assign(self._phase.model.trainable_variables, training_weights)
        results = self._trackers.results("val_")
        loop.check_finite(results["val_loss"], "the evaluation")
        return results
