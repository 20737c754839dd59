"""The Examples that a run reads: a dataset that ``imagepipe ingest`` made, or TFRecords made elsewhere."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ingest import dataset
from pipeline.config import Config, ConfigError

SPLITS = ("train", "eval", "test")
_GLOB_CHARACTERS = "*?["


@dataclass(frozen=True)
class Source:
    """TFRecord files.

    Attributes:
        base: the folder that the patterns are relative to.
        patterns: by split, those of its files; empty if there is one set of records that is yet to be split.
        all: the pattern of that one set.
    """

    base: str
    patterns: dict[str, str]
    all: str = ""


def find(config: Config) -> Source:
    """Finds the Examples of ``data.path`` and checks that they can be trained on.

    Raises:
        ConfigError: if there are none, or they lack what the configuration names.
    """
    path = config.data.path.rstrip("/")
    source = _ingested(path, config) if tf.io.gfile.exists(f"{path}/{dataset.DESCRIPTION}") else _made_elsewhere(path)
    _check_features(source, config)
    return source


def _ingested(path: str, config: Config) -> Source:
    try:
        made = dataset.load(path)
    except dataset.IngestError as error:
        raise ConfigError(f"data.path: {error}") from error
    if made.options.task != config.task:
        raise ConfigError(f"task: {config.task}, but {path} was ingested for {made.options.task}")
    for split in ("train", "eval"):
        if split not in made.splits or not made.splits[split].records:
            raise ConfigError(
                f"data.path: {path} has no image in its {split} split; ingest more images, or with other --splits"
            )
    if len(made.splits["train"].labels) < 2:
        only = ", ".join(made.splits["train"].labels)
        raise ConfigError(f"data.path: {path} has only one class to train on ({only}); a classifier needs two")
    return Source(
        path, {split: f"{split}/*.tfrecord*" for split in SPLITS if split in made.splits and made.splits[split].records}
    )


def _made_elsewhere(path: str) -> Source:
    if any(character in path for character in _GLOB_CHARACTERS):
        base, _, pattern = path.rpartition("/")
        source = Source(base, {}, pattern)
    elif tf.io.gfile.isdir(path):
        found = {split: f"{split}/*" for split in SPLITS if tf.io.gfile.glob(f"{path}/{split}/*")}
        source = Source(path, found if {"train", "eval"} <= set(found) else {}, "*")
    else:
        base, _, name = path.rpartition("/")
        source = Source(base, {}, name)
    if not _files(source):
        raise ConfigError(f"data.path: no file matches {path}. 'imagepipe ingest FOLDER --out {path}' makes a dataset.")
    return source


def _files(source: Source) -> list[str]:
    pattern = next(iter(source.patterns.values()), source.all)
    return sorted(file for file in tf.io.gfile.glob(f"{source.base}/{pattern}") if not tf.io.gfile.isdir(file))


def _check_features(source: Source, config: Config) -> None:
    """Compares the first record with the names that the configuration gives."""
    file = _files(source)[0]
    compression = "GZIP" if file.endswith(".gz") else ""
    try:
        first = next(iter(tf.data.TFRecordDataset(file, compression_type=compression).take(1)), None)
        example = tf.train.Example.FromString(b"" if first is None else first.numpy())
    except Exception as error:
        raise ConfigError(f"data.path: {file} is not a TFRecord file of tf.train.Examples ({error})") from error
    kinds = {name: feature.WhichOneof("kind") for name, feature in example.features.feature.items()}
    features = config.data.features
    for key, allowed in (("input", {"bytes_list"}), ("label", {"bytes_list", "int64_list"})):
        name = getattr(features, key)
        if kinds.get(name) not in allowed:
            raise ConfigError(
                f"data.features.{key}: the first record of {file} has no feature '{name}' of the right type; "
                f"it has {_list(kinds)}"
            )


def _list(kinds: dict[str, Any]) -> str:
    found = [f"{name} ({str(kind).removesuffix('_list')})" for name, kind in sorted(kinds.items())]
    return ", ".join(found) or "no features at all"
