"""DataCheck and DataGate: what is wrong with the data, in words, before a model is trained on it.

TFX's ExampleValidator holds statistics against the schema, and its anomalies are protocol buffers that nobody reads and
nothing obeys. DataCheck tells them, and what statistics can't say: classes with too few images, labels that the
training split lacks, copies of images across splits, labels that are likely to be wrong, and how far the data has moved
since the model that is live was trained. DataGate stops the run where it has to, as a node of its own: the outputs of a
node that fails are deleted, and what was found is to be seen.
"""

import functools
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx import types
from tfx.components.example_validator import executor as example_validator
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.utils import io_utils

from components import driver
from components.data_check import label_errors, near_duplicates, statistics
from components.data_check.config import ValidationConfig
from components.data_check.statistics import Statistics
from imagepipe.base import appearance, images, tfrecord
from imagepipe.base.features import Features, parse_features
from imagepipe.base.names import FINDINGS, SCHEMA, STATISTICS
from imagepipe.deploy import targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import sort_by_traffic
from transform import datasets

TRAINED_ON = "assets.extra/train_statistics.pb"
"""In a SavedModel: statistics of the split that it was trained on. TensorFlow ignores that folder."""

MOST_SLICES = 200
"""The most values of a column that the evaluation slices by: each costs the Evaluator time and memory."""

_EXAMPLES = standard_component_specs.EXAMPLES_KEY
_STATISTICS = standard_component_specs.STATISTICS_KEY
_SCHEMA = standard_component_specs.SCHEMA_KEY
_ANOMALIES = standard_component_specs.ANOMALIES_KEY
_FINDINGS, _TASK, _FEATURES, _VALIDATION = "findings", "task", "features", "validation"
_SLICES, _DEPLOY, _CODE, _BASELINE = "slices", "deploy", "code", "baseline"

_TRAIN, _EVAL = "train", "eval"
_NAMED = 10  # ids or classes in a message
_LISTED = 500  # ids in a finding, and groups of near-duplicates
_BATCH = 64
_MEASURES = {
    "L_INFTY": "the share of a value differs by",
    "JENSEN_SHANNON_DIVERGENCE": "the Jensen-Shannon divergence is",
}
_GONE = {anomalies_pb2.AnomalyInfo.SCHEMA_MISSING_COLUMN, anomalies_pb2.AnomalyInfo.FEATURE_TYPE_NOT_PRESENT}


class DataError(ValueError):
    """The data can't be trained on as it is; the message says what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with the data.

    Attributes:
        severity: an error stops the run.
        kind: unseen_label, too_few_images, missing_column, too_many_slices, unreadable, anomaly, drift, skew,
            near_duplicates or label_errors.
        split: which; '' where it is about several.
        feature: which; '' where it is about none.
        message: in words, with figures.
        examples: ids of images that it is about, at most 500.
    """

    severity: Literal["error", "warning"]
    kind: str
    split: str
    feature: str
    message: str
    examples: list[str] = field(default_factory=list)


@dataclass
class Split:
    """What is kept of a split's Examples, in their order.

    Attributes:
        ids: the metadata feature, else ``<split>/<place>``.
        sha256: of the original file, where it is known.
        labels: as text; any number an Example.
        hashes: difference hashes.
        plain: whether an image is too plain to be compared.
        unreadable: places of images that can't be decoded, or aren't there.
        described: of some images, by place, what ``label_errors.describe`` says.
        slices: by columns, the values that they have together, as text; at most one more than ``MOST_SLICES``.
    """

    ids: list[str] = field(default_factory=list)
    sha256: list[str | None] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    plain: list[bool] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    described: dict[int, np.ndarray] = field(default_factory=dict)
    slices: dict[tuple[str, ...], set[tuple[str, ...]]] = field(default_factory=dict)


def read_split(folder: str, name: str, features: Features, every: int, slices: Sequence[tuple[str, ...]] = ()) -> Split:
    """Reads the Examples of a split once.

    Args:
        folder: its ``*.gz`` files are read.
        name: of the split.
        features: which feature is what.
        every: of every so manieth image the looks are described, see ``label_errors``; 0 for none.
        slices: columns whose values are looked at, some of them together.
    """
    split = Split(slices={columns: set() for columns in slices})
    waiting: list[tuple[int, np.ndarray]] = []

    def describe() -> None:
        if waiting:
            rows = label_errors.describe(np.stack([image for _, image in waiting]))
            split.described.update(zip((place for place, _ in waiting), rows, strict=True))
            waiting.clear()

    for place, record in enumerate(datasets.examples(folder).as_numpy_iterator()):
        found = tfrecord.decode_example(record)
        split.ids.append(_text(found, features.metadata) or f"{name}/{place}")
        split.sha256.append(_text(found, "sha256"))
        split.labels.append([_as_text(value) for value in found.get(features.label, [])])
        for columns, values in split.slices.items():
            if len(values) <= MOST_SLICES:
                values.update(itertools.product(*(map(_as_text, found.get(column, [])) for column in columns)))
        looks = _measured(found)
        image: np.ndarray | None = None
        wanted = every > 0 and place % every == 0
        if wanted or looks is None:
            try:
                (data,) = found.get(features.input, [])
                image = images.read_pixels(data if isinstance(data, bytes) else b"", label_errors.SIDE)
            except (images.BadImage, ValueError):  # not decodable; none, or several
                split.unreadable.append(place)
        if image is not None and wanted:
            waiting.append((place, image))
        if looks is None and image is not None:
            made = appearance.measure_appearance(appearance.make_thumbnail(Image.fromarray(image)))
            looks = int(made.dhash, 16), made.contrast
        split.hashes.append(looks[0] if looks else 0)
        split.plain.append(looks is None or looks[1] < near_duplicates.LEAST_CONTRAST)
        if len(waiting) == _BATCH:
            describe()
    describe()
    return split


def _as_text(value: bytes | int | float) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _text(found: Mapping[str, list[Any]], name: str) -> str | None:
    values = found.get(name)
    return _as_text(values[0]) if values else None


def _measured(found: Mapping[str, list[Any]]) -> tuple[int, float] | None:
    """Hash and contrast, where ingest has measured them."""
    try:
        (dhash,), (contrast,) = found["dhash"], found["contrast"]
        return (int(dhash, 16), float(contrast)) if len(dhash) == appearance.HASH_BITS // 4 else None
    except (KeyError, TypeError, ValueError):
        return None


# --- findings of a kind each


def class_counts(task: str, splits: Mapping[str, Split], feature: str, minima: Mapping[str, int]) -> list[Finding]:
    """Labels that training lacks, and classes with too few images."""
    if task == "regression":
        return []
    counts = {
        name: Counter(label for labels in split.labels for label in dict.fromkeys(labels))
        for name, split in splits.items()
    }
    found = []
    known = counts.get(_TRAIN, Counter())
    for name, of_split in counts.items():
        for label in sorted(set(of_split) - set(known)):
            ids = [i for i, labels in zip(splits[name].ids, splits[name].labels, strict=True) if label in labels]
            found.append(
                Finding(
                    "error" if name == _EVAL else "warning",
                    "unseen_label",
                    name,
                    feature,
                    f"the split {name} has {_images(of_split[label])} of '{label}', and the training split none: no "
                    "model can learn it. Add images of it, or correct or remove the label",
                    ids[:_LISTED],
                )
            )
    for name, least in minima.items():
        if name not in splits:
            continue
        for label in sorted(known):
            if (there := counts[name][label]) < least:
                found.append(
                    Finding(
                        "error",
                        "too_few_images",
                        name,
                        feature,
                        f"'{label}' has {_images(there)} in the split {name}, and at least {least} are needed. Add "
                        f"images of it, remove it, or lower data.validation.min_images.{name}",
                    )
                )
    return found


def missing_columns(task: str, splits: Mapping[str, Statistics], needed: tuple[str, ...], label: str) -> list[Finding]:
    """Columns that the model needs, and that a split does not have at all; labels that are missing in some images."""
    found = []
    for name, of_split in splits.items():
        known = statistics.columns(of_split)
        for feature in needed:
            missing = known.get(feature, {}).get("missing", statistics.count(of_split))
            if statistics.count(of_split) and missing == statistics.count(of_split):
                found.append(
                    Finding(
                        "error" if name in (_TRAIN, _EVAL) else "warning",
                        "missing_column",
                        name,
                        feature,
                        f"no image of the split {name} has the column '{feature}', which the model needs. Add it, or "
                        "take it out of data.features",
                    )
                )
            elif feature == label and missing and task != "multilabel":
                found.append(
                    Finding(
                        "warning", "anomaly", name, feature, f"{_images(missing)} in the split {name} without a label"
                    )
                )
    return found


def too_many_slices(name: str, slices: Mapping[tuple[str, ...], set[tuple[str, ...]]]) -> list[Finding]:
    """Columns with more values than the evaluation can slice by, as one has that names each image."""
    found = []
    for columns, values in slices.items():
        if len(values) > MOST_SLICES:
            named, shown = "' and '".join(columns), ", ".join(" and ".join(each) for each in sorted(values)[:3])
            text = (
                f"the split {name} has more than {MOST_SLICES} values of '{named}', such as {shown}, and "
                "evaluation.slices or evaluation.rules want a slice of each: of so few images none says much. Slice by "
                "a column that puts them into groups, or take it out"
            )
            found.append(Finding("error", "too_many_slices", name, columns[0], text))
    return found


def anomalies_in_words(
    found_by_split: Mapping[str, anomalies_pb2.Anomalies], label: str, stop_on: tuple[str, ...], needed: tuple[str, ...]
) -> list[Finding]:
    """What TFX's ExampleValidator says against the schema."""
    severity: Literal["error", "warning"] = "error" if "anomaly" in stop_on else "warning"
    found = []
    for name, anomalies in found_by_split.items():
        new = []
        for feature, info in sorted(anomalies.anomaly_info.items()):
            for reason in info.reason:
                if reason.type == anomalies_pb2.AnomalyInfo.SCHEMA_NEW_COLUMN:
                    new.append(feature)
                    continue
                says = reason.description.strip().rstrip(".")
                message = f"'{feature}' in the split {name}: {says[:1].lower()}{says[1:]}"
                if reason.type in _GONE:
                    if feature not in needed:  # else it is told already, in better words
                        found.append(
                            Finding(
                                "error",
                                "missing_column",
                                name,
                                feature,
                                f"the split {name} lacks the column '{feature}', which the schema demands. Add it, or "
                                "take it out of the schema",
                            )
                        )
                elif feature == label and reason.type == anomalies_pb2.AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES:
                    found.append(
                        Finding("error", "unseen_label", name, feature, f"{message}. Correct them, or add them there")
                    )
                else:
                    found.append(Finding(severity, "anomaly", name, feature, message))
        if new:
            text = f"the split {name} has columns that the schema lacks: {_named(new)}"
            found.append(Finding("warning", "anomaly", name, "", text))
    return found


def moved(
    kind: Literal["drift", "skew"], split: str, distances: list[statistics.Distance], against: str, stops: bool
) -> list[Finding]:
    """Columns that are too far from what they are compared with."""
    return [
        Finding(
            "error" if stops else "warning",
            kind,
            split,
            each.feature,
            f"'{each.feature}' in the split {split} is unlike {against}: {_MEASURES[each.measure]} {each.value:.2f}, "
            f"and {each.allowed:.2f} is allowed (data.validation.{kind})",
        )
        for each in distances
        if each.value > each.allowed
    ]


def duplicates(
    splits: Mapping[str, Split], thumbnails: Callable[[str, set[int]], dict[int, np.ndarray]]
) -> list[list[tuple[str, int]]]:
    """Near-duplicates across splits.

    Args:
        splits: by name.
        thumbnails: gives of a split's name and places the gray thumbnails, flat, of those that can be had.

    Returns:
        Groups of (split, place), at least two splits in each, and the first image of each split first: who looks at
        some of a large group sees why it is one.
    """
    places = [(name, i) for name, split in splits.items() for i, plain in enumerate(split.plain) if not plain]
    hashes = np.array([splits[name].hashes[i] for name, i in places], np.uint64)
    numbers = {name: number for number, name in enumerate(splits)}
    pairs = near_duplicates.pairs(hashes, np.array([numbers[name] for name, _ in places], np.int64))
    wanted: dict[str, set[int]] = defaultdict(set)
    for each in np.unique(pairs):
        name, i = places[each]
        wanted[name].add(i)
    seen = {(name, i): image for name, some in wanted.items() for i, image in thumbnails(name, some).items()}
    confirmed = []
    for start in range(0, len(pairs), _BATCH * _BATCH):
        some = [pair for pair in pairs[start : start + _BATCH * _BATCH] if all(places[i] in seen for i in pair)]
        if some:
            one, other = (np.stack([seen[places[pair[side]]] for pair in some]) for side in (0, 1))
            confirmed += [pair for pair, same in zip(some, near_duplicates.alike(one, other), strict=True) if same]
    groups = near_duplicates.groups(np.array(confirmed).reshape(-1, 2), len(places))
    return [_of_each_split_first([places[i] for i in group]) for group in groups]


def _of_each_split_first(group: list[tuple[str, int]]) -> list[tuple[str, int]]:
    first = {name: (name, place) for name, place in reversed(group)}.values()
    return sorted(group, key=lambda one: one not in first)


def _thumbnails(folder: Callable[[str], str], features: Features, name: str, wanted: set[int]) -> dict[int, np.ndarray]:
    found = {}
    for place, record in enumerate(datasets.examples(folder(name)).as_numpy_iterator()):
        if place in wanted:
            try:
                image = images.read_pixels(
                    tfrecord.read_bytes_feature(record, features.input)[0], appearance.THUMBNAIL_SIDE
                )
            except (images.BadImage, IndexError):
                continue
            found[place] = np.frombuffer(appearance.make_thumbnail(Image.fromarray(image)), np.uint8)
    return found


def wrong_labels(
    splits: Mapping[str, Split], copies: list[list[tuple[str, int]]], most: int
) -> tuple[list[dict[str, Any]], int]:
    """Images whose label is likely to be wrong, the likeliest first, at most ``most``; and how many were judged."""
    places = [(n, i) for n, split in splits.items() for i in sorted(split.described) if len(split.labels[i]) == 1]
    names = [splits[n].labels[i][0] for n, i in places]
    counts = Counter(names)
    learned = sorted(label for label, number in counts.items() if number >= label_errors.LEAST_IMAGES)
    if len(learned) < 2:
        return [], 0
    kept = [(place, label) for place, label in zip(places, names, strict=True) if label in set(learned)]
    group_of = {place: number for number, group in enumerate(copies) for place in group}
    numbers = {label: number for number, label in enumerate(learned)}
    labels = np.array([numbers[label] for _, label in kept])
    probabilities = label_errors.out_of_sample(
        np.stack([splits[n].described[i] for (n, i), _ in kept]),
        labels,
        np.array([group_of.get(place, len(copies) + number) for number, (place, _) in enumerate(kept)]),
    )
    found = []
    for each in label_errors.candidates(probabilities, labels, most):
        (name, i), label = kept[each.index]
        found.append(
            _reference(splits, name, i)
            | {
                "label": label,
                "suggested": learned[each.suggested],
                "confidence": round(each.confidence, 4),
                "suggested_confidence": round(each.suggested_confidence, 4),
                "confident": each.confident,
            }
        )
    return found, len(kept)


def _reference(splits: Mapping[str, Split], name: str, place: int) -> dict[str, Any]:
    return {"split": name, "id": splits[name].ids[place], "sha256": splits[name].sha256[place]}


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


# --- what the data is compared with


def trained_on(deploy: DeployConfig, now: bytes) -> str:
    """Where the statistics are that the model that is live was trained on.

    Args:
        deploy: where models are deployed to.
        now: statistics of the training split, serialized. A model that was trained on just that is passed over, as in
            ``champion.live_model``: a pipeline that is run again without changes has nothing to do anew.

    Returns:
        The file, or '' if there is none: nothing is live, or it was made elsewhere.
    """
    for version in sort_by_traffic(targets.load_target(deploy).status(deploy)):
        file = f"{version.uri}/{TRAINED_ON}"
        try:
            if not tf.io.gfile.exists(file):
                return ""
            if tf.io.gfile.GFile(file, "rb").read() != now:
                return file
        except tf.errors.OpError:  # of a model in a place that TensorFlow doesn't read
            return ""
    return ""


def train_statistics(artifact: types.Artifact) -> bytes:
    """The statistics of the training split, serialized, of StatisticsGen's artifact."""
    with tf.io.gfile.GFile(f"{artifact_utils.get_split_uri([artifact], _TRAIN)}/{statistics.FILENAME}", "rb") as file:
        return file.read()


def _baseline(properties: Mapping[str, Any], input_dict: Mapping[str, list[types.Artifact]]) -> str:
    now = train_statistics(artifact_utils.get_single_instance(input_dict[_STATISTICS]))
    return trained_on(DeployConfig(**json.loads(properties[_DEPLOY])), now)


class Driver(driver.Driver):
    """Finds what the data is compared with."""

    PROPERTY = _BASELINE
    found = staticmethod(_baseline)


# --- the components


class Executor(base_executor.BaseExecutor):
    """Looks for all that is wrong."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes ``findings.json``, ``statistics.json`` and the schema with ranges, to be curated."""
        self._log_startup(input_dict, output_dict, exec_properties)
        task, features = exec_properties[_TASK], parse_features(json.loads(exec_properties[_FEATURES]))
        settings = ValidationConfig(**json.loads(exec_properties[_VALIDATION]))
        given = artifact_utils.get_single_instance(input_dict[_STATISTICS])
        schema = io_utils.SchemaReader().read(
            io_utils.get_only_uri_in_dir(artifact_utils.get_single_uri(input_dict[_SCHEMA]))
        )
        names = artifact_utils.decode_split_names(given.split_names)
        by_split = {
            name: Statistics.FromString(_bytes(f"{artifact_utils.get_split_uri([given], name)}/{statistics.FILENAME}"))
            for name in sorted(names, key=lambda name: (name != _TRAIN, name))
        }
        folder = functools.partial(artifact_utils.get_split_uri, input_dict[_EXAMPLES])
        total = sum(map(statistics.count, by_split.values()))
        judged = task == "classification" and settings.label_errors > 0
        every = -(-total // settings.max_images) if judged else 0
        slices = [tuple(columns) for columns in json.loads(exec_properties[_SLICES])]
        splits = {
            name: read_split(folder(name), name, features, every, slices if name == _EVAL else ()) for name in by_split
        }

        minima = dict(settings.min_images.items()) | _curated_minima(schema, features.label)
        findings = [
            *class_counts(task, splits, features.label, minima),
            *missing_columns(task, by_split, (features.label, *features.side), features.label),
            *(each for name, split in splits.items() for each in too_many_slices(name, split.slices)),
            *_unreadable(splits),
            *anomalies_in_words(
                _anomalies(input_dict[_ANOMALIES], names),
                features.label,
                settings.stop_on,
                (features.label, *features.side),
            ),
        ]
        baseline = exec_properties.get(_BASELINE)
        if baseline is None:  # a runner without drivers
            baseline = _baseline(exec_properties, input_dict)
        findings += _moves(by_split, baseline, schema, settings)
        copies = duplicates(splits, functools.partial(_thumbnails, folder, features))
        findings += _copied(splits, copies, "near_duplicates" in settings.stop_on)
        suspects, looked_at = wrong_labels(splits, copies, settings.label_errors) if judged else ([], 0)
        findings += _suspected(suspects, looked_at, total)

        artifact = artifact_utils.get_single_instance(output_dict[_FINDINGS])
        artifact.split_names = artifact_utils.encode_split_names([])
        artifact.set_int_custom_property("errors", sum(each.severity == "error" for each in findings))
        artifact.set_int_custom_property("warnings", sum(each.severity == "warning" for each in findings))
        found = {
            "findings": [asdict(each) for each in sorted(findings, key=lambda each: each.severity)],
            "near_duplicates": [[_reference(splits, *place) for place in group] for group in copies[:_LISTED]],
            "label_errors": suspects,
        }
        _write(artifact.uri, FINDINGS, found)
        _write(artifact.uri, STATISTICS, {name: _told(by_split[name], splits[name], task) for name in by_split})
        demanded = {} if task == "regression" else minima
        curatable = statistics.frozen(schema, by_split.values(), features.label, demanded)
        io_utils.write_pbtxt_file(f"{artifact.uri}/{SCHEMA}", curatable)


def _bytes(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def _write(folder: str, name: str, content: Any) -> None:
    io_utils.write_string_file(f"{folder}/{name}", json.dumps(content, indent=1, allow_nan=False))


def _curated_minima(schema: schema_pb2.Schema, label: str) -> dict[str, int]:
    try:
        return statistics.minima(schema, label)
    except ValueError as error:
        raise DataError(f"data.curated_schema: in a tag of '{label}', such as min_images.train=10: {error}") from error


def _anomalies(artifacts: list[types.Artifact], names: list[str]) -> dict[str, anomalies_pb2.Anomalies]:
    found = {}
    for name in names:
        path = f"{artifact_utils.get_split_uri(artifacts, name)}/{example_validator.DEFAULT_FILE_NAME}"
        found[name] = anomalies_pb2.Anomalies.FromString(_bytes(path))
    return found


def _unreadable(splits: Mapping[str, Split]) -> list[Finding]:
    return [
        Finding(
            "warning",
            "unreadable",
            name,
            "",
            f"{_images(len(split.unreadable))} in the split {name} that can't be decoded: "
            f"{_named([split.ids[i] for i in split.unreadable])}",
            [split.ids[i] for i in split.unreadable[:_LISTED]],
        )
        for name, split in splits.items()
        if split.unreadable
    ]


def _moves(
    by_split: Mapping[str, Statistics], baseline: str, schema: schema_pb2.Schema, settings: ValidationConfig
) -> list[Finding]:
    train = by_split[_TRAIN]
    found = []
    if settings.drift and baseline:
        try:
            before = Statistics.FromString(_bytes(baseline))
        except (tf.errors.OpError, DecodeError):  # rolled back meanwhile, or another program's
            before = None
        if before is not None:
            version = PurePosixPath(baseline).parents[1].name
            measured = statistics.distances(train, before, schema, settings.drift)
            against = f"what version {version}, which is live, was trained on"
            found += moved("drift", _TRAIN, measured, against, "drift" in settings.stop_on)
    for name, of_split in by_split.items() if settings.skew else ():
        if name != _TRAIN and statistics.count(of_split):
            measured = statistics.distances(of_split, train, schema, settings.skew or 1)
            found += moved("skew", name, measured, "the training split", "skew" in settings.stop_on)
    return found


def _copied(splits: Mapping[str, Split], copies: list[list[tuple[str, int]]], stops: bool) -> list[Finding]:
    if not copies:
        return []
    ids = [splits[name].ids[place] for group in copies for name, place in group]
    outside = sum(name != _TRAIN for group in copies for name, _ in group if any(n == _TRAIN for n, _ in group))
    conflicting = sum(len({tuple(sorted(splits[name].labels[place])) for name, place in group}) > 1 for group in copies)
    shown = "; ".join(" and ".join(splits[n].ids[i] for n, i in group[:3]) for group in copies[:3])
    text = (
        f"{len(copies):,} group{'s' if len(copies) > 1 else ''} of near-duplicates across splits, such as {shown}: "
        f"{_images(outside)} outside of the training split have a copy in it, and say little about a model"
        + (f"; in {conflicting:,} of the groups the labels differ" if conflicting else "")
        + ". Keep one of each"
    )
    return [Finding("error" if stops else "warning", "near_duplicates", "", "", text, ids[:_LISTED])]


def _suspected(suspects: list[dict[str, Any]], looked_at: int, total: int) -> list[Finding]:
    if not suspects:
        return []
    confident = sum(each["confident"] for each in suspects)
    shown = ", ".join(f"{each['id']} ({each['label']}, or {each['suggested']}?)" for each in suspects[:3])
    of = f"{looked_at:,} images" if looked_at >= total else f"{looked_at:,} of {total:,} images, which were looked at,"
    text = (
        f"of {of} {len(suspects):,} look more like another class than their own, {confident:,} of them clearly: the "
        f"likeliest label errors are {shown}"
    )
    return [Finding("warning", "label_errors", "", "label", text, [each["id"] for each in suspects[:_LISTED]])]


def _told(of_split: Statistics, split: Split, task: str) -> dict[str, Any]:
    labels = Counter(label for labels in split.labels for label in labels) if task != "regression" else Counter()
    return {"count": len(split.ids), "labels": dict(sorted(labels.items())), "columns": statistics.columns(of_split)}


class _Spec(types.ComponentSpec):
    PARAMETERS = {  # noqa: RUF012 (TFX's way)
        _TASK: component_spec.ExecutionParameter(type=str),
        _FEATURES: component_spec.ExecutionParameter(type=str),
        _VALIDATION: component_spec.ExecutionParameter(type=str),
        _SLICES: component_spec.ExecutionParameter(type=str),
        _DEPLOY: component_spec.ExecutionParameter(type=str),
        _CODE: component_spec.ExecutionParameter(type=str),
        _BASELINE: component_spec.ExecutionParameter(type=str, optional=True),
    }
    INPUTS = {  # noqa: RUF012
        _EXAMPLES: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        _STATISTICS: component_spec.ChannelParameter(type=standard_artifacts.ExampleStatistics),
        _SCHEMA: component_spec.ChannelParameter(type=standard_artifacts.Schema),
        _ANOMALIES: component_spec.ChannelParameter(type=standard_artifacts.ExampleAnomalies),
    }
    OUTPUTS = {_FINDINGS: component_spec.ChannelParameter(type=standard_artifacts.ExampleAnomalies)}  # noqa: RUF012


class DataCheck(base_component.BaseComponent):
    """Looks for what is wrong with the data; its output ``findings`` has the files of ``imagepipe.base.names``.

    Args:
        examples: channel of the Examples.
        statistics: channel of their statistics.
        schema: channel of the schema.
        anomalies: channel of what ExampleValidator found.
        task: classification, multilabel or regression.
        features: which feature of an Example is what, as JSON.
        validation: a ``ValidationConfig`` as JSON.
        slices: the columns whose every value the evaluation makes a slice of, a list of lists as JSON.
        deploy: where models are deployed to, a ``DeployConfig`` as JSON: the data is compared with what the model was
            trained on that is live.
        code: hash of the sources: others check anew.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(
        self,
        examples: types.BaseChannel,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        anomalies: types.BaseChannel,
        task: str,
        features: str,
        validation: str,
        slices: str,
        deploy: str,
        code: str,
    ):
        super().__init__(
            spec=_Spec(
                examples=examples,
                statistics=statistics,
                schema=schema,
                anomalies=anomalies,
                task=task,
                features=features,
                validation=validation,
                slices=slices,
                deploy=deploy,
                code=code,
                findings=types.Channel(type=standard_artifacts.ExampleAnomalies),
            )
        )


class GateExecutor(base_executor.BaseExecutor):
    """Stops a run."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Raises DataError where there is a finding that is an error."""
        self._log_startup(input_dict, output_dict, exec_properties)
        text = io_utils.read_string_file(f"{artifact_utils.get_single_uri(input_dict[_FINDINGS])}/{FINDINGS}")
        errors = [each["message"] for each in json.loads(text)["findings"] if each["severity"] == "error"]
        if errors:
            more = len(errors) - _NAMED
            lines = [*errors[:_NAMED], *([f"and {more} more of the kind"] if more > 0 else [])]
            raise DataError("the data can't be trained on as it is.\n" + "\n".join(f"- {line}" for line in lines))


class _GateSpec(types.ComponentSpec):
    PARAMETERS: dict[str, Any] = {}  # noqa: RUF012
    INPUTS = {_FINDINGS: component_spec.ChannelParameter(type=standard_artifacts.ExampleAnomalies)}  # noqa: RUF012
    OUTPUTS: dict[str, Any] = {}  # noqa: RUF012


class DataGate(base_component.BaseComponent):
    """Stops the run where DataCheck found an error. What is to wait for it, names it upstream.

    Args:
        findings: channel of DataCheck's output.
    """

    SPEC_CLASS = _GateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(GateExecutor)

    def __init__(self, findings: types.BaseChannel):
        super().__init__(spec=_GateSpec(findings=findings))
