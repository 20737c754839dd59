"""A dataset on disk, and its description.

DIR/dataset.json               this module's Dataset; replaced last, so it never names what is not there
DIR/<split>/<hash>.tfrecord    the records, in order of the images' hashes, which is as good as shuffled
DIR/index/<split>-<hash>.jsonl one line for each record of that shard, so that adding need not read the records
DIR/index/refused.jsonl        images whose copies carry different labels
DIR/quarantine.jsonl           path, reason, row, source: what was quarantined, as of the last time it was read
DIR/overview.png               a contact sheet by class, see ``imagepipe.base.overview``
DIR/overrides.jsonl            what became of each decision of people, see ``overrides``
DIR/duplicates.jsonl           path, same_as, row, source: further copies of images in the dataset
"""

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.filesystem import PARTIAL
from imagepipe.base.locks import LOCK
from imagepipe.base.names import TaskName

Compression = Literal["gzip"]

VERSION = 1
DESCRIPTION = "dataset.json"
JOURNAL = "journal.json"
STAGING = ".staging-"
_SHARD = re.compile(r"\w+\.tfrecord(\.gz)?", re.ASCII)
OVERVIEW = "overview.png"
QUARANTINE, DUPLICATES, REFUSED = "quarantine.jsonl", "duplicates.jsonl", "index/refused.jsonl"

MEASURED = {"aspect": "float", "bytes": "int64", "brightness": "float", "contrast": "float", "dhash": "bytes"}
"""Features that ingest measures, and their types: width / height; size of the encoded image as written; for the others
see ``imagepipe.base.appearance``. Records of earlier versions lack them."""


@dataclass(frozen=True)
class Options:
    """How the records were made: what must stay the same as a dataset grows, except max_pixels.

    Attributes:
        task: the kind of label.
        splits: name to weight; the weights are relative to their sum.
        max_side: longest side in pixels that larger images were shrunk to, or None.
        max_pixels: limit on width x height, by the last ingest; larger images were quarantined.
        compress: compression of the TFRecord files, or None.
        group: column of a manifest, or pattern on the paths of a folder, that gives images their groups; None if they
            have none.
    """

    task: TaskName
    splits: dict[str, int]
    max_side: int | None
    max_pixels: int
    compress: Compression | None
    group: str | None = None


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its path below the dataset's folder, its number of records, its size in bytes."""

    file: str
    records: int
    bytes: int


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        records: number of records.
        labels: number of records per label; a record with several labels counts for each; empty for regression.
        shards: its files, by name.
    """

    records: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A source that was ingested.

    Attributes:
        split_folders: True if its top folders are splits, False if they are to be classes whatever their names; None
            if that is found out each time.
        real: its path without links when it was read last, or its URI; earlier versions left it out.
    """

    split_folders: bool | None = None
    real: str | None = None


@dataclass(frozen=True)
class Change:
    """An ingest that changed something.

    Attributes:
        source: absolute path or URI.
        new: number of images that it added.
        relabelled: number of those whose label it changed.
        removed: number of those that it removed, as they were gone from the source, or can't be written any more.
        disputed: number of those that it removed, as their label was disputed.
        edited: number of those whose side features or group it changed; earlier versions left it out.
        excluded: number of those that it removed, as a person excluded them.
        labels: the file of decisions that overrode the source's labels, if there was one.
    """

    source: str
    new: int
    relabelled: int
    removed: int
    disputed: int
    edited: int = 0
    excluded: int = 0
    labels: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The content of dataset.json.

    Attributes:
        options: how it was made.
        features: name to type (``bytes``, ``int64`` or ``float``) of every feature of the records.
        splits: by name; every split of the options is there, even if empty.
        version: of this layout.
        given: the splits that sources have given so far; others were drawn.
        sources: how each source was read, by its absolute path or URI.
        history: the ingests that changed something, in order; those of earlier versions left it out.
        labels: absolute path or URI of the file of decisions that overrides the sources' labels; None if there is none.
    """

    options: Options
    features: dict[str, str]
    splits: dict[str, Split]
    version: int = VERSION
    given: list[str] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    labels: str | None = None

    @property
    def records(self) -> int:
        """Number of records of all splits."""
        return sum(split.records for split in self.splits.values())

    def count_images(self) -> dict[tuple[str, str], int]:
        """Returns the number of images by label and split; of regression all have the label ""."""
        if self.options.task == "regression":
            return {("", name): split.records for name, split in self.splits.items()}
        return {(label, name): n for name, split in self.splits.items() for label, n in split.labels.items()}


def list_features(task: TaskName, has_groups: bool = False) -> dict[str, str]:
    """Returns name and type of the features that records have, side features apart; ``group`` where there are any."""
    return {
        "input": "bytes",
        "metadata": "bytes",
        "label": "float" if task == "regression" else "bytes",
        "width": "int64",
        "height": "int64",
        "format": "bytes",
        "sha256": "bytes",
        **MEASURED,
        **({"group": "bytes"} if has_groups else {}),
    }


def load(path: str) -> Dataset:
    """Reads a dataset's description, and checks that its files are there as described.

    Args:
        path: the dataset's folder, local or a URI.

    Raises:
        IngestError: there is no dataset, it is of another version, or an ingest into it was interrupted.
    """
    folder = filesystem.absolute(path)
    dataset = read_unchecked(folder)
    if dataset is None:
        raise IngestError(
            f"{folder} holds no dataset ({DESCRIPTION}); make one with: "
            f"imagepipe ingest SOURCE --out {shlex.quote(path)}"
        )
    described = {shard.file: shard.bytes for split in dataset.splits.values() for shard in split.shards}
    present = {
        f"{name}/{file.rpartition('/')[2]}": size
        for name in dataset.splits
        for file, size in filesystem.walk(filesystem.join(folder, name))
    }
    if present != described or filesystem.size(filesystem.join(folder, JOURNAL)) is not None:
        wrong = sorted({file for file, _ in present.items() ^ described.items()})
        raise IngestError(
            f"{folder} is in an inconsistent state{f' (see {wrong[0]})' if wrong else ''}: an ingest into it is "
            "running, or was interrupted. If none is running, run the same ingest again; it finishes what was started."
        )
    return dataset


def read_unchecked(folder: str) -> Dataset | None:
    """Returns the description of the dataset in an absolute folder or URI, whatever its files; None if there is none.

    Raises:
        IngestError: it can't be read, or is of another version.
    """
    path = filesystem.join(folder, DESCRIPTION)
    if filesystem.size(path) is None:
        return None
    data = filesystem.read_bytes(path)
    try:
        content = json.loads(data)
        version = content.get("version") if isinstance(content, dict) else None
        if version == VERSION:
            return _decode(data)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise IngestError(f"{path} is damaged ({reason}): restore it, or ingest into a new folder.") from error
    if not isinstance(version, int):
        raise IngestError(
            f"{path} describes no dataset of imagepipe's: if another program made it, move it out of the folder; else "
            "restore it, or ingest into a new folder."
        )
    raise IngestError(
        f"{path} has version {str(version)[:20]}, and this imagepipe reads version {VERSION}: ingest into a new folder."
    )


def read_lines(path: str, types: Mapping[str, type]) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file of a dataset; none if there is no such file.

    Args:
        path: absolute path or URI.
        types: by key, of what each object has.

    Raises:
        IngestError: a line is damaged.
    """
    if filesystem.size(path) is None:
        return
    with filesystem.open_read(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
                is_whole = isinstance(value, dict) and all(isinstance(value.get(key), types[key]) for key in types)
            except (ValueError, RecursionError):
                is_whole = False
            if not is_whole:
                raise IngestError(
                    f"{path}, line {number} is damaged: restore the file from a copy, or ingest all sources into a new "
                    "folder."
                )
            yield value


def prepare(folder: str, options: Options) -> Dataset:
    """Returns the dataset in a folder that an ingest is to add to, with the options of this ingest; or an empty one.

    One that holds no image yet takes any options.

    Raises:
        IngestError: the dataset was made with other options, or has a column that clashes with a feature.
    """
    dataset = read_unchecked(folder)
    features = list_features(options.task, options.group is not None)
    if dataset is None or not dataset.records:
        return Dataset(options, features, {name: Split() for name in options.splits})
    for name in ("task", "splits", "max_side", "compress"):
        old, new = getattr(dataset.options, name), getattr(options, name)
        if old != new or (name == "splits" and list(old) != list(new)):
            raise IngestError(
                f"{folder} was made with {name} {_spell(old)}, and now it is {_spell(new)}: use what it was made "
                "with, or another folder."
            )
    if (dataset.options.group is None) != (options.group is None):
        raise IngestError(
            f"{folder} was made {'without' if dataset.options.group is None else 'with'} --group, and now it is the "
            "other way round: an image without a group could lie in two splits with its likes. Give what it was made "
            "with, or another folder."
        )
    if clashing := sorted(name for name, type_ in dataset.features.items() if features.get(name, type_) != type_):
        raise IngestError(
            f"{folder} has a column '{clashing[0]}' of its own, and records have such a feature by now: rename it, and "
            "ingest everything into a new folder."
        )
    return dataclasses.replace(dataset, options=options)


def find_source(folder: str, source: str) -> str:
    """Returns the path by which a source was ingested before: links may lead to it by several, and it is one source.

    Args:
        folder: of the dataset, an absolute path or URI.
        source: absolute path or URI; returned unchanged if it was not ingested before.
    """
    dataset = read_unchecked(folder)
    if dataset is None or source in dataset.sources:
        return source
    real = filesystem.resolve(source)
    # A link may lead elsewhere by now: what was ingested by it then is no part of this source.
    same = (
        name
        for name, recorded in dataset.sources.items()
        if filesystem.resolve(name) == real and recorded.real in (None, real)
    )
    return next(same, source)


def recall_split_folders(folder: str, source: str) -> bool | None:
    """Returns whether a source's top folders are splits, as it was read before; None if that is to be found out."""
    dataset = read_unchecked(folder)
    recorded = dataset.sources.get(source) if dataset else None
    return recorded.split_folders if recorded else None


def remember(dataset: Dataset, name: str, source: Source, given: Iterable[str]) -> Dataset:
    """Returns a dataset that knows how a source is read, and which splits it gives."""
    splits = {*dataset.given, *given}
    return dataclasses.replace(
        dataset,
        given=[name for name in dataset.options.splits if name in splits],
        sources={**dataset.sources, name: source},
    )


def take_labels(dataset: Dataset, labels: str | os.PathLike[str] | None) -> Dataset:
    """Returns a dataset with the file of decisions that an ingest gives: a path, ``none``, or None for the present."""
    if labels is None:
        return dataset
    name = os.fspath(labels)
    return dataclasses.replace(dataset, labels=None if name == "none" else filesystem.absolute(name))


def record_change(dataset: Dataset, change: Change) -> Dataset:
    """Returns a dataset whose history has a change, if it is one."""
    taken_out = change.removed or change.disputed or change.excluded
    is_change = change.new or change.relabelled or change.edited or taken_out
    return dataclasses.replace(dataset, history=[*dataset.history, change]) if is_change else dataset


def refuse_foreign(folder: str) -> None:
    """Refuses a folder that holds something which no ingest has put there.

    Raises:
        IngestError: it isn't empty, and holds neither a dataset nor what an interrupted ingest leaves.
    """
    if any(filesystem.size(f"{folder}/{name}") is not None for name in (DESCRIPTION, JOURNAL)):
        return
    own = (LOCK, STAGING, PARTIAL)
    if foreign := [name for name in filesystem.list_folder(folder) if not name.startswith(own)]:
        raise IngestError(
            f"{folder} is not a dataset, and not empty (it holds {foreign[0]}): give a new or an empty folder."
        )


def encode(dataset: Dataset) -> bytes:
    """Returns the bytes of dataset.json. The order of the splits matters, so nothing is sorted."""
    return json.dumps(dataclasses.asdict(dataset), indent=2).encode() + b"\n"


def _decode(data: bytes) -> Dataset:
    """Reads dataset.json, all of whose types are checked, and which may name files of its own splits only.

    Raises:
        ValueError: it is no such description.
    """
    from pydantic import TypeAdapter, ValidationError  # not above: a first ingest does without

    try:
        dataset = TypeAdapter(Dataset).validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name, split in dataset.splits.items():
        if not name.isidentifier():
            raise ValueError(f"{name!r} can't name a split")
        for shard in split.shards:
            folder, _, file = shard.file.partition("/")
            if folder != name or not _SHARD.fullmatch(file):
                raise ValueError(f"{shard.file!r} is no file of the split {name}")
    return dataset


def _spell(value: object) -> str:
    return "/".join(f"{name} {weight}" for name, weight in value.items()) if isinstance(value, dict) else str(value)
