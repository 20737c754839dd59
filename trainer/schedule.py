"""The training schedule: phases, epochs, early stopping, and resuming after a kill.

It does not use ``keras.Model.fit``: a training that was killed, also in the middle of an epoch, must resume at the very
next batch and end with bit for bit the same weights. ``fit`` starts epochs anew, and its callbacks restore neither the
position in the shuffled data nor the metrics of the epoch so far.
"""

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from imagepipe.base.signals import hold_signals
from trainer.augmentation import augment_batches
from trainer.checkpoint import (
    STATE,
    Arrays,
    Progress,
    State,
    StateError,
    assign_values,
    check_shapes,
    copy_values,
    load_state,
    save_state,
)
from trainer.config import EXPORT_SETTINGS, NO_WEIGHTS, TrainerConfig
from trainer.devices import divide_epoch
from trainer.inputs import LoadedSplit, make_batches, read_batches, shuffle_epochs
from trainer.network import Network, scale_outputs, set_batch_norm_momentum
from trainer.phase import Chosen, Phase
from trainer.steps import (
    Batches,
    PassClock,
    ProgressLog,
    RunningMetrics,
    check_finite,
    distribute_batches,
    format_duration,
    make_eval_step,
    make_learning_rate,
    make_optimizer,
    make_train_step,
    run_pass,
)
from trainer.tasks import Task
from trainer.transfer import list_transfer_phases

_log = logging.getLogger("trainer")
_PREFETCHED = 2  # batches

History = list[dict[str, Any]]


def run_schedule(
    network: Network,
    task: Task,
    train: LoadedSplit,
    validation: LoadedSplit,
    config: TrainerConfig,
    folder: Path,
    strategy: tf.distribute.Strategy,
    class_weights: np.ndarray | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    chosen: Chosen | None = None,
) -> History:
    """Trains a network in place and leaves it with the weights of its best epoch, by loss on the validation images.

    A regression is trained on standardized targets, which its losses are of. At the end its last layer is changed, so
    that the network answers in the targets' own unit.

    Best is the last epoch whose loss was not higher, by more than chance gives, than the lowest: on few images the
    lowest is a matter of chance, and late epochs have seen more views at a lower rate.

    From scratch all layers are trained at once. With pretrained weights, first the head on the frozen base, then the
    base's upper blocks as well, at a lower rate. A phase stops after its epochs, or after ``config.patience`` epochs
    none of which was better by more than chance, see ``is_better``, than the last one that was.

    Args:
        network: created in the scope of ``strategy``.
        task: what is learned.
        train: the images to train on.
        validation: the images to choose on.
        config: the schedule.
        folder: an existing local folder, for the state after each epoch and for cached backbone features. A training
            that was killed resumes from the state in it.
        strategy: the strategy that distributes training.
        class_weights: see ``steps.make_train_step``.
        on_epoch: called with the row of each epoch, including those of epochs before a kill.
        chosen: after how many epochs of each phase its last weights are kept; by default the training chooses.

    Returns:
        One row per epoch: ``epoch`` (from 1), ``phase``, ``loss`` and the task's metrics, the same prefixed with
        ``val_``, ``learning_rate``, ``images_per_second`` (of training alone), ``input_wait`` (share of that time), and
        whether its weights were ``kept``: until those of a later epoch were.

    Raises:
        TrainingError: if the loss is no longer finite, or memory doesn't suffice.
        Stopped: after SIGTERM or Ctrl+C, once the state is saved, see ``imagepipe.base.signals``.
    """
    per_epoch = chosen.images if chosen else train.count
    identity = {
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "precision": network.model.dtype_policy.name,
        "devices": strategy.num_replicas_in_sync,
        "examples": [train.count, validation.count],
        "chosen": chosen and chosen._asdict(),
        "configuration": config.model_dump(mode="json", exclude=EXPORT_SETTINGS),
    }
    phase_starters: list[Callable[[], Phase]] = [partial(_start_all, network, train, validation, config, per_epoch)]
    kept: list[str] = []
    if config.weights != NO_WEIGHTS:
        phase_starters, kept = list_transfer_phases(network, train, validation, config, folder, class_weights, identity)
    identity["kept"] = kept

    def run_phases(state: State | None) -> History:
        progress, arrays = (state.progress, state.arrays) if state else (Progress(), {})
        if progress.phase == len(phase_starters):  # it had ended: nothing has to be kept again
            check_shapes(arrays, {"network": network.model.variables})
            assign_values(network.model.variables, arrays["network"])
            _log.info("the training had ended, after %d epochs", len(progress.history))
            for row in progress.history:
                on_epoch(row)
            return progress.history
        lowest = np.zeros(validation.count, np.float32)
        for start_phase in phase_starters[progress.phase :]:
            phase = start_phase()
            training = _PhaseTraining(phase, task, config, strategy, class_weights, progress, per_epoch)
            training.restore(arrays)
            if arrays:
                _log.info("resuming after %d epochs and %d steps", len(progress.history), progress.step)
                for row in progress.history:
                    on_epoch(row)
            best = arrays.get("best") or copy_values(phase.variables)
            (lowest,) = arrays.get("lowest") or [lowest]
            (reference,) = arrays.get("reference") or [np.zeros_like(lowest)]
            if not _is_over(progress, phase, config.patience, chosen):
                training.trace_steps()
            start, first = time.perf_counter(), progress.epoch
            while not _is_over(progress, phase, config.patience, chosen):
                with hold_signals() as is_stopped:
                    try:
                        new_row = training.run_epoch(progress, is_stopped)
                    except tf.errors.ResourceExhaustedError as error:
                        raise TrainingError(_explain_out_of_memory(config)) from error
                    if new_row:
                        losses, is_first = training.losses, not progress.history
                        new_row["kept"] = chosen is not None or is_first or not is_better(lowest, losses)
                        if new_row["kept"]:
                            best = training.evaluated_weights
                        if is_first or losses.mean() < lowest.mean():
                            lowest = losses
                        progress.history.append(new_row)
                        on_epoch(new_row)
                        progress.epoch += 1
                        progress.step, progress.seconds, progress.waiting = 0, 0.0, 0.0
                        if progress.epoch == 1 or is_better(losses, reference):
                            progress.improved, reference = progress.epoch, losses
                    save_state(folder, State(identity, progress, training.collect_state(best, reference, lowest)))
                    if new_row:  # last: once it is logged, a kill can't undo it
                        seconds_per_epoch = (time.perf_counter() - start) / (progress.epoch - first)
                        _log.info(
                            "%s: %s; at most %s left in this phase",
                            training.describe_epoch(progress.epoch),
                            _format_row(new_row),
                            format_duration(seconds_per_epoch * (phase.epochs - progress.epoch)),
                        )
            # The next phase starts from the best weights, and the last phase's best weights are exported.
            assign_values(phase.variables, best)
            progress.phase, progress.epoch, progress.improved, arrays = progress.phase + 1, 0, 0, {}
        save_state(folder, State(identity, progress, {"network": copy_values(network.model.variables)}))
        return progress.history

    try:
        history = run_phases(load_state(folder, identity))
    except StateError as error:
        _log.warning("the state in %s can't be used (%s): the training starts over", folder / STATE, error)
        history = run_phases(None)
    # The outputs are brought from standardized targets to their own unit; of other tasks they stay as they are.
    scale_outputs(network.head.get_layer("logits"), [task.deviation], [task.mean])
    return history


def _start_all(
    network: Network, train: LoadedSplit, validation: LoadedSplit, config: TrainerConfig, per_epoch: int
) -> Phase:
    set_batch_norm_momentum(network.base, math.ceil(per_epoch / config.batch_size))
    model, augmented = network.model, config.augmentation.is_on
    return Phase("all", model, model.variables, train, validation, augmented, config.epochs, config.learning_rate)


def is_better(losses: np.ndarray, reference: np.ndarray) -> bool:
    """Returns whether losses are lower than others by more than chance gives.

    That is, by more than one standard error of the mean difference of the images, as in the rule by which a simpler
    tree is preferred (Breiman et al. 1984, section 3.4.3). The difference is taken image by image: both epochs find the
    same images hard, and so it varies far less than the losses do.

    Args:
        losses: of the validation images, float ``[n]``.
        reference: likewise, of an earlier epoch.
    """
    gains = (reference - losses).astype(np.float64)
    return bool(gains.mean() > gains.std() / np.sqrt(max(1, len(gains) - 1)))


def _is_over(progress: Progress, phase: Phase, patience: int, chosen: Chosen | None) -> bool:
    if chosen:
        return progress.epoch >= chosen.epochs[phase.name]
    return progress.epoch >= phase.epochs or progress.epoch - progress.improved >= patience


def count_chosen(history: History) -> dict[str, int]:
    """Returns how many epochs of each phase led to the weights that were kept: none of a phase after the best epoch."""
    return {
        phase: max((count for count, row in enumerate(rows, 1) if row["kept"]), default=0)
        for phase, rows in groupby(history, key=lambda row: row["phase"])
    }


def find_best(history: History) -> dict[str, Any]:
    """Returns the row of the epoch whose weights a training is left with."""
    return [row for row in history if row["kept"]][-1]


def _format_row(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in row.items() if isinstance(value, float))


def _explain_out_of_memory(config: TrainerConfig) -> str:
    return (
        f"The device has too little memory for trainer.batch_size: {config.batch_size}. Try {config.batch_size // 2}"
        if config.batch_size > 1
        else "The device has too little memory for one image at a time. Try a smaller image.size"
    ) + ", or trainer.precision: mixed_float16."


class _PhaseTraining:
    """The optimizer, metrics, batches and compiled steps of a phase."""

    def __init__(
        self,
        phase: Phase,
        task: Task,
        config: TrainerConfig,
        strategy: tf.distribute.Strategy,
        class_weights: np.ndarray | None,
        progress: Progress,
        per_epoch: int,
    ):
        self._phase = phase
        self._config = config
        self._strategy = strategy
        self._count = phase.train.count // phase.views
        self._sizes = divide_epoch(strategy, per_epoch, config.batch_size)
        with strategy.scope():
            rate = make_learning_rate(config, phase.learning_rate, phase.epochs, self._sizes.steps)
            self._optimizer = make_optimizer(config, rate, phase.model)
            self._metrics = RunningMetrics(task)
        eval_batches = make_batches(phase.validation, self._sizes.replica).prefetch(_PREFETCHED)
        self._eval_batches = distribute_batches(strategy, eval_batches)
        # One dataset for all epochs: building and compiling a new one would cost a second per epoch.
        train_batches = self._make_train_batches(len(progress.history), progress.step)
        self._train_batches = iter(train_batches)
        self._train_step = make_train_step(
            strategy,
            phase.model,
            task,
            self._optimizer,
            self._metrics,
            config.batch_size,
            class_weights,
            train_batches.element_spec,
        )
        self._eval_step = make_eval_step(strategy, phase.model, task, self._metrics, self._eval_batches.element_spec)

    def trace_steps(self) -> None:
        """Traces the steps now, so that the first ones, in which signals are held back, take no longer than others."""
        for step in (self._train_step, self._eval_step):
            step.get_concrete_function()

    def collect_state(self, best: list[np.ndarray], reference: np.ndarray, lowest: np.ndarray) -> Arrays:
        """Returns everything that is needed to resume.

        Args:
            best: the weights of the best epoch so far.
            reference: the losses of the epoch that the next ones have to be better than.
            lowest: the lowest losses of an epoch so far.
        """
        values = {name: copy_values(variables) for name, variables in self._list_variables().items()}
        return values | {"best": best, "reference": [reference], "lowest": [lowest]}

    def restore(self, arrays: Arrays) -> None:
        """Restores a state, whole or not at all; does nothing if it is empty.

        Raises:
            StateError: if it doesn't fit.
        """
        if arrays:
            groups = self._list_variables()
            losses = [np.zeros(self._phase.validation.count, np.float32)]
            check_shapes(arrays, groups | {"best": self._phase.variables, "reference": losses, "lowest": losses})
            for name, variables in groups.items():
                assign_values(variables, arrays[name])

    def _list_variables(self) -> dict[str, list[keras.Variable]]:
        return {
            "weights": self._phase.variables,
            "optimizer": self._optimizer.variables,
            "trackers": self._metrics.variables,
        }

    def describe_epoch(self, epoch: int) -> str:
        """Returns the name of an epoch, from 1, for messages."""
        return f"{self._phase.name}, epoch {epoch} of {self._phase.epochs}"

    def run_epoch(self, progress: Progress, is_stopped: Callable[[], bool]) -> dict[str, Any] | None:
        """Trains and evaluates for one epoch, or for what is left of it.

        Returns:
            Its row; or None if it was stopped. ``progress`` then says where, and the next call continues there.
        """
        progress_log = ProgressLog(
            self.describe_epoch(progress.epoch + 1), self._sizes.steps, self._config.batch_size, self._metrics
        )
        if not progress.step:
            self._metrics.reset()
        clock = PassClock(progress.seconds, progress.waiting, progress.step)
        for _ in run_pass(self._train_step, islice(self._train_batches, self._sizes.steps - progress.step), clock):
            progress.seconds, progress.waiting, progress.step = clock.total, clock.waiting, clock.steps
            progress_log.log_step(clock)
            if is_stopped():
                return None
        results = self._metrics.compute_results()
        evaluated = self._evaluate(is_stopped)
        return evaluated and {
            "epoch": len(progress.history) + 1,
            "phase": self._phase.name,
            **results,
            **evaluated,
            "learning_rate": float(self._optimizer.learning_rate),
            "images_per_second": round(self._sizes.examples / clock.total, 1),
            "input_wait": round(clock.waiting / clock.total, 4),
        }

    def _make_train_batches(self, epoch: int, step: int) -> Batches:
        """Returns all batches from a step of an epoch on, the same ones whatever this process has trained so far."""
        sizes, seed, phase = self._sizes, self._config.seed, self._phase
        batches_per_epoch = -(-sizes.examples // sizes.replica)
        skipped = step * (self._config.batch_size // sizes.replica)
        indices = shuffle_epochs(self._count, sizes.examples, sizes.replica, seed, epoch, phase.views)
        batches = read_batches(phase.train, indices.skip(skipped))
        if phase.augmented:
            first = epoch * batches_per_epoch + skipped
            batches = augment_batches(batches, self._config.augmentation, seed, first)
        return distribute_batches(self._strategy, batches.prefetch(_PREFETCHED))

    def _evaluate(self, is_stopped: Callable[[], bool]) -> dict[str, float] | None:
        """Evaluates, with averaged weights if so configured, and keeps a copy of the weights and the images' losses.

        Returns:
            The results; or None if it was stopped. All variables then have the values that they had before.
        """
        training_metrics = copy_values(self._metrics.variables)
        training_weights = copy_values(self._phase.model.trainable_variables) if self._config.ema else None
        self._optimizer.finalize_variable_values(self._phase.model.trainable_variables)
        self._metrics.reset()
        results = []
        for result in run_pass(self._eval_step, iter(self._eval_batches), PassClock()):
            results += self._strategy.experimental_local_results(result)
            if is_stopped():
                break
        self.evaluated_weights = copy_values(self._phase.variables)
        if training_weights:
            assign_values(self._phase.model.trainable_variables, training_weights)
        if is_stopped():
            assign_values(self._metrics.variables, training_metrics)
            return None
        self.losses = np.concatenate([np.asarray(losses, np.float32) for losses in results])
        evaluated = self._metrics.compute_results("val_")
        check_finite(evaluated["val_loss"], "the evaluation")
        return evaluated
