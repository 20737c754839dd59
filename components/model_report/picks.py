"""Chooses the eval images that a report shows: behind each count, the worst mistakes, the most uncertain and novel."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
    ids: list[str]
    labels: list[list[str]]
    targets: np.ndarray
    scores: np.ndarray
    answers: list[str]
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
    """Reads the files of the component Predictions."""
    names = json.loads((folder / NAMES).read_text())
    columns = ["index", "id", "labels", "target", "candidate", "candidate_label", "candidate_novelty"]
    table = pq.read_table(folder / ROWS, columns=columns)
    scores = table["candidate"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return PredictionTable(
        task=names["task"],
        names=names["candidate"],
        indexes=table["index"].to_numpy(),
        ids=table["id"].to_pylist(),
        labels=table["labels"].to_pylist(),
        targets=table["target"].to_numpy().astype(float),
        scores=scores.reshape(len(table), len(names["candidate"])),
        answers=table["candidate_label"].to_pylist(),
        novelty=table["candidate_novelty"].to_numpy(),
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
    actual = np.array([indexes.get(labels[0], UNKNOWN) if labels else UNKNOWN for labels in table.labels], int)
    predicted, confidence = table.scores.argmax(axis=1), table.scores.max(axis=1)
    by_confidence = np.argsort(-confidence, kind="stable")
    groups: dict[tuple[int, int], list[int]] = {}
    for i in by_confidence:
        groups.setdefault((int(actual[i]), int(predicted[i])), []).append(int(i))
    wrong = [i for i in by_confidence if actual[i] != predicted[i]][:_SHOWN]
    best_two = np.sort(table.scores, axis=1)[:, -2:]
    margins = best_two[:, -1] - best_two[:, 0] if best_two.shape[1] == 2 else confidence
    return _limit_picks(
        groups,
        {key for key in groups if key[0] == key[1]},
        [Pick(int(i), int(predicted[i])) for i in wrong],
        [Pick(int(i), int(predicted[i])) for i in np.argsort(margins, kind="stable")[:_SHOWN]],
        _pick_novel(table),
    )


def _pick_by_label(table: PredictionTable) -> Picks:
    shape = table.scores.shape
    actual = np.array([[name in labels for name in table.names] for labels in map(set, table.labels)], bool)
    answers = [set(text.split(LABEL_SEPARATOR)) for text in table.answers]
    predicted = np.array([[name in answer for name in table.names] for answer in answers], bool)
    actual, predicted = actual.reshape(shape), predicted.reshape(shape)
    errors = np.where(actual != predicted, np.abs(actual.astype(np.float32) - table.scores), -1)  # -1: right
    groups: dict[tuple[int, int], list[int]] = {}
    for label in range(len(table.names)):
        for i in np.argsort(-errors[:, label], kind="stable"):
            if errors[i, label] < 0:
                break
            groups.setdefault((label, int(actual[i, label])), []).append(int(i))
    worst = [i for i in np.argsort(-errors.max(axis=1), kind="stable") if errors[i].max() >= 0][:_SHOWN]
    p = np.clip(table.scores, _TINY, 1 - _TINY)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    uncertain = np.argsort(-entropy.mean(axis=1), kind="stable")[:_SHOWN]
    return _limit_picks(
        groups,
        set(),
        [Pick(int(i), int(errors[i].argmax())) for i in worst],
        [Pick(int(i), int(entropy[i].argmax())) for i in uncertain],
        _pick_novel(table),
    )


def _limit_picks(
    groups: dict[tuple[int, int], list[int]],
    right: set[tuple[int, int]],
    mistakes: list[Pick],
    uncertain: list[Pick],
    novel: list[Pick],
) -> Picks:
    """Keeps images behind as many counts as there is room for: behind the most frequent mistakes first."""
    behind, room = {}, _BEHIND_ALL
    for key in sorted(groups, key=lambda key: (key in right, -len(groups[key]), key)):
        limit = _BEHIND_RIGHT if key in right else _BEHIND_WRONG
        behind[key] = groups[key][: min(limit, room)]
        room -= len(behind[key])
    return Picks(
        {key: rows for key, rows in behind.items() if rows},
        {key: len(rows) for key, rows in groups.items()},
        mistakes,
        uncertain,
        novel,
    )


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
