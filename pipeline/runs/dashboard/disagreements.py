"""Images on which the models of two runs disagree, from the artifacts of the component Predictions."""

import contextlib
import gzip
import hashlib
import heapq
import io
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from imagepipe.base import tfrecord
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.names import ROWS

SHOWN = 60
_ROWS = 4096  # read at once
_SIDE = 96  # of a thumbnail, in pixels
_one_at_a_time = threading.Lock()
_OUTCOMES = ("only the first is right", "only the second is right", "neither is")
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
    first = _read_answers(one, regression)
    images, differ, counts = 0, 0, Counter({} if regression else dict.fromkeys(_OUTCOMES, 0))

    def find_differing() -> Iterator[Disagreement]:
        nonlocal images, differ
        for row, key in _read_rows(other):
            if (answer := first.find(key)) is None:
                continue
            images += 1
            own = _judge(row, regression)
            if answer.label != own.label:
                differ += 1
                if not regression:
                    counts[_OUTCOMES[0] if answer.right else _OUTCOMES[1] if own.right else _OUTCOMES[2]] += 1
                yield Disagreement(row["id"], _name_actual(row, regression), row["index"], answer, own)

    def measure(image: Disagreement) -> float:
        return abs(image.one.score - image.other.score) if regression else image.one.score + image.other.score

    shown = heapq.nlargest(SHOWN, find_differing(), key=measure)
    return Comparison(images, differ, dict(counts), shown)


class _Answers(NamedTuple):
    """A model's answers, sorted by the images' keys: 40 bytes for each, not objects of Python.

    Attributes:
        keys: hashes, uint64 ``[n]``, ascending.
        rows: of the answers, int64 ``[n]``; below they are in the order of the file.
        labels: text.
        scores: float64 ``[n]``.
        right: bool ``[n]``.
        regression: whether the answers are numbers, of which none is right or wrong.
    """

    keys: np.ndarray
    rows: np.ndarray
    labels: pa.ChunkedArray
    scores: np.ndarray
    right: np.ndarray
    regression: bool

    def find(self, key: int) -> ModelAnswer | None:
        """Returns the last answer for an image, None if there is none."""
        place = int(np.searchsorted(self.keys, np.uint64(key), "right")) - 1
        if place < 0 or self.keys[place] != key:
            return None
        row = int(self.rows[place])
        right = None if self.regression else bool(self.right[row])
        return ModelAnswer(self.labels[row].as_py(), float(self.scores[row]), right)


def _read_answers(folder: Path, regression: bool) -> _Answers:
    with pq.ParquetFile(folder / ROWS) as file:
        count = file.metadata.num_rows
    keys, scores, right = np.empty(count, np.uint64), np.empty(count), np.empty(count, bool)
    labels: list[pa.Array] = []
    waiting: list[str] = []
    for number, (row, key) in enumerate(_read_rows(folder)):
        answer = _judge(row, regression)
        keys[number], scores[number], right[number] = key, answer.score, bool(answer.right)
        waiting.append(answer.label)
        if len(waiting) == _ROWS:
            labels.append(pa.array(waiting, pa.string()))
            waiting = []
    order = np.argsort(keys, kind="stable")
    return _Answers(
        keys[order], order, pa.chunked_array([*labels, pa.array(waiting, pa.string())]), scores, right, regression
    )


def _read_rows(folder: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the columns of each image's row, and a hash of what identifies the image."""
    with pq.ParquetFile(folder / ROWS) as file:
        for batch in file.iter_batches(_ROWS, columns=_COLUMNS):
            for row in batch.to_pylist():
                key = (row["sha256"] or row["id"]).encode()
                yield row, int.from_bytes(hashlib.blake2b(key, digest_size=8).digest())


def _judge(row: Mapping[str, Any], regression: bool) -> ModelAnswer:
    scores = row["candidate"] or [0.0]
    label = row["candidate_label"]
    right = None if regression else set(filter(None, label.split(LABEL_SEPARATOR))) == set(row["labels"] or [])
    return ModelAnswer(label, scores[0] if regression else max(scores), right)


def _name_actual(row: Mapping[str, Any], regression: bool) -> str:
    if regression and row["target"] is not None:
        return f"{row['target']:g}"
    return LABEL_SEPARATOR.join(row["labels"] or [])


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
