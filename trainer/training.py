"""One training, from Examples to a network with its best weights: the Trainer does one, the Tuner one a trial."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base import features as f
from imagepipe.base.names import TaskName
from trainer import checks, devices, export, inputs, model, tasks
from trainer.config import NO_WEIGHTS, TrainerConfig, list_thresholds
from trainer.fit import History, fit
from trainer.normalization import Statistics, channel_statistics
from transform import graph

_log = logging.getLogger("trainer")


class FnArgs(Protocol):
    """What of TFX's ``FnArgs`` is used here, of the Trainer's and of the Tuner's."""

    train_files: list[str]
    eval_files: list[str]
    transform_graph_path: str
    serving_model_dir: str
    model_run_dir: str
    hyperparameters: dict[str, Any] | None
    custom_config: dict[str, Any]


@dataclass(frozen=True)
class Data:
    """What is learned, and from what: the same for all trainings of a search.

    Attributes:
        task: the task's name.
        names: of the task's outputs.
        image_size: (height, width) in pixels.
        side: the side features, see ``model.build``.
        train: the train split: of several workers, this one's share of it.
        evaluation: the eval split, likewise.
    """

    task: TaskName
    names: list[str]
    image_size: tuple[int, int]
    side: dict[str, int | None]
    train: inputs.Split
    evaluation: inputs.Split


class Trained(NamedTuple):
    """What comes out of a training.

    Attributes:
        network: with the weights of its best epoch.
        task: what it has learned.
        statistics: see ``model.build``.
        history: see ``fit``.
    """

    network: model.Network
    task: tasks.Task
    statistics: Statistics | None
    history: History


def start(config: TrainerConfig) -> tf.distribute.Strategy:
    """Sets the process up for training, and says what it is spread over."""
    strategy = devices.strategy(config.distribution)  # before anything else runs on a device
    _log.setLevel(logging.INFO)  # the log is where a person looks for the epochs
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()  # on CPUs the same seed gives the same weights without it
    return strategy


def state_folder(fn_args: FnArgs) -> Path:
    """The folder of this very training or search: of the same data, preprocessing and configuration."""
    identity = [
        fn_args.train_files,
        fn_args.eval_files,
        fn_args.transform_graph_path,
        fn_args.hyperparameters,
        fn_args.custom_config,
    ]
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(fn_args.custom_config["state_dir"]) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load(fn_args: FnArgs, config: TrainerConfig, strategy: tf.distribute.Strategy, folder: Path) -> Data:
    """Loads the data, and checks that there is something to learn.

    Args:
        fn_args: see ``trainer.run.run_fn``.
        config: what the data has to fit.
        strategy: over whose workers it is divided.
        folder: an existing local folder, for the pixels.

    Raises:
        TrainingError: if there is nothing to learn.
        ValueError: if the configuration names a label that there isn't.
    """
    custom = fn_args.custom_config
    features = f.parse_features(custom["features"])
    output = tft.TFTransformOutput(fn_args.transform_graph_path)
    names = export.labels(custom["task"], output, features)
    task = tasks.make(custom["task"], len(names), config)
    list_thresholds(names, config.label_thresholds)  # refuses what can't be exported before it is trained
    patterns = {"train": fn_args.train_files, "eval": fn_args.eval_files}
    _owner, transform = graph.load(output)
    parse = export.example_parser(output, features, with_label=True)
    worker, workers = devices.worker(strategy)
    splits = {
        name: inputs.load(
            inputs.records(files, worker, workers),
            lambda serialized: transform(parse(serialized)),
            task.encode,
            folder / f"{name}-{worker}.pixels",
        )
        for name, files in patterns.items()
    }
    spec = output.raw_feature_spec()[features.label]
    checks.check(task, names, splits, lambda split: _raw_labels(patterns[split], features.label, spec))
    side: dict[str, int | None] = dict.fromkeys(features.numeric)
    for name in features.categorical:
        side[name] = output.vocabulary_size_by_name(features.vocabulary(name)) + 1  # one for unseen values
    height, width = custom["image_size"]
    return Data(custom["task"], names, (height, width), side, splits["train"], splits["eval"])


def _raw_labels(patterns: list[str], name: str, spec: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in inputs.records(patterns).batch(256):
        found = tf.io.parse_example(batch, {name: spec})[name]
        values = found.values if isinstance(found, tf.SparseTensor) else tf.reshape(found, [-1])
        texts = values if values.dtype == tf.string else tf.strings.as_string(values)
        counts.update(text.decode(errors="replace") for text in texts.numpy())
    return counts


def train(
    data: Data,
    config: TrainerConfig,
    folder: Path,
    strategy: tf.distribute.Strategy,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Trained:
    """Builds a network and trains it: the same data and configuration give the same weights.

    Args:
        data: what it learns.
        config: how.
        folder: see ``fit``.
        strategy: what it is spread over.
        report: see ``fit``.

    Raises:
        TrainingError: if training fails for a reason that the user can mend.
        WeightsError: if the weights to start from can't be had or don't fit.
    """
    # What was trained in this process before would go on counting in the names of layers, by which they are unfrozen.
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    task = tasks.make(data.task, len(data.names), config)
    statistics = _statistics(data.train, config)
    with strategy.scope(), _computing_in(devices.policy(config.precision)):
        network = model.build(data.image_size, task, data.side, config, statistics)
    weights = checks.class_weights(config.class_weights, data.names, data.train.targets)
    history = fit(network, task, data.train, data.evaluation, config, folder, strategy, weights, report)
    return Trained(network, task, statistics, history)


def for_export(data: Data, config: TrainerConfig, trained: Trained) -> model.Network:
    """The trained network, whatever it was trained in and on, in float32 and for one device."""
    without = config.model_copy(update={"weights": NO_WEIGHTS})  # they are replaced anyway
    network = model.build(data.image_size, trained.task, data.side, without, trained.statistics)
    network.model.set_weights(trained.network.model.get_weights())
    return network


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
