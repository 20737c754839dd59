"""Images on which the models of two runs disagree, from the artifacts of the component Predictions."""

import contextlib
import gzip
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet
from PIL import Image

from imagepipe.base import tfrecord
from imagepipe.base.features import LABEL_SEPARATOR

SHOWN = 60
_ROWS = 4096  # read at once
_SIDE = 96  # of a thumbnail, in pixels
_one_at_a_time = threading.Lock()
_COLUMNS = ["index", "id", "sha256", "labels", "target", "candidate", "candidate_label"]


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer for an image: the label and its score; for a regression the score is the value."""

    label: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class Disagreement:
    """An image and each model's answer; ``index`` is its position in the second run's eval split."""

    id: str
    actual: str
    index: int
    one: ModelAnswer
    other: ModelAnswer


@dataclass(frozen=True)
class Comparison:
    """Two runs' predictions for the images that both had.

    Attributes:
        images: number of these images.
        differ: number of images on which the answers differ.
        counts: of those, how many only the first model gets right, only the second, or neither; empty for a regression.
        shown: up to ``SHOWN`` of them: those with the highest scores or, for a regression, the largest differences.
    """

    images: int
    differ: int
    counts: dict[str, int]
    shown: list[Disagreement]


@lru_cache(maxsize=16)
def compare(one: Path, other: Path, regression: bool) -> Comparison:
    """Compares two artifacts of predictions, which never change once they are there.

    Args:
        one: folder of the first.
        other: folder of the second.
        regression: whether the answers are numbers.

    Raises:
        OSError, ValueError, KeyError: if one is missing, or is no such artifact.
    """
    first_answers = {key: answer for key, *_, answer in _read_rows(one, regression)}
    images, differing = 0, []
    for key, index, name, actual, answer in _read_rows(other, regression):
        if key in first_answers:
            images += 1
            if first_answers[key].label != answer.label:
                differing.append(Disagreement(name, actual, index, first_answers[key], answer))
    counts: dict[str, int] = {}
    if not regression:
        counts = {
            "only the first is right": sum(bool(d.one.right) for d in differing),
            "only the second is right": sum(bool(d.other.right) for d in differing),
            "neither is": sum(not d.one.right and not d.other.right for d in differing),
        }
        differing.sort(key=lambda d: -(d.one.score + d.other.score))
    else:
        differing.sort(key=lambda d: -abs(d.one.score - d.other.score))
    return Comparison(images, len(differing), counts, differing[:SHOWN])


def _read_rows(folder: Path, regression: bool) -> Iterator[tuple[str, int, str, str, ModelAnswer]]:
    """Yields key, index, id, actual label and answer for each image."""
    with pyarrow.parquet.ParquetFile(folder / "predictions.parquet") as file:
        for batch in file.iter_batches(_ROWS, columns=_COLUMNS):
            for row in batch.to_pylist():
                labels = row["labels"] or []
                actual = (
                    f"{row['target']:g}" if regression and row["target"] is not None else LABEL_SEPARATOR.join(labels)
                )
                scores = row["candidate"] or [0.0]
                label = row["candidate_label"]
                right = None if regression else set(filter(None, label.split(LABEL_SEPARATOR))) == set(labels)
                answer = ModelAnswer(label, scores[0] if regression else max(scores), right)
                yield row["sha256"] or row["id"], row["index"], row["id"], actual, answer


def make_thumbnails(split: Path, feature: str, indexes: tuple[int, ...]) -> dict[int, bytes]:
    """Returns small JPEGs of some images of a split by index, without those that can't be read.

    One pass over the records, as compressed files can't be entered in the middle.

    Args:
        split: folder of a split of an Examples artifact.
        feature: name of the feature with the encoded image.
        indexes: positions of the images in the split.
    """
    with _one_at_a_time:  # a page asks for all of its images at once
        return _make_thumbnails(split, feature, indexes)


@lru_cache(maxsize=16)
def _make_thumbnails(split: Path, feature: str, indexes: tuple[int, ...]) -> dict[int, bytes]:
    wanted, thumbnails, index = set(indexes), {}, 0
    for path in sorted(split.glob("*.gz")):
        with gzip.open(path) as file:
            for record in tfrecord.read_records(file):  # type: ignore[arg-type]  # it is a BinaryIO in all but name
                if index in wanted and (values := tfrecord.read_bytes_feature(record, feature)):
                    with contextlib.suppress(OSError, ValueError, Image.DecompressionBombError):
                        thumbnails[index] = _make_thumbnail(values[0])
                index += 1
                if index > max(wanted):
                    return thumbnails
    return thumbnails


def _make_thumbnail(encoded: bytes) -> bytes:
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # a JPEG need not be decoded at full size
        small = image.convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        written = io.BytesIO()
        small.save(written, "JPEG", quality=80)
        return written.getvalue()
