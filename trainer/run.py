"""The ``run_fn`` that TFX's Trainer calls."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf
import tensorflow_transform as tft
from absl import logging

from trainer import curves, export, inputs, model, tasks
from trainer.config import TrainerConfig
from trainer.fit import fit
from transform import features as f
from transform import graph

TRAINING_FOLDER = "training"
"""Folder beside the SavedModel: curves.png, history.json, config.json, summary.txt, model.keras, base.weights.h5."""


class FnArgs(Protocol):
    """What of TFX's ``FnArgs`` is used here."""

    train_files: list[str]
    eval_files: list[str]
    transform_output: str
    serving_model_dir: str
    custom_config: dict[str, Any]


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports a model.

    Args:
        fn_args: ``train_files`` and ``eval_files`` (patterns of raw Examples), ``transform_output`` (what Transform
            wrote), ``serving_model_dir`` (the SavedModel to write; training's other results go beside it) and
            ``custom_config``: ``task``, ``features``, ``image_size`` and ``trainer``, as dicts of the classes that own
            them.
    """
    custom = fn_args.custom_config
    features = f.from_json(custom["features"])
    config = TrainerConfig(**custom["trainer"])
    output = tft.TFTransformOutput(fn_args.transform_output)
    folder = Path(fn_args.serving_model_dir).parent / TRAINING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(config.seed)
    logging.set_verbosity(logging.INFO)  # the Trainer's log is where a person looks for the epochs

    cache_dir = tempfile.mkdtemp(dir=folder)  # on the workdir's disk: /tmp is often small, or memory
    try:
        names = export.labels(custom["task"], output, features)
        task = tasks.make(custom["task"], len(names), config)
        tasks.thresholds(names, config.label_thresholds)  # refuses what can't be exported before it is trained
        _, transform = graph.load(output)
        parse = export.example_parser(output, features, with_label=True)
        train, evaluation = (
            inputs.load(patterns, lambda serialized: transform(parse(serialized)), cache_dir, task.known)
            for patterns in (fn_args.train_files, fn_args.eval_files)
        )
        logging.info("%d training and %d eval images", train.count, evaluation.count)

        side: dict[str, int | None] = dict.fromkeys(features.numeric)
        for name in features.categorical:
            side[name] = output.vocabulary_size_by_name(features.vocabulary(name)) + 1  # one for unseen values
        network, base = model.build(tuple(custom["image_size"]), task.outputs, side, config, task.activation)
        history = fit(network, base, train, evaluation, config, task)
    finally:
        shutil.rmtree(cache_dir, ignore_errors=True)

    curves.write(history, folder, next(iter(task.metrics())))
    (folder / "config.json").write_text(json.dumps(custom, indent=1) + "\n")
    with (folder / "summary.txt").open("w") as file:
        network.summary(print_fn=lambda line: file.write(f"{line}\n"), expand_nested=False)
    network = keras.Model(network.input, network.output, name=network.name)  # the same layers, without the optimizer
    network.save(folder / "model.keras")
    base.save_weights(folder / "base.weights.h5")
    export.save(network, output, features, task.name, config.label_thresholds, fn_args.serving_model_dir)
    logging.info("exported to %s, loads as TensorFlow %s", fn_args.serving_model_dir, tf.__version__)
