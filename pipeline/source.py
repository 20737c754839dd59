"""The Examples that a run reads: a dataset that ``imagepipe ingest`` made, or TFRecords made elsewhere."""

import glob
import gzip
import hashlib
import itertools
import json
import shlex
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.errors import ConfigError, IngestError
from imagepipe.base.features import SIZE
from imagepipe.base.label_map import read_label_map
from imagepipe.base.labels import describe_ids, describe_unknown
from imagepipe.base.metrics import TOP_K_METRIC
from imagepipe.base.names import TaskName
from imagepipe.base.splits import TEST, TRAIN
from imagepipe.ingest import dataset
from pipeline.config import Config
from pipeline.demands import list_demands
from pipeline.layouts import find_pattern, find_patterns
from pipeline.runs import provenance

SPLITS = ("train", "eval", "test")
_RECORDS_CHECKED = 100  # a side feature may be missing in some
_BYTES, _INTEGERS, _FLOATS = {"bytes"}, {"int64"}, {"float"}


@dataclass(frozen=True)
class Source:
    """TFRecord files.

    Attributes:
        base: the folder that the patterns are relative to, as a pattern itself: TFX joins the two.
        patterns: the pattern of each split's files; empty if there is one set of records that is yet to be split.
        all: the pattern of that one set.
        is_foreign: whether they were made elsewhere, so that images may be of any kind.
        label_names: of labels that are whole numbers; None if they are their own names.
    """

    base: str
    patterns: dict[str, str]
    all: str = ""
    is_foreign: bool = False
    label_names: dict[int, str] | None = None


def find_examples(config: Config) -> Source:
    """Finds the Examples of ``data.path`` and checks that they can be trained on.

    Raises:
        ConfigError: if there are none, or they lack what the configuration names.
        OSError: if they can't be read.
    """
    path = config.data.path.rstrip("/")
    is_dataset = filesystem.exists(f"{path}/{dataset.DESCRIPTION}")
    source = _find_dataset(path, config) if is_dataset else _find_records(path)
    _check_features(source, config)
    if config.data.features.label_map:
        names = read_label_map(config.data.features.label_map)
        _check_mapped_names(set(names.values()), config)
        source = replace(source, label_names=names)
    return source


def _find_dataset(path: str, config: Config) -> Source:
    try:
        description = dataset.load(path)
    except IngestError as error:
        raise ConfigError(f"data.path: {error}") from error
    if description.options.task != config.task:
        raise ConfigError(f"task: {config.task}, but {path} was ingested for {description.options.task}")
    splits = [name for name in SPLITS if name in description.splits and description.splits[name].records]
    for name in ("train", "eval"):
        if name not in splits:
            raise ConfigError(
                f"data.path: {path} has no image in its {name} split; ingest more images, or with other --splits"
            )
    labels = list(description.splits["train"].labels)
    if config.task == "classification" and len(labels) < 2:
        raise ConfigError(
            f"data.path: {path} has only one class to train on ({', '.join(labels)}); a classifier needs two"
        )
    if message := describe_ids(description.records, (split.labels for split in description.splits.values())):
        raise ConfigError(f"data.path: the label of {path} {message}")
    demanded = {*config.evaluation.thresholds, *(rule.metric for rule in config.evaluation.rules)}
    if TOP_K_METRIC in demanded and len(labels) <= config.evaluation.top_k:
        raise ConfigError(
            f"evaluation.top_k: {config.evaluation.top_k}, but {path} has {len(labels)} classes to train on, so that "
            f"{TOP_K_METRIC} would always be 1. Set a smaller one, or demand another metric."
        )
    _check_label_names(description, config)
    return Source(glob.escape(path), {name: f"{name}/*.tfrecord*" for name in splits})


def _check_label_names(description: dataset.Dataset, config: Config) -> None:
    """Refuses weights, thresholds and rules of labels that their split lacks. DataCheck does so for other columns."""
    for key, column, values, split in list_demands(config):
        labels = description.splits[split].labels
        if column == "label" and (message := describe_unknown(values, labels, f"labels of the split {split}")):
            raise ConfigError(f"{key}: {message}")


def _check_mapped_names(names: set[str], config: Config) -> None:
    """Refuses weights, thresholds and rules of labels that a label map lacks. DataCheck does so for other columns."""
    for key, column, values, _ in list_demands(config):
        if column == config.data.features.label and (
            message := describe_unknown(values, names, "names of data.features.label_map")
        ):
            raise ConfigError(f"{key}: {message}")


def _find_records(path: str) -> Source:
    escaped = glob.escape(path)
    if filesystem.is_folder(path):
        patterns = find_patterns(path)
        if len(patterns) < 2:  # without names of splits, or train only
            source = Source(escaped, {}, patterns.get(TRAIN) or find_pattern(path), is_foreign=True)
        else:
            source = Source(escaped, patterns, is_foreign=True)
    else:
        # A name that exists is a file, even with a [ in it.
        base, _, name = (escaped if filesystem.exists(path) else path).rpartition("/")
        source = Source(base, {}, name, is_foreign=True)
    if not next(list_examples(source), None):
        command = shlex.join(["imagepipe", "ingest", "FOLDER", "--out", path])
        raise ConfigError(f"data.path: no file matches {path}. A dataset is made by: {command}")
    return source


def _list_files(source: Source, pattern: str) -> list[str]:
    """Returns the files that match one of the patterns of a source."""
    return [path for path in filesystem.glob(f"{source.base}/{pattern}") if not filesystem.is_folder(path)]


def list_examples(source: Source) -> Iterator[tuple[str, str, str]]:
    """Yields split ("" if there are none), path and path below the base of every file of a source."""
    for name, pattern in (source.patterns or {"": source.all}).items():
        for file in _list_files(source, pattern):
            yield name, file, file.split("/", source.base.count("/") + 1)[-1]


def compute_fingerprint(path: str, source: Source) -> provenance.DatasetOrigin:
    """Returns where the Examples of ``source``, found at ``path``, come from, with a fingerprint that tells changes."""
    if not source.is_foreign and (origin := provenance.fingerprint_dataset(path)):
        return origin
    digest = hashlib.sha256()
    for name, file, below in list_examples(source):
        line = [name, f"/{below}", filesystem.size(file), filesystem.modified(file)]
        digest.update(json.dumps(line).encode() + b"\n")
    return provenance.DatasetOrigin(path=path, fingerprint=digest.hexdigest(), of="files")


def hash_schema(path: str) -> str:
    """Returns a hash of the curated schema: its name stays when a person corrects it."""
    return hashlib.sha256(filesystem.read_bytes(path)).hexdigest()


def list_label_types(task: TaskName) -> list[str]:
    """Returns the types that a label may have in an Example, of ``bytes``, ``int64`` and ``float``."""
    return sorted(_FLOATS | _INTEGERS if task == "regression" else _BYTES | _INTEGERS)


def _check_features(source: Source, config: Config) -> None:
    """Compares the first records of each split with the names that the configuration gives.

    What is trained and evaluated on needs images and labels; side features may be rare, and are looked for in the first
    split only. What is there has one type in all splits.
    """
    features = config.data.features
    first, first_types = "", dict[str, str]()
    for split, pattern in (source.patterns or {"": source.all}).items():
        file, types, counts = _describe_first_records(_list_files(source, pattern))
        if not types and split == TEST:
            continue
        required = {features.input} if split == TEST else {features.input, features.label}
        for key, name, allowed in _list_wanted_features(config):
            kinds = {first_types[name]} if name in first_types else allowed
            is_missing = name not in types and (not first or name in required)
            if is_missing or types.get(name) not in {None, *kinds}:
                present = ", ".join(f"{n} ({kind})" for n, kind in sorted(types.items()))
                task = f" (task: {config.task})" if key == "data.features.label" else ""
                reason = f", as in {first}" if name in first_types else task
                raise ConfigError(
                    f"{key}: no record at the start of {file} has a feature '{name}' of type "
                    f"{' or '.join(sorted(kinds))}{reason}; there are {present or 'no features at all'}"
                )
        if not first:
            first, first_types = file, types
        if counts[features.input] != 1:
            raise ConfigError(
                f"data.features.input: in {file} a record has {counts[features.input]} values of '{features.input}'. "
                "A record has one image: write one record for each"
            )
        if config.task != "multilabel" and (count := counts.get(features.label, 0)) > 1:
            raise ConfigError(
                f"task: {config.task}, but in {file} an image has {count} values of '{features.label}'. "
                "Images with several labels are for task: multilabel."
            )


def _describe_first_records(files: Sequence[str]) -> tuple[str, dict[str, str], dict[str, int]]:
    """Returns the first file that has records, and types and maximum counts of values of their features by name.

    Raises:
        ConfigError: a file is none of Examples.
    """
    types: dict[str, str] = {}
    counts: dict[str, int] = {}
    for file in files:
        try:
            for record in itertools.islice(_read_records(file), _RECORDS_CHECKED):
                for name, (kind, count) in tfrecord.describe_example(record).items():
                    types[name] = kind
                    counts[name] = max(counts.get(name, 0), count)
        except (ValueError, OSError, EOFError, zlib.error) as error:
            raise ConfigError(f"data.path: {file} is not a TFRecord file of tf.train.Examples ({error})") from error
        if types:  # else a shard without records
            return file, types, counts
    return files[0], types, counts


def _list_wanted_features(config: Config) -> list[tuple[str, str, set[str]]]:
    """Returns key of the configuration, name and allowed types of each feature that it names."""
    features = config.data.features
    allowed_labels = _INTEGERS if features.label_map else set(list_label_types(config.task))
    wanted = [("data.features.input", features.input, _BYTES)]
    wanted += [("data.features.label", features.label, allowed_labels)]
    wanted += [("data.features.group", name, _BYTES | _INTEGERS) for name in [features.group] if name]
    wanted += [("data.features.numeric", name, _FLOATS | _INTEGERS) for name in features.numeric]
    wanted += [("data.features.categorical", name, _BYTES | _INTEGERS) for name in features.categorical]
    wanted += [("evaluation.slices", name, _BYTES | _INTEGERS) for name in config.evaluation.slices]
    for number, rule in enumerate(config.evaluation.rules):
        columns = sorted(rule.slice.keys() - {SIZE})
        wanted += [(f"evaluation.rules.{number}.slice", name, _BYTES | _INTEGERS) for name in columns]
    return wanted


def _read_records(path: str) -> Iterator[bytes]:
    with filesystem.open_read(path) as file:
        if path.endswith(".gz"):
            with gzip.open(file) as unpacked:
                yield from tfrecord.read_records(cast(BinaryIO, unpacked))
        else:
            yield from tfrecord.read_records(file)
