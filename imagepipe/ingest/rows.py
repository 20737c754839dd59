"""One record of a source: its label read as the task wants it, its side features and their types."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypedDict

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.features import MISSING_NUMBERS, SIZE, restore_whole
from imagepipe.base.labels import DECIMAL_COMMA, is_number, read_labels
from imagepipe.base.names import TaskName
from imagepipe.base.progress import print_note
from imagepipe.base.splits import Layout, list_split_names, resolve_split
from imagepipe.ingest.dataset import Dataset, list_features
from imagepipe.ingest.parts import Part

RESERVED = frozenset(list_features("classification", has_groups=True)) - {"label"} | {SIZE}
"""Names of features that every record has, or the evaluation makes, which no side feature may have."""

MISSING_FILE = "missing file"
"""Why a row can't be used whose file isn't there."""

_ROWS_IN_FILE = 10_000  # one unit of work for a remote worker: 1 GB of images of 100 kB

# No leading zeros: 007 and 02139 are names, not numbers.
_INT = re.compile(r"-?(0|[1-9][0-9]*)")
_EXACT = 2**53  # whole numbers below are floats exactly
_WIDER = ("int64", "float", "bytes")  # a value of one type can be written as any type after it

Side = str | int | float


class Row(TypedDict):
    """One record of a source.

    Attributes:
        path: absolute path or URI of the image; of the manifest, if the row doesn't say.
        row: line of the manifest, from 1; None for folders.
        reason: why it can't be used, or None.
        metadata: the path as the user wrote it, or relative to the source folder.
        labels: one label; for multilabel one or more, sorted; for regression a number's text.
        side: side features, from the further columns that aren't empty.
        split: the split that the source gives the image; None if it gives none.
        group: the group that it gives the image; None if it gives none.
        at: where the image lies if it is a part of a larger file; None if it is the file at ``path``.
    """

    path: str
    row: int | None
    reason: str | None
    metadata: str
    labels: list[str]
    side: dict[str, Side]
    split: str | None
    group: str | None
    at: Part | None


def infer_type(value: Side) -> str:
    """Returns the narrowest feature type that holds a side value: ``int64``, ``float`` or ``bytes``.

    Text counts as the number that it spells, as CSV has nothing but text.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= 20 and _INT.fullmatch(text):  # more digits than 64 bits have are an identifier
        return "int64" if -(2**63) <= int(text) < 2**63 else "bytes"
    return "float" if is_number(text) and not text.lstrip("-").isdigit() else "bytes"


def widen(one: str, other: str) -> str:
    """Returns the feature type that holds values of both types."""
    return max(one, other, key=_WIDER.index)


def make_features(side: Mapping[str, Side], types: Mapping[str, str]) -> dict[str, list[bytes | int | float]]:
    """Returns the features of a record's side values, without those that are missing.

    Args:
        side: values by column; text such as NA is missing in a column of numbers, and a value in one of text.
        types: by column, at least as wide as the values'; a column without a type has no values.
    """
    return {
        name: [_make_feature(value, types[name])]
        for name, value in side.items()
        if name in types and (types[name] == "bytes" or value not in MISSING_NUMBERS)
    }


def _make_feature(value: Side, type_: str) -> bytes | int | float:
    text = value if isinstance(value, str) else json.dumps(value)
    if type_ == "int64":
        return int(text) if _INT.fullmatch(text) else int(float(text))
    return float(text) if type_ == "float" else os.fsencode(text)


def digest_side(side: Mapping[str, Side], types: Mapping[str, str]) -> str | None:
    """Returns a hash by which edited side values are told, hex; None if there are none. See ``make_features``."""
    features = sorted(make_features(side, types).items())
    return hashlib.sha256(repr(features).encode()).hexdigest()[:16] if features else None


def reject(path: str, row: int | None, reason: str) -> Row:
    """Returns a record that can't be used."""
    return Row(path=path, row=row, reason=reason, metadata="", labels=[], side={}, split=None, group=None, at=None)


def make_row(
    path: str,
    row: int | None,
    metadata: str,
    label: object,
    side: dict[str, Side],
    task: TaskName,
    *,
    split: object = None,
    group: object = None,
    at: Part | None = None,
) -> Row:
    """Returns a row with its label read as the task wants it, or a rejected one.

    Args:
        path: of the image.
        row: line of the manifest.
        metadata: the path as the user wrote it.
        label: as the source has it, see ``imagepipe.base.labels.read_labels``.
        side: side features.
        task: how the label is read.
        split: the split as the source calls it; None or blank if it gives none.
        group: the group as the source calls it; None or blank if it gives none.
        at: where the image lies if it is a part of a larger file.
    """
    try:
        labels = read_labels(label, task)
    except ValueError as error:
        return reject(path, row, str(error))
    if not labels:
        return reject(path, row, "missing label")
    return Row(
        path=path,
        row=row,
        reason=None,
        metadata=metadata,
        labels=labels,
        side=side,
        split=_read_name(split),
        group=_read_name(group),
        at=at,
    )


def compile_group(pattern: str) -> re.Pattern[str]:
    """Returns the pattern that tells an image's group by its path.

    Raises:
        IngestError: it is none, or doesn't say which part of the path tells it.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise IngestError(f"--group {pattern} is no regular expression: {error}.") from error
    if compiled.groups != 1:
        raise IngestError(
            f"--group {pattern}: of files it is a regular expression with one group in parentheses, the part of the "
            r"path that tells an image's group, such as (patient\d+)."
        )
    return compiled


def make_folder_row(
    path: str,
    metadata: str,
    layout: Layout,
    task: TaskName,
    passed_over: Counter[str],
    *,
    split: str | None = None,
    group: re.Pattern[str] | None = None,
    at: Part | None = None,
) -> Row | None:
    """Returns the row of a file in class folders; None if it is passed over, and counted.

    Args:
        path: of the file.
        metadata: its path relative to the source.
        layout: which of the source's folders are splits.
        task: how the label is read.
        passed_over: is added to.
        split: the split where the folders say none.
        group: its first group in parentheses, in the path, is the image's group.
        at: where the image lies if it is a part of a larger file.
    """
    folder, label = layout.read_path(metadata)
    if folder in layout.unlabelled:
        passed_over[f"without a label in {folder}, for imagepipe predict"] += 1
        return None
    if layout.splits and folder is None and "/" in metadata:
        return reject(path, None, f"in none of the folders that are splits ({', '.join(layout.splits)})")
    match = group.search(metadata) if group else None
    return make_row(
        path, None, metadata, label, {}, task, split=folder or split, group=match[1] if match else None, at=at
    )


def _read_name(value: object) -> str | None:
    return None if value is None else str(restore_whole(value)).strip() or None


@dataclass(frozen=True)
class Spool:
    """The rows of a source, written to files for Beam.

    Attributes:
        rows: their number.
        files: paths of JSON-lines files of Row, whose splits are those of the dataset.
        features: name to type of every side feature, of the dataset's records too.
        given: number of rows that the source gives a split, by what it calls the split and which that is.
        unsplit: number of rows that it gives none.
        grouped: number of rows that it gives a group.
        lacking: side features of the dataset that it has none of.
    """

    rows: int
    files: list[str]
    features: dict[str, str]
    given: Counter[tuple[str, str]]
    unsplit: int
    grouped: int
    lacking: list[str]


def spool_rows(rows: Iterable[Row], staging: str, dataset: Dataset) -> Spool:
    """Writes rows to files, as Beam's job descriptions have no room for them, and infers the side features' types.

    Args:
        rows: of a source.
        staging: folder that is written to.
        dataset: that the rows are added to.

    Raises:
        IngestError: a column's values don't fit its type in the dataset.
    """
    own = list_features(dataset.options.task, has_groups=True)
    fixed = {name: type_ for name, type_ in dataset.features.items() if name not in own}
    columns: dict[str, _Column] = {}
    count = grouped = unsplit = 0
    given: Counter[tuple[str, str]] = Counter()
    no_names: Counter[str] = Counter()
    missing: Counter[tuple[str, str]] = Counter()
    paths: list[str] = []
    splits = dataset.options.splits
    stream = (_name_split(_drop_missing(row, splits, missing), splits, given) for row in rows)
    while chunk := list(islice(stream, _ROWS_IN_FILE)):
        count += len(chunk)
        unsplit += sum(row["split"] is None and row["reason"] is None for row in chunk)
        grouped += sum(row["group"] is not None for row in chunk)
        no_names.update(label for row in chunk for label in row["labels"] if label in MISSING_NUMBERS)
        paths.append(f"{staging}/rows/{len(paths):06}.jsonl")
        with filesystem.create(paths[-1]) as file:
            file.write("".join(json.dumps(row) + "\n" for row in chunk).encode())
        for row in chunk:
            for name, value in row["side"].items():
                column = columns.setdefault(name, _Column(fixed.get(name)))
                column.add(value, f"line {row['row']}" if row["row"] else row["path"])
    for label, number in no_names.items():
        print_note(
            f"{number:,} images have the label '{label}', which is taken for a class of that name. If it says that an "
            "image has none, leave it empty."
        )
    for (kind, text), number in missing.items():
        print_note(
            f"{number:,} images have the {kind} '{text}', which is taken for none, so each is drawn alone. If it names "
            f"a {kind}, write another name."
        )
    types = {}
    for name, column in columns.items():
        if column.misfit:
            raise IngestError(
                f"Column '{name}' is {fixed[name]} in the dataset, and {column.misfit}: correct the value, or leave it "
                "empty; or ingest everything into a new folder."
            )
        if note := column.describe_odd_text():
            print_note(f"Column '{name}' is text, {note}, and ingest into a new folder.")
        if column.type:
            types[name] = column.type
    return Spool(count, paths, {**types, **fixed}, given, unsplit, grouped, sorted(fixed.keys() - columns.keys()))


def _drop_missing(row: Row, splits: Collection[str], missing: Counter[tuple[str, str]]) -> Row:
    """Returns a row without a split or group that is text such as NA, and counts it: it would make one huge group."""
    if row["split"] in MISSING_NUMBERS and row["split"] not in splits:
        missing["split", row["split"]] += 1
        row = {**row, "split": None}
    if row["group"] in MISSING_NUMBERS:
        missing["group", row["group"]] += 1
        row = {**row, "group": None}
    return row


def _name_split(row: Row, splits: Collection[str], given: Counter[tuple[str, str]]) -> Row:
    """Returns a row whose split is called as the dataset calls it, and counts it; or a rejected one."""
    if row["split"] is None:
        return row
    split = resolve_split(row["split"], splits)
    if split is None:
        names = ", ".join(list_split_names(splits))
        return reject(row["path"], row["row"], f"split is none of {names}: {row['split'][:100]!r}")
    given[row["split"], split] += 1
    return {**row, "split": split}


class _Column:
    """The type of a column's values, as they come.

    Attributes:
        type: the narrowest feature type that holds them, but for missing ones; None if all are missing.
        numbers: how many are numbers.
        texts: how many are neither numbers nor missing.
        commas: how many of these are numbers but for a comma in place of the point.
        text: where the first of them is.
        misfit: where the first is that doesn't fit the type that the column has in the dataset.
    """

    def __init__(self, fixed: str | None) -> None:
        self.fixed = fixed
        self.type: str | None = None
        self.numbers = self.texts = self.commas = 0
        self.text = self.misfit = ""

    def add(self, value: Side, where: str) -> None:
        if value in MISSING_NUMBERS:
            return
        type_ = infer_type(value)
        if type_ == "float" and self.fixed == "int64" and float(value).is_integer() and abs(float(value)) < _EXACT:
            type_ = "int64"  # pandas writes whole numbers as 3.0 if some are missing
        self.type = widen(self.type or type_, type_)
        is_text = type_ == "bytes"
        self.texts += is_text
        self.numbers += not is_text
        self.commas += is_text and bool(DECIMAL_COMMA.fullmatch(str(value)))
        if is_text and not self.text:
            self.text = f"{where} has {str(value)[:100]!r}"
        if self.fixed and not self.misfit and widen(self.fixed, type_) != self.fixed:
            self.misfit = f"{where} has {str(value)[:100]!r} now"

    def describe_odd_text(self) -> str | None:
        """Returns what is odd about a column of text that may be meant as one of numbers, and what to do."""
        if self.commas and self.commas == self.texts:
            return f"as {self.text}, whose comma is no point. If these are numbers, write them with a point"
        if self.texts and self.numbers > self.texts:
            return (
                f"as {self.text}, though {self.numbers:,} of its values are numbers. If all should be, correct this "
                "value or leave it empty"
            )
        return None
