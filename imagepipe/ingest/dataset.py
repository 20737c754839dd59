"""What an ingested dataset is on disk, and reading its description.

    DIR/dataset.json               this module's Dataset; replaced last, so it never names what is not there
    DIR/<split>/<hash>.tfrecord    the records, in order of the images' hashes, which is as good as shuffled
    DIR/index/<split>-<hash>.jsonl one line for each record of that shard, so that adding need not read the records
    DIR/index/refused.jsonl        images whose copies carry different labels
    DIR/quarantine.jsonl           path, reason, row: what was set aside, as of the last time it was seen
    DIR/duplicates.jsonl           path, same_as, row: further copies of images that are in

Imports neither Beam nor TensorFlow.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.names import TaskName

Compression = Literal["gzip"]

VERSION = 1
DESCRIPTION = "dataset.json"
JOURNAL = "journal.json"
STAGING = ".staging-"

MEASURED = {"aspect": "float", "bytes": "int64", "brightness": "float", "contrast": "float", "dhash": "bytes"}
"""Features that ingest measures, and their types: width / height; size of the encoded image as written; the others see
``imagepipe.base.appearance``. Records of earlier versions lack them."""


@dataclass(frozen=True)
class Options:
    """How the records were made: what must stay the same as a dataset grows, save max_pixels.

    Attributes:
        task: what the label is.
        splits: name to weight; the weights are relative to their sum.
        max_side: longest side in pixels that larger images were shrunk to, or None.
        max_pixels: images of more were set aside, by the last ingest.
        compress: compression of the TFRecord files, or None.
    """

    task: TaskName
    splits: dict[str, int]
    max_side: int | None
    max_pixels: int
    compress: Compression | None


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
        records: how many.
        labels: how many records carry each label; of several labels each counts; empty for regression.
        shards: its files, by name.
    """

    records: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)


@dataclass(frozen=True)
class Dataset:
    """The content of dataset.json.

    Attributes:
        options: how it was made.
        features: name to type (``bytes``, ``int64`` or ``float``) of every feature of the records.
        splits: name to what is in it; every split of the options is there, if empty.
        version: of this layout.
    """

    options: Options
    features: dict[str, str]
    splits: dict[str, Split]
    version: int = VERSION

    @property
    def records(self) -> int:
        """Number of records of all splits."""
        return sum(split.records for split in self.splits.values())


def load(path: str) -> Dataset:
    """Reads a dataset's description, and checks that its files are there as described.

    Args:
        path: the dataset's folder, local or a URI.

    Raises:
        IngestError: there is no dataset, it is of another version, or an ingest into it was interrupted.
    """
    folder = filesystem.absolute(path)
    found = read(folder)
    if found is None:
        raise IngestError(
            f"{folder} holds no dataset ({DESCRIPTION}); make one with: imagepipe ingest SOURCE --out {path}"
        )
    described = {shard.file: shard.bytes for split in found.splits.values() for shard in split.shards}
    present = {
        f"{name}/{file.rpartition('/')[2]}": size
        for name in found.splits
        if filesystem.is_folder(filesystem.join(folder, name))
        for file, size in filesystem.walk(filesystem.join(folder, name))
    }
    if present != described or filesystem.size(filesystem.join(folder, JOURNAL)) is not None:
        wrong = sorted({file for file, _ in present.items() ^ described.items()})
        raise IngestError(
            f"{folder} is between two states{f' (for one, {wrong[0]})' if wrong else ''}: an ingest into it is "
            "running, or was interrupted. If none is running, run the same ingest again; it finishes what was begun."
        )
    return found


def read(folder: str) -> Dataset | None:
    """The description of the dataset in an absolute folder or URI as it stands, unchecked; None where there is none.

    Raises:
        IngestError: it can't be read, or is of another version.
    """
    path = filesystem.join(folder, DESCRIPTION)
    if filesystem.size(path) is None:
        return None
    try:
        with filesystem.open_read(path) as file:
            content = json.load(file)
        version = content["version"]
        if version == VERSION:
            return _dataset(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IngestError(f"{path} is damaged ({error!r}): restore it, or ingest into a new folder.") from error
    raise IngestError(
        f"{path} has version {version}, and this imagepipe reads version {VERSION}: ingest into a new folder."
    )


def dump(dataset: Dataset) -> bytes:
    """The bytes of dataset.json. The order of the splits matters, so nothing is sorted."""
    return json.dumps(dataclasses.asdict(dataset), indent=2).encode() + b"\n"


def _dataset(content: dict[str, Any]) -> Dataset:
    options = Options(**content["options"])
    splits = {
        name: Split(split["records"], split["labels"], [Shard(**shard) for shard in split["shards"]])
        for name, split in content["splits"].items()
    }
    return Dataset(options, content["features"], splits)
