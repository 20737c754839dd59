"""Accuracy in service: true labels that came later, joined with what the model had answered."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.features import LABEL_SEPARATOR, restore_whole
from imagepipe.base.labels import list_names, read_labels, split_labels
from imagepipe.base.names import TaskName
from imagepipe.base.progress import print_note
from imagepipe.monitoring.traffic import read_tables
from imagepipe.monitoring.two_samples import estimate_share

MAX_VALUES = 20
"""Values of a column whose accuracy is given: those with the most images."""

_IDS = ("metadata", "request_id")
_LABEL = "label"


class Truths(NamedTuple):
    """A file of true labels.

    Attributes:
        key: the column that its lines are known by.
        labels: the true label by id, several joined by LABEL_SEPARATOR.
        columns: by the name of each further column its values by id.
    """

    key: str
    labels: dict[str, str]
    columns: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Accuracy:
    """How well a version did in service, on all images or on a slice of them.

    Attributes:
        version: of the model.
        column: a column of the file of true labels, such as the label itself; "" for all images.
        slice: the value that these images have there; "" if there is none.
        images: number of answers whose true label came.
        value: share of the right ones; of a regression the mean absolute error.
        interval: its 95 % confidence interval; of a regression by the normal distribution.
    """

    version: str
    column: str
    slice: str
    images: int
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Feedback:
    """True labels, joined with answers: lines = joined + unmatched + ambiguous.

    Attributes:
        lines: ids in the file, each counted once; of several lines the last holds.
        joined: those with an answer.
        unmatched: those whose answer was not captured.
        ambiguous: ids under which several images were asked about, so that they say nothing of one.
        accuracies: by version.
        slices: by column, value and version: of each column the MAX_VALUES values with the most images.
        values_left_out: of columns with more values, how many are not among the slices.
    """

    lines: int
    joined: int
    unmatched: int
    ambiguous: int
    accuracies: list[Accuracy]
    slices: list[Accuracy]
    values_left_out: dict[str, int]


def join_feedback(file: str, capture: str, task: TaskName, since: datetime | None = None) -> Feedback:
    """Joins true labels with captured answers.

    Args:
        file: CSV or JSON lines with ``metadata`` or ``request_id``, and ``label`` as ``read_labels`` reads it; path or
            URI. Further columns are slices by which the accuracy is given, as the label is of all tasks but a
            regression.
        capture: folder of captured traffic. Of an image that a version was asked about more than once, its last answer
            counts.
        task: of the model.
        since: leaves out what was answered before.

    Raises:
        ModelError: if the file can't be read as such.
    """
    key, truths, columns = read_truths(file, task)
    answers: dict[tuple[str, str], tuple[Any, ...]] = {}  # by id and version
    images: dict[str, str] = {}
    several: set[str] = set()
    answered: set[str] = set()
    for _, table in read_tables(capture, ["time", "version", "label", "score", "sha256", key], since):
        answered.update(table[_LABEL].to_pylist() if task != "regression" else ())  # numbers are no names
        for row in table.to_pylist():
            identity = read_id(row, key)
            if identity not in truths:
                continue
            if images.setdefault(identity, row["sha256"]) != row["sha256"]:
                several.add(identity)
            answer = (row["time"], row["label"], row["score"])
            previous = answers.get((identity, row["version"]))
            if previous is None or previous[0] < answer[0]:
                answers[identity, row["version"]] = answer
    warn_of_other_labels(truths.values(), answered, task)
    joined = {place: answer for place, answer in answers.items() if place[0] not in several}
    matched = {identity for identity, _ in joined}
    slices: dict[tuple[str, str], dict[str, list[float]]] = {}  # errors by column, value and version
    for (identity, version), (_, label, score) in joined.items():
        truth = truths[identity]
        error = measure_error(label, score, truth, task)
        labels = set() if task == "regression" else set(split_labels(truth, task) or [""])
        values = {(name, by_id.get(identity, "")) for name, by_id in columns.items()}
        for place in {("", ""), *((_LABEL, one) for one in labels), *values}:
            slices.setdefault(place, {}).setdefault(version, []).append(error)
    whole = slices.pop(("", ""), {})
    shown, left_out = _choose_slices(slices)
    return Feedback(
        len(truths),
        len(matched),
        len(truths) - len(matched) - len(several),
        len(several),
        [_estimate(version, "", "", errors, task) for version, errors in sorted(whole.items())],
        [_estimate(version, *at, errors, task) for at in shown for version, errors in sorted(slices[at].items())],
        left_out,
    )


def read_id(row: Mapping[str, Any], key: str) -> str:
    """Returns the id of a captured row in the column that true labels are known by."""
    value = row[key]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _choose_slices(
    slices: Mapping[tuple[str, str], Mapping[str, list[float]]],
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Returns the slices with the most images of each column, the label's first, and how many others it has."""
    images = {place: sum(map(len, errors.values())) for place, errors in slices.items()}
    ranked = sorted(images, key=lambda place: (place[0] != _LABEL, place[0], -images[place], place[1]))
    counts: Counter[str] = Counter()
    shown = []
    for column, value in ranked:
        counts[column] += 1
        if counts[column] <= MAX_VALUES:
            shown.append((column, value))
    return shown, {column: count - MAX_VALUES for column, count in counts.items() if count > MAX_VALUES}


def measure_error(label: str, score: float, truth: str, task: TaskName) -> float:
    """Returns the absolute error of a regression's value, else 1 for a wrong answer and 0 for a right one."""
    if task == "regression":
        return abs(score - float(truth))
    return float(split_labels(label, task) != split_labels(truth, task))


def warn_of_other_labels(truths: Iterable[str], answers: Iterable[str], task: TaskName) -> None:
    """Says it to the user if no true label is among the labels that were answered: they may be spelled otherwise."""
    if task == "regression":
        return
    given, answered = ({one for text in texts for one in split_labels(text, task)} for texts in (truths, answers))
    if given and answered and not given & answered:
        print_note(
            f"No true label ({list_names(sorted(given))}) is among the labels that were answered "
            f"({list_names(sorted(answered))}), so none is counted as right. Write them as the model does."
        )


def _estimate(version: str, column: str, value: str, errors: list[float], task: TaskName) -> Accuracy:
    count = len(errors)
    mean = math.fsum(errors) / count
    if task == "regression":
        spread = math.sqrt(math.fsum((error - mean) ** 2 for error in errors) / max(count - 1, 1) / count)
        return Accuracy(version, column, value, count, mean, (mean - 1.96 * spread, mean + 1.96 * spread))
    right = count - round(math.fsum(errors))
    return Accuracy(version, column, value, count, right / count, estimate_share(right, count))


def read_truths(file: str, task: TaskName) -> Truths:
    """Reads true labels, see ``join_feedback``.

    Raises:
        ModelError: if the file can't be read as such.
    """
    rows = list(_read_lines(file))
    if not rows:
        raise ModelError(f"{file}: there are no labels")
    key = next((name for name in _IDS if all(_is_given(row.get(name)) for row in rows)), "")
    truths: dict[str, str] = {}
    columns: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, start=1):
        if not any(_is_given(row.get(name)) for name in _IDS) or _LABEL not in row:
            raise ModelError(f"{file}: row {number} needs 'metadata' or 'request_id', and 'label'; it has {list(row)}")
        try:
            labels = read_labels(row[_LABEL], task)
        except ValueError as error:
            raise ModelError(f"{file}: row {number}: {error}") from None
        if not labels and (task != "multilabel" or row[_LABEL] is None):  # an image may have none of several labels
            raise ModelError(f"{file}: row {number}: the label is empty; leave out rows whose label is not there yet")
        identity = str(restore_whole(row.get(key)))
        truths[identity] = LABEL_SEPARATOR.join(labels)
        for by_id in columns.values():
            by_id.pop(identity, None)
        for column, value in row.items():
            if column and column not in (_LABEL, *_IDS):  # not cells beyond the header's, nor a column without a name
                columns.setdefault(column, {})[identity] = "" if value is None else str(value)
    if not key:
        raise ModelError(f"{file}: some rows have no 'metadata', others no 'request_id': one of them has to be in all")
    return Truths(key, truths, columns)


def _is_given(value: Any) -> bool:
    return value not in (None, "")


def _read_lines(file: str) -> Iterator[Mapping[str, Any]]:
    try:
        text = filesystem.read_text(file).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} is not text in UTF-8: {error}") from None
    if text.lstrip().startswith("["):
        raise ModelError(f"{file} is one JSON array: write a JSON object per line")
    if not text.lstrip().startswith("{"):
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            yield from table
        except csv.Error as error:
            raise ModelError(f"{file}: line {table.line_num} is no CSV: {error}. Is there a quote too many?") from None
        return
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):  # splitlines also ends at U+2028
        if line.strip():
            try:
                row = json.loads(line, parse_constant=_read_constant)
            except ValueError as error:
                raise ModelError(f"{file}: line {number} is not JSON: {error}") from None
            yield row if isinstance(row, dict) else {}


def _read_constant(text: str) -> None:
    """Reads NaN, which pandas writes for what is missing, as null."""
    if text != "NaN":
        raise ValueError(f"{text} is no number")
