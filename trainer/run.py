"""The ``run_fn`` that TFX's Trainer calls."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base import features as f
from imagepipe.base.names import OPTIMIZED, TRAINING_FOLDER
from trainer import curves, devices, export, inputs, optimize, preview, space, training
from trainer.augmentation import augment
from trainer.config import AugmentationConfig, ServingConfig, TrainerConfig
from trainer.training import FnArgs

_PREVIEWED, _VARIANTS = 6, 7

_log = logging.getLogger("trainer")


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports a model.

    Args:
        fn_args: ``train_files`` and ``eval_files`` (patterns of raw Examples), ``transform_graph_path`` (what Transform
            wrote), ``serving_model_dir`` (the SavedModel to write; training's other results go beside it),
            ``model_run_dir`` (for TensorBoard's logs), ``hyperparameters`` (keras-tuner's configuration of them, whose
            values go over those of ``trainer``; or None) and ``custom_config``: ``task``, ``features``, ``image_size``,
            ``trainer`` and ``serving``, as dicts of the classes that own them, and ``state_dir``, a local folder in
            which a training that was killed finds its state again.

    Raises:
        TrainingError: if there is nothing to learn, training fails for a reason that the user can mend, or the graph
            for serving differs too much from the network.
        WeightsError: if the weights to start from can't be had or don't fit.
    """
    custom = fn_args.custom_config
    found = fn_args.hyperparameters["values"] if fn_args.hyperparameters else {}
    config = space.with_values(TrainerConfig(**custom["trainer"]), found)
    strategy = training.start(config)
    state = training.state_folder(fn_args)
    data = training.load(fn_args, config, strategy, state)
    _log.info("%d training and %d eval images", data.train.count, data.evaluation.count)
    _log.info("computing in %s, on %d device(s)", devices.policy(config.precision), strategy.num_replicas_in_sync)
    writer = tf.summary.create_file_writer(fn_args.model_run_dir)
    trained = training.train(data, config, state, strategy, _to_tensorboard(writer))
    if not devices.is_chief(strategy):
        return

    exported = training.for_export(data, config, trained)
    folder = Path(fn_args.serving_model_dir).parent / TRAINING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    curves.write(trained.history, folder, next(iter(trained.task.metrics())))
    if config.augmentation.is_on:
        _preview(data.train, config.augmentation, folder / "augmentation.png")
    used = custom | {"trainer": config.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(used, indent=1) + "\n")
    with (folder / "summary.txt").open("w") as file:
        for part in (exported.base, exported.head, exported.model):
            part.summary(print_fn=lambda line: file.write(f"{line}\n"))
    exported.model.save(folder / "model.keras")
    exported.base.save_weights(folder / "base.weights.h5")
    output, features = tft.TFTransformOutput(fn_args.transform_graph_path), f.parse_features(custom["features"])
    serving = ServingConfig(**custom["serving"])
    served, made = optimize.for_serving(exported.model, data.task, data.evaluation, serving)
    (folder / OPTIMIZED).write_text(json.dumps(made) + "\n")
    export.save(served, output, features, data.task, config.label_thresholds, fn_args.serving_model_dir)
    _log.info("exported to %s", fn_args.serving_model_dir)
    shutil.rmtree(state)


def _to_tensorboard(writer: tf.summary.SummaryWriter) -> Callable[[dict[str, Any]], None]:
    def report(row: dict[str, Any]) -> None:
        with writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if isinstance(value, float):
                    split, metric = ("eval", name[4:]) if name.startswith("val_") else ("train", name)
                    tf.summary.scalar(f"{split}/{metric}", value)
        writer.flush()

    return report


def _preview(train: inputs.Split, config: AugmentationConfig, path: Path) -> None:
    """Draws what augmentation makes of the first images."""
    images = train.images.read(np.arange(min(_PREVIEWED, train.count)))
    targets = tf.constant(train.targets[: len(images)])
    change = augment(config)
    variants = [change(tf.constant(images), targets, tf.constant([0, n]))[0].numpy() for n in range(_VARIANTS)]
    preview.write(images, np.stack(variants, axis=1), path)
