"""The images of which two runs' models say different things, from what the component Predictions has kept."""

import contextlib
import gzip
import io
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet
from PIL import Image

from imagepipe.base import tfrecord

SHOWN = 60
_ROWS = 4096  # read at once
_SIDE = 96  # of a thumbnail, in pixels
_SEPARATOR = "|"
_one_at_a_time = threading.Lock()
_COLUMNS = ["index", "id", "sha256", "labels", "target", "candidate", "candidate_label"]


@dataclass(frozen=True)
class Said:
    """What a model says of an image: the label and its score; of a regression the score is the value."""

    label: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class Disagreement:
    """An image, and what each model says of it; ``index`` is its place in the second run's eval split."""

    id: str
    actual: str
    index: int
    one: Said
    other: Said


@dataclass(frozen=True)
class Comparison:
    """Two runs' predictions of the images that both had.

    Attributes:
        images: how many those are.
        counts: how many of them only the first is right about, only the other, or neither, though they differ; empty
            for a regression.
        differ: how many they say different things of.
        shown: the ``SHOWN`` of those about which they are surest or, of a regression, that are farthest apart.
    """

    images: int
    differ: int
    counts: dict[str, int]
    shown: list[Disagreement]


@lru_cache(maxsize=16)
def compare(one: Path, other: Path, regression: bool) -> Comparison:
    """Compares two artifacts of predictions, which never change once they are there.

    Args:
        one: the folder of the first.
        other: the folder of the second.
        regression: whether what is said are numbers.

    Raises:
        OSError, ValueError, KeyError: there is none, or it isn't one.
    """
    known = {key: row for key, *row in _rows(one, regression)}
    images, found = 0, []
    for key, index, name, actual, said in _rows(other, regression):
        if key in known:
            images += 1
            before = known[key][3]
            if before.label != said.label:
                found.append(Disagreement(name, actual, index, before, said))
    counts: dict[str, int] = {}
    if not regression:
        counts = {
            "only the first is right": sum(bool(d.one.right) for d in found),
            "only the second is right": sum(bool(d.other.right) for d in found),
            "neither is": sum(not d.one.right and not d.other.right for d in found),
        }
        found.sort(key=lambda d: -(d.one.score + d.other.score))
    else:
        found.sort(key=lambda d: -abs(d.one.score - d.other.score))
    return Comparison(images, len(found), counts, found[:SHOWN])


def _rows(folder: Path, regression: bool):  # type: ignore[no-untyped-def]  # tuples: key, index, id, actual, said
    with pyarrow.parquet.ParquetFile(folder / "predictions.parquet") as file:
        for batch in file.iter_batches(_ROWS, columns=_COLUMNS):
            for row in batch.to_pylist():
                labels = row["labels"] or []
                actual = f"{row['target']:g}" if regression and row["target"] is not None else _SEPARATOR.join(labels)
                scores = row["candidate"] or [0.0]
                label = row["candidate_label"]
                right = None if regression else set(filter(None, label.split(_SEPARATOR))) == set(labels)
                said = Said(label, scores[0] if regression else max(scores), right)
                yield row["sha256"] or row["id"], row["index"], row["id"], actual, said


def thumbnails(split: Path, feature: str, indexes: tuple[int, ...]) -> dict[int, bytes]:
    """Small JPEGs of some images of a split, by index; without those that can't be read.

    One pass over the records, as compressed files can't be entered in the middle.

    Args:
        split: the folder of a split of an Examples artifact.
        feature: the one with the encoded image.
        indexes: places of the images in the split.
    """
    with _one_at_a_time:  # a page asks for all of its images at once
        return _thumbnails(split, feature, indexes)


@lru_cache(maxsize=16)
def _thumbnails(split: Path, feature: str, indexes: tuple[int, ...]) -> dict[int, bytes]:
    wanted, found, index = set(indexes), {}, 0
    for path in sorted(split.glob("*.gz")):
        with gzip.open(path) as file:
            for record in tfrecord.read_records(file):  # type: ignore[arg-type]  # it is a BinaryIO in all but name
                if index in wanted and (values := tfrecord.read_bytes_feature(record, feature)):
                    with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError):
                        found[index] = _thumbnail(values[0])
                index += 1
                if index > max(wanted):
                    return found
    return found


def _thumbnail(encoded: bytes) -> bytes:
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # a JPEG needs not be decoded whole
        small = image.convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        written = io.BytesIO()
        small.save(written, "JPEG", quality=80)
        return written.getvalue()
