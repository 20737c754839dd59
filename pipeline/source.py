"""The Examples that a run reads: a dataset that ``imagepipe ingest`` made, or TFRecords made elsewhere."""

import hashlib
import json
from dataclasses import dataclass

import tensorflow as tf
from google.protobuf.message import DecodeError

from imagepipe.base.errors import ConfigError, IngestError
from imagepipe.base.features import SIZE
from imagepipe.base.names import TaskName
from imagepipe.ingest import dataset
from pipeline.config import Config
from pipeline.runs import provenance
from trainer import tasks

SPLITS = ("train", "eval", "test")
_GLOB_CHARACTERS = "*?["
_RECORDS_CHECKED = 100  # a side feature may be missing in some
_BYTES, _INTEGERS, _FLOATS = {"bytes"}, {"int64"}, {"float"}


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


def find_examples(config: Config) -> Source:
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
    except IngestError as error:
        raise ConfigError(f"data.path: {error}") from error
    if made.options.task != config.task:
        raise ConfigError(f"task: {config.task}, but {path} was ingested for {made.options.task}")
    for split in ("train", "eval"):
        if split not in made.splits or not made.splits[split].records:
            raise ConfigError(
                f"data.path: {path} has no image in its {split} split; ingest more images, or with other --splits"
            )
    names = list(made.splits["train"].labels)
    if config.task == "classification" and len(names) < 2:
        raise ConfigError(
            f"data.path: {path} has only one class to train on ({', '.join(names)}); a classifier needs two"
        )
    try:
        tasks.thresholds(names, config.trainer.label_thresholds)
    except ValueError as error:
        raise ConfigError(str(error)) from error
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
    return _matches(source, next(iter(source.patterns.values()), source.all))


def _matches(source: Source, pattern: str) -> list[str]:
    return sorted(file for file in tf.io.gfile.glob(f"{source.base}/{pattern}") if not tf.io.gfile.isdir(file))


def compute_fingerprint(path: str, source: Source) -> provenance.Data:
    """What the Examples at ``path`` are known by, ``source`` being what was found there."""
    if made := provenance.ingested(path):
        return made
    digest = hashlib.sha256()
    for name, pattern in (source.patterns or {"": source.all}).items():
        for file in _matches(source, pattern):
            stat = tf.io.gfile.stat(file)
            line = [name, file.removeprefix(source.base), stat.length, stat.mtime_nsec]
            digest.update(json.dumps(line).encode() + b"\n")
    return provenance.Data(path=path, fingerprint=digest.hexdigest(), of="files")


def label_types(task: TaskName) -> list[str]:
    """The types that a label may have in an Example: of ``bytes``, ``int64`` and ``float``."""
    return sorted(_FLOATS | _INTEGERS if task == "regression" else _BYTES | _INTEGERS)


def _check_features(source: Source, config: Config) -> None:
    """Compares the first records with the names that the configuration gives."""
    file = _files(source)[0]
    compression = "GZIP" if file.endswith(".gz") else ""
    kinds: dict[str, str] = {}
    values: dict[str, int] = {}
    try:
        for record in tf.data.TFRecordDataset(file, compression_type=compression).take(_RECORDS_CHECKED):
            feature = tf.train.Example.FromString(record.numpy()).features.feature
            for name in feature:
                if kind := feature[name].WhichOneof("kind"):
                    kinds[name] = kind.removesuffix("_list")
                    values[name] = max(values.get(name, 0), len(getattr(feature[name], kind).value))
    except (tf.errors.OpError, DecodeError) as error:
        raise ConfigError(f"data.path: {file} is not a TFRecord file of tf.train.Examples ({error})") from error

    features = config.data.features
    wanted = [("data.features.input", features.input, _BYTES)]
    wanted += [("data.features.label", features.label, set(label_types(config.task)))]
    wanted += [("data.features.numeric", name, _FLOATS | _INTEGERS) for name in features.numeric]
    wanted += [("data.features.categorical", name, _BYTES | _INTEGERS) for name in features.categorical]
    wanted += [("evaluation.slices", name, _BYTES | _INTEGERS) for name in config.evaluation.slices]
    for number, rule in enumerate(config.evaluation.rules):
        columns = sorted(rule.slice.keys() - {SIZE})
        wanted += [(f"evaluation.rules.{number}.slice", name, _BYTES | _INTEGERS) for name in columns]
    for key, name, allowed in wanted:
        if kinds.get(name) not in allowed:
            found = ", ".join(f"{n} ({kind})" for n, kind in sorted(kinds.items()))
            needed = f" (task: {config.task})" if key == "data.features.label" else ""
            raise ConfigError(
                f"{key}: no record at the start of {file} has a feature '{name}' of type "
                f"{' or '.join(sorted(allowed))}{needed}; there are {found or 'no features at all'}"
            )
    if config.task != "multilabel" and values[features.label] > 1:
        raise ConfigError(
            f"task: {config.task}, but in {file} an image has {values[features.label]} values of '{features.label}'. "
            "Images with several labels are for task: multilabel."
        )
