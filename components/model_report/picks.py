"""Chooses the eval images that a report shows: behind each count, the worst mistakes, the most uncertain and novel."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.names import NAMES, ROWS

UNKNOWN = -1
"""Actual class of an image whose label the model doesn't know."""

_SHOWN = 18  # mistakes, and as many uncertain and novel images
_NOVEL_FROM = 0.95
_BEHIND_WRONG, _BEHIND_RIGHT = 12, 3  # images behind a cell of the confusion matrix
_BEHIND_ALL = 600  # behind all cells, so that the page stays small for any number of classes
_TINY = 1e-7
_ROWS = 4096  # at once, where an array as large as the scores would be made of them


class ArrowColumn(Sequence[Any]):
    """A column of values that become Python's only when they are asked for."""

    def __init__(self, values: pa.ChunkedArray):
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[int(index)].as_py()

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._values.chunks:
            yield from chunk.to_pylist()


@dataclass(frozen=True)
class PredictionTable:
    """The candidate's predictions for n eval images; k outputs.

    Attributes:
        task: task of the pipeline.
        names: names of the outputs.
        indexes: positions in the split's files, int64 ``[n]``.
        ids: the callers' identifiers.
        labels: actual labels of each image, any number; none in a regression.
        targets: actual values, float64 ``[n]``, NaN if there is none or the task has none.
        scores: outputs, float32 ``[n, k]``.
        answers: predicted class, labels or value, as text; '' of images that are too novel.
        novelty: how unlike the training images each is, float64 ``[n]``, 0 to 1.
    """

    task: str
    names: list[str]
    indexes: np.ndarray
    ids: Sequence[str]
    labels: Sequence[Sequence[str]]
    targets: np.ndarray
    scores: np.ndarray
    answers: Sequence[str]
    novelty: np.ndarray


@dataclass(frozen=True)
class Pick:
    """An image to show: its row in the table, and the output that a heat map is to explain."""

    row: int
    output: int


@dataclass(frozen=True)
class Picks:
    """The images of a report.

    Attributes:
        behind: rows behind counts, highest score first, at most 600 in all: in a classification by (actual, predicted)
            class; with several labels by (label, whether the image has it), for images of which the model says the
            opposite.
        counts: number of all images behind each count.
        mistakes: the wrong answers with the highest scores; in a regression the largest errors.
        uncertain: the images about which the model is least certain; none in a regression, which gives no certainty.
        novel: the images that are most unlike those trained on, of the twentieth that is.
    """

    behind: dict[tuple[int, int], list[int]]
    counts: dict[tuple[int, int], int]
    mistakes: list[Pick]
    uncertain: list[Pick]
    novel: list[Pick]


def read_predictions(folder: Path) -> PredictionTable:
    """Reads the files of the component Predictions; text stays in Arrow's memory."""
    names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    outputs = len(names["candidate"])
    chunks: dict[str, list[pa.Array]] = {"id": [], "labels": [], "candidate_label": []}
    with pq.ParquetFile(folder / ROWS) as file:
        count = file.metadata.num_rows
        numbers = {name: np.empty(count) for name in ("target", "candidate_novelty")}
        indexes, scores = np.empty(count, np.int64), np.empty((count, outputs), np.float32)
        start = 0
        for batch in file.iter_batches(_ROWS, columns=["index", "candidate", *chunks, *numbers]):
            part = slice(start, start + len(batch))
            start = part.stop
            indexes[part] = batch["index"].to_numpy(zero_copy_only=False)
            scores[part] = batch["candidate"].flatten().to_numpy(zero_copy_only=False).reshape(-1, outputs)
            for name, values in numbers.items():
                values[part] = batch[name].to_numpy(zero_copy_only=False)
            for name, some in chunks.items():
                some.append(batch[name])
        types = {name: file.schema_arrow.field(name).type for name in chunks}
    texts = {name: ArrowColumn(pa.chunked_array(some, types[name])) for name, some in chunks.items()}
    return PredictionTable(
        task=names["task"],
        names=names["candidate"],
        indexes=indexes,
        ids=texts["id"],
        labels=texts["labels"],
        targets=numbers["target"],
        scores=scores,
        answers=texts["candidate_label"],
        novelty=numbers["candidate_novelty"],
    )


def pick_images(table: PredictionTable) -> Picks:
    """Chooses the images to show."""
    if table.task == "regression":
        errors = np.abs(table.scores[:, 0] - table.targets)
        order = np.argsort(-np.nan_to_num(errors, nan=-1), kind="stable")
        return Picks({}, {}, [Pick(int(i), 0) for i in order[:_SHOWN] if errors[i] > 0], [], _pick_novel(table))
    return _pick_by_class(table) if table.task == "classification" else _pick_by_label(table)


def _pick_novel(table: PredictionTable) -> list[Pick]:
    order = np.argsort(-table.novelty, kind="stable")[:_SHOWN]
    return [Pick(int(i), int(table.scores[i].argmax())) for i in order if table.novelty[i] >= _NOVEL_FROM]


def _pick_by_class(table: PredictionTable) -> Picks:
    indexes = {name: index for index, name in enumerate(table.names)}
    first = (indexes.get(labels[0], UNKNOWN) if labels else UNKNOWN for labels in table.labels)
    actual = np.fromiter(first, np.int64, len(table.scores))
    predicted, confidence = table.scores.argmax(axis=1), table.scores.max(axis=1)
    by_confidence = np.argsort(-confidence, kind="stable")
    # One number for each pair of classes; of the rows of each pair, the first ones are kept.
    keys = ((actual - UNKNOWN) * len(table.names) + predicted)[by_confidence]
    by_key = np.argsort(keys, kind="stable")
    pairs, starts, sizes = np.unique(keys[by_key], return_index=True, return_counts=True)
    groups, counts = {}, {}
    for pair, start, size in zip(pairs.tolist(), starts.tolist(), sizes.tolist(), strict=True):
        key = (pair // len(table.names) + UNKNOWN, pair % len(table.names))
        groups[key] = by_confidence[by_key[start : start + min(size, _BEHIND_WRONG)]].tolist()
        counts[key] = size
    wrong = by_confidence[(actual != predicted)[by_confidence]][:_SHOWN]
    return _limit_picks(
        groups,
        counts,
        {key for key in groups if key[0] == key[1]},
        [Pick(int(i), int(predicted[i])) for i in wrong],
        [Pick(int(i), int(predicted[i])) for i in np.argsort(_measure_margins(table.scores), kind="stable")[:_SHOWN]],
        _pick_novel(table),
    )


def _measure_margins(scores: np.ndarray) -> np.ndarray:
    """Returns by how much the largest score of each row is above the second: the score itself, if there is one only."""
    if scores.shape[1] < 2:
        return scores[:, 0]
    margins = np.empty(len(scores), np.float32)
    for start in range(0, len(scores), _ROWS):
        best = np.partition(scores[start : start + _ROWS], -2, axis=1)
        margins[start : start + _ROWS] = best[:, -1] - best[:, -2]
    return margins


def _pick_by_label(table: PredictionTable) -> Picks:
    actual = _encode_labels(table, table.labels)
    predicted = _encode_labels(table, (text.split(LABEL_SEPARATOR) for text in table.answers))
    errors = np.abs(actual - table.scores)
    errors[actual == predicted] = -1  # right
    groups, counts = {}, {}
    for label in range(len(table.names)):
        for has in (0, 1):
            wrong = np.flatnonzero((errors[:, label] >= 0) & (actual[:, label] == has))
            if len(wrong):
                first = np.argsort(-errors[wrong, label], kind="stable")[:_BEHIND_WRONG]
                groups[label, has] = wrong[first].tolist()
                counts[label, has] = len(wrong)
    largest = errors.max(axis=1)
    worst = [i for i in np.argsort(-largest, kind="stable")[:_SHOWN] if largest[i] >= 0]
    mean = np.empty(len(table.scores), np.float32)
    for start in range(0, len(mean), _ROWS):
        mean[start : start + _ROWS] = _measure_entropy(table.scores[start : start + _ROWS]).mean(axis=1)
    uncertain = np.argsort(-mean, kind="stable")[:_SHOWN]
    return _limit_picks(
        groups,
        counts,
        set(),
        [Pick(int(i), int(errors[i].argmax())) for i in worst],
        [Pick(int(i), int(_measure_entropy(table.scores[i]).argmax())) for i in uncertain],
        _pick_novel(table),
    )


def _encode_labels(table: PredictionTable, labels_by_row: Iterable[Iterable[str]]) -> np.ndarray:
    """Returns whether each image has each of the model's labels, bool ``[n, k]``."""
    indexes = {name: index for index, name in enumerate(table.names)}
    encoded = np.zeros(table.scores.shape, bool)
    for row, labels in enumerate(labels_by_row):
        for label in labels:
            if (index := indexes.get(label)) is not None:
                encoded[row, index] = True
    return encoded


def _measure_entropy(scores: np.ndarray) -> np.ndarray:
    p = np.clip(scores, _TINY, 1 - _TINY)
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def _limit_picks(
    groups: dict[tuple[int, int], list[int]],
    counts: dict[tuple[int, int], int],
    right: set[tuple[int, int]],
    mistakes: list[Pick],
    uncertain: list[Pick],
    novel: list[Pick],
) -> Picks:
    """Keeps images behind as many counts as there is room for: behind the most frequent mistakes first."""
    behind, room = {}, _BEHIND_ALL
    for key in sorted(groups, key=lambda key: (key in right, -counts[key], key)):
        limit = _BEHIND_RIGHT if key in right else _BEHIND_WRONG
        behind[key] = groups[key][: min(limit, room)]
        room -= len(behind[key])
    return Picks({key: rows for key, rows in behind.items() if rows}, counts, mistakes, uncertain, novel)


def format_actual(table: PredictionTable, row: int) -> str:
    """Returns the actual class, labels or value of an image as text."""
    if table.task == "regression":
        return "no value" if np.isnan(table.targets[row]) else f"{table.targets[row]:.4g}"
    return ", ".join(table.labels[row]) or "no label"


def format_predicted(table: PredictionTable, row: int) -> str:
    """Returns the predicted class with its score, labels or value of an image as text."""
    if table.task == "regression":
        return f"{table.scores[row, 0]:.4g}"
    if table.task == "multilabel":
        return ", ".join(filter(None, table.answers[row].split(LABEL_SEPARATOR))) or "no label"
    return f"{table.answers[row] or 'unknown'} ({table.scores[row].max():.3f})"


def sample_values(table: PredictionTable, limit: int) -> list[tuple[float, float]]:
    """Returns at most ``limit`` (actual, predicted) values of a regression, spread over the split."""
    rows = np.flatnonzero(np.isfinite(table.targets) & np.isfinite(table.scores[:, 0]))
    chosen = rows[:: max(1, -(-len(rows) // limit))]
    return [(float(table.targets[i]), float(table.scores[i, 0])) for i in chosen]
