"""The ``run_fn`` that TFX's Trainer calls."""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import absl.logging
import keras
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from trainer import checks, curves, devices, export, inputs, model, preview, tasks
from trainer.augmentation import augment
from trainer.config import NO_WEIGHTS, AugmentationConfig, TrainerConfig
from trainer.fit import fit
from trainer.normalization import Statistics, channel_statistics
from transform import features as f
from transform import graph

TRAINING_FOLDER = "training"
"""Folder beside the SavedModel: curves.png, history.json, augmentation.png, config.json, summary.txt, model.keras and
base.weights.h5."""

_PREVIEWED, _VARIANTS = 6, 7

_log = logging.getLogger("trainer.progress")


class FnArgs(Protocol):
    """What of TFX's ``FnArgs`` is used here."""

    train_files: list[str]
    eval_files: list[str]
    transform_output: str
    serving_model_dir: str
    model_run_dir: str
    custom_config: dict[str, Any]


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports a model.

    Args:
        fn_args: ``train_files`` and ``eval_files`` (patterns of raw Examples), ``transform_output`` (what Transform
            wrote), ``serving_model_dir`` (the SavedModel to write; training's other results go beside it),
            ``model_run_dir`` (for TensorBoard's logs) and ``custom_config``: ``task``, ``features``, ``image_size`` and
            ``trainer``, as dicts of the classes that own them, and ``state_dir``, a local folder in which a training
            that was killed finds its state again.

    Raises:
        TrainingError: if there is nothing to learn, or training fails for a reason that the user can mend.
        WeightsError: if the weights to start from can't be had or don't fit.
    """
    custom = fn_args.custom_config
    config = TrainerConfig(**custom["trainer"])
    features = f.from_json(custom["features"])
    strategy = devices.strategy(config.distribution)  # before anything else runs on a device
    absl.logging.set_verbosity(absl.logging.INFO)  # the Trainer's log is where a person looks for the epochs
    keras.utils.set_random_seed(config.seed)
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()  # on CPUs the same seed gives the same weights without it

    output = tft.TFTransformOutput(fn_args.transform_output)
    names = export.labels(custom["task"], output, features)
    task = tasks.make(custom["task"], len(names), config)
    tasks.thresholds(names, config.label_thresholds)  # refuses what can't be exported before it is trained
    state = _state_folder(fn_args)
    train, evaluation = _load(fn_args, output, features, task, strategy, state)
    files = {"train": fn_args.train_files, "eval": fn_args.eval_files}
    checks.check(
        task,
        names,
        {"train": train, "eval": evaluation},
        lambda split: _raw_labels(files[split], features.label, output.raw_feature_spec()[features.label]),
    )
    _log.info("%d training and %d eval images", train.count, evaluation.count)

    statistics = _statistics(train, config)
    side: dict[str, int | None] = dict.fromkeys(features.numeric)
    for name in features.categorical:
        side[name] = output.vocabulary_size_by_name(features.vocabulary(name)) + 1  # one for unseen values
    size = tuple(custom["image_size"])
    precision = devices.policy(config.precision)
    _log.info("computing in %s, on %d device(s)", precision, strategy.num_replicas_in_sync)
    with strategy.scope(), _computing_in(precision):
        network = model.build(size, task, side, config, statistics)
    writer = tf.summary.create_file_writer(fn_args.model_run_dir)
    weights = checks.class_weights(config.class_weights, names, train.targets)
    history = fit(network, task, train, evaluation, config, state, strategy, weights, _to_tensorboard(writer))
    if not devices.is_chief(strategy):
        return

    # Whatever it was trained in and on, it is exported in float32 and for one device.
    exported = model.build(size, task, side, config.model_copy(update={"weights": NO_WEIGHTS}), statistics)
    exported.model.set_weights(network.model.get_weights())
    folder = Path(fn_args.serving_model_dir).parent / TRAINING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    curves.write(history, folder, next(iter(task.metrics())))
    if config.augmentation.is_on:
        _preview(train, config.augmentation, folder / "augmentation.png")
    (folder / "config.json").write_text(json.dumps(custom, indent=1) + "\n")
    with (folder / "summary.txt").open("w") as file:
        for part in (exported.base, exported.head, exported.model):
            part.summary(print_fn=lambda line: file.write(f"{line}\n"))
    exported.model.save(folder / "model.keras")
    exported.base.save_weights(folder / "base.weights.h5")
    export.save(exported.model, output, features, task.name, config.label_thresholds, fn_args.serving_model_dir)
    _log.info("exported to %s", fn_args.serving_model_dir)
    shutil.rmtree(state)


def _state_folder(fn_args: FnArgs) -> Path:
    """The folder of this very training: of the same data, preprocessing and configuration."""
    identity = [fn_args.train_files, fn_args.eval_files, fn_args.transform_output, fn_args.custom_config]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(fn_args.custom_config["state_dir"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _load(
    fn_args: FnArgs,
    output: tft.TFTransformOutput,
    features: f.Features,
    task: tasks.Task,
    strategy: tf.distribute.Strategy,
    folder: Path,
) -> tuple[inputs.Split, inputs.Split]:
    """The train and the eval split; of several workers, this one's share of them."""
    _owner, transform = graph.load(output)
    parse = export.example_parser(output, features, with_label=True)
    worker, workers = devices.worker(strategy)
    train, evaluation = (
        inputs.load(
            inputs.records(patterns, worker, workers),
            lambda serialized: transform(parse(serialized)),
            task.encode,
            folder / f"{name}-{worker}.pixels",
        )
        for name, patterns in (("train", fn_args.train_files), ("eval", fn_args.eval_files))
    )
    return train, evaluation


def _raw_labels(patterns: list[str], name: str, spec: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in inputs.records(patterns).batch(256):
        found = tf.io.parse_example(batch, {name: spec})[name]
        values = found.values if isinstance(found, tf.SparseTensor) else tf.reshape(found, [-1])
        texts = values if values.dtype == tf.string else tf.strings.as_string(values)
        counts.update(text.decode(errors="replace") for text in texts.numpy())
    return counts


def _statistics(train: inputs.Split, config: TrainerConfig) -> Statistics | None:
    if config.normalization == "backbone":
        return None
    return channel_statistics(batch[f.IMAGE] for batch, _ in inputs.batches(train, config.batch_size))


@contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    """Lets layers that are made meanwhile compute in a precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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
    images = train.large[1].read(np.arange(min(_PREVIEWED, train.count)))
    targets = tf.constant(train.targets[: len(images)])
    change = augment(config)
    variants = [change(tf.constant(images), targets, tf.constant([0, n]))[0].numpy() for n in range(_VARIANTS)]
    preview.write(images, np.stack(variants, axis=1), path)
