"""Which of the eval images a report shows: those behind each figure, the worst mistakes, the most uncertain."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.names import NAMES, ROWS

UNKNOWN = -1
"""As an actual class: a label that the model doesn't know."""

_SHOWN = 18  # mistakes, and likewise uncertain images
_BEHIND_WRONG, _BEHIND_RIGHT = 12, 3  # images behind a cell of the confusion matrix
_BEHIND_ALL = 600  # behind all cells, so that the page stays small whatever the number of classes
_TINY = 1e-7


@dataclass(frozen=True)
class Rows:
    """What the candidate says of n eval images; k outputs.

    Attributes:
        task: the pipeline's.
        names: of the outputs.
        indexes: places in the split's files, int64 ``[n]``.
        ids: the callers' identifiers.
        labels: what they are, any number each; none in a regression.
        targets: float64 ``[n]``, NaN where there is none or the task has none.
        scores: float32 ``[n, k]``.
        said: in words.
    """

    task: str
    names: list[str]
    indexes: np.ndarray
    ids: list[str]
    labels: list[list[str]]
    targets: np.ndarray
    scores: np.ndarray
    said: list[str]


@dataclass(frozen=True)
class Pick:
    """An image to show: its row, and the output that a heat map is to explain."""

    row: int
    output: int


@dataclass(frozen=True)
class Picks:
    """The images of a report.

    Attributes:
        behind: rows behind figures, the surest first, at most 600 of all: in a classification by (actual, predicted)
            class, with several labels by (label, whether it is there), where the model says the opposite.
        counts: how many images there are behind each.
        mistakes: the surest of the wrong answers; in a regression the largest errors.
        uncertain: the images that the model hesitates about; none in a regression, whose model says nothing of it.
    """

    behind: dict[tuple[int, int], list[int]]
    counts: dict[tuple[int, int], int]
    mistakes: list[Pick]
    uncertain: list[Pick]


def load(folder: Path) -> Rows:
    """Reads what the component Predictions wrote."""
    names = json.loads((folder / NAMES).read_text())
    columns = ["index", "id", "labels", "target", "candidate", "candidate_label"]
    table = pq.read_table(folder / ROWS, columns=columns)
    scores = table["candidate"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return Rows(
        task=names["task"],
        names=names["candidate"],
        indexes=table["index"].to_numpy(),
        ids=table["id"].to_pylist(),
        labels=table["labels"].to_pylist(),
        targets=table["target"].to_numpy().astype(float),
        scores=scores.reshape(len(table), len(names["candidate"])),
        said=table["candidate_label"].to_pylist(),
    )


def pick(rows: Rows) -> Picks:
    """Chooses the images to show."""
    if rows.task == "regression":
        errors = np.abs(rows.scores[:, 0] - rows.targets)
        order = np.argsort(-np.nan_to_num(errors, nan=-1), kind="stable")
        return Picks({}, {}, [Pick(int(i), 0) for i in order[:_SHOWN] if errors[i] > 0], [])
    return _of_one_class(rows) if rows.task == "classification" else _of_several_labels(rows)


def _of_one_class(rows: Rows) -> Picks:
    places = {name: place for place, name in enumerate(rows.names)}
    actual = np.array([places.get(labels[0], UNKNOWN) if labels else UNKNOWN for labels in rows.labels], int)
    predicted, sure = rows.scores.argmax(axis=1), rows.scores.max(axis=1)
    by_sureness = np.argsort(-sure, kind="stable")
    groups: dict[tuple[int, int], list[int]] = {}
    for i in by_sureness:
        groups.setdefault((int(actual[i]), int(predicted[i])), []).append(int(i))
    wrong = [i for i in by_sureness if actual[i] != predicted[i]][:_SHOWN]
    two = np.sort(rows.scores, axis=1)[:, -2:]
    hesitant = np.argsort(two[:, -1] - two[:, 0] if two.shape[1] == 2 else sure, kind="stable")[:_SHOWN]
    return _picks(
        groups,
        {key for key in groups if key[0] == key[1]},
        [Pick(int(i), int(predicted[i])) for i in wrong],
        [Pick(int(i), int(predicted[i])) for i in hesitant],
    )


def _of_several_labels(rows: Rows) -> Picks:
    there = np.array([[name in labels for name in rows.names] for labels in map(set, rows.labels)], bool)
    answers = [set(text.split(LABEL_SEPARATOR)) for text in rows.said]
    said = np.array([[name in answer for name in rows.names] for answer in answers], bool)
    there, said = there.reshape(rows.scores.shape), said.reshape(rows.scores.shape)
    off = np.where(there != said, np.abs(there.astype(np.float32) - rows.scores), -1)  # of what is wrong only
    groups: dict[tuple[int, int], list[int]] = {}
    for label in range(len(rows.names)):
        for i in np.argsort(-off[:, label], kind="stable"):
            if off[i, label] < 0:
                break
            groups.setdefault((label, int(there[i, label])), []).append(int(i))
    worst = [i for i in np.argsort(-off.max(axis=1), kind="stable") if off[i].max() >= 0][:_SHOWN]
    p = np.clip(rows.scores, _TINY, 1 - _TINY)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    hesitant = np.argsort(-entropy.mean(axis=1), kind="stable")[:_SHOWN]
    return _picks(
        groups,
        set(),
        [Pick(int(i), int(off[i].argmax())) for i in worst],
        [Pick(int(i), int(entropy[i].argmax())) for i in hesitant],
    )


def _picks(
    groups: dict[tuple[int, int], list[int]],
    right: set[tuple[int, int]],
    mistakes: list[Pick],
    uncertain: list[Pick],
) -> Picks:
    """Keeps images behind as many figures as there is room for: behind the most frequent mistakes first."""
    behind, left = {}, _BEHIND_ALL
    for key in sorted(groups, key=lambda key: (key in right, -len(groups[key]), key)):
        most = _BEHIND_RIGHT if key in right else _BEHIND_WRONG
        behind[key] = groups[key][: min(most, left)]
        left -= len(behind[key])
    return Picks(
        {key: found for key, found in behind.items() if found},
        {key: len(found) for key, found in groups.items()},
        mistakes,
        uncertain,
    )


def actual(rows: Rows, row: int) -> str:
    """What an image is, in words."""
    if rows.task == "regression":
        return "no value" if np.isnan(rows.targets[row]) else f"{rows.targets[row]:.4g}"
    return ", ".join(rows.labels[row]) or "no label"


def said(rows: Rows, row: int) -> str:
    """What the candidate says, in words, with the score of a class."""
    if rows.task == "regression":
        return f"{rows.scores[row, 0]:.4g}"
    if rows.task == "multilabel":
        return ", ".join(filter(None, rows.said[row].split(LABEL_SEPARATOR))) or "no label"
    return f"{rows.said[row]} ({rows.scores[row].max():.3f})"


def scatter(rows: Rows, most: int) -> list[tuple[float, float]]:
    """Of a regression at most so many (actual, predicted), spread over the split."""
    known = np.flatnonzero(np.isfinite(rows.targets) & np.isfinite(rows.scores[:, 0]))
    chosen: Any = known[:: max(1, -(-len(known) // most))]
    return [(float(rows.targets[i]), float(rows.scores[i, 0])) for i in chosen]
