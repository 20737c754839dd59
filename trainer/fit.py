"""The training schedule, and what it leaves behind for a person to look at."""

import math
import time
from typing import Any

import keras
from absl import logging

from trainer import inputs, model
from trainer.config import NO_WEIGHTS, TrainerConfig
from trainer.tasks import Task

History = list[dict[str, Any]]


class _Log(keras.callbacks.Callback):
    """Appends a row an epoch to a history, and logs it with its throughput."""

    def __init__(self, history: History, phase: str, images: int):
        super().__init__()
        self._history = history
        self._phase = phase
        self._images = images

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.monotonic()
        self._train_seconds = 0.0

    def on_test_begin(self, logs: Any = None) -> None:
        self._train_seconds = time.monotonic() - self._start

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        row = {
            "epoch": len(self._history) + 1,
            "phase": self._phase,
            **{name: float(value) for name, value in (logs or {}).items()},
            "images_per_second": round(self._images / self._train_seconds, 1),
        }
        self._history.append(row)
        logging.info(
            "epoch %(epoch)d (%(phase)s): loss %(loss).4f, eval loss %(val_loss).4f, %(images_per_second).0f images/s",
            row,
        )


def fit(
    network: keras.Model,
    base: keras.Model,
    train: inputs.Split,
    evaluation: inputs.Split,
    config: TrainerConfig,
    task: Task,
) -> History:
    """Trains ``network`` in place and leaves it with the weights of its best epoch (least loss on the eval split).

    From scratch all layers are trained at once. With weights, first the head on the frozen base, then the base's upper
    blocks as well, at a lower rate.

    Returns:
        A row an epoch: ``epoch`` (from 1), ``phase``, ``loss``, ``accuracy``, ``val_loss``, ``val_accuracy``,
        ``images_per_second`` (of training alone).
    """
    train_batches, eval_batches = (
        batches.map(lambda images, target: (images, task.encode(target)))
        for batches in (
            inputs.training_batches(train, config.batch_size, config.seed),
            inputs.evaluation_batches(evaluation, config.batch_size),
        )
    )
    history: History = []

    def phase(name: str, epochs: int, learning_rate: float) -> float:
        steps = math.ceil(train.count / config.batch_size)
        network.compile(
            optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)),
            loss=task.loss,
            metrics=list(task.metrics().values()),
        )
        stop = keras.callbacks.EarlyStopping(patience=config.patience, restore_best_weights=True)
        network.fit(
            train_batches,
            validation_data=eval_batches,
            epochs=epochs,
            verbose=0,
            callbacks=[_Log(history, name, train.count), stop],
        )
        return min(row["val_loss"] for row in history if row["phase"] == name)

    if config.weights == NO_WEIGHTS:
        model.set_batch_norm_momentum(base, math.ceil(train.count / config.batch_size))
        phase("all", config.epochs, config.learning_rate)
        return history

    base.trainable = False
    head_loss = phase("head", config.head_epochs, config.learning_rate)
    head_weights = network.get_weights()
    model.unfreeze_after(base, config.unfreeze_after)
    if phase("upper blocks", config.epochs, config.fine_tune_learning_rate) > head_loss:
        network.set_weights(head_weights)
    return history
