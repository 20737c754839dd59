"""One record of a source: its label read as the task wants it, its side features and their types."""

import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TypedDict

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.features import SIZE
from imagepipe.base.labels import find_fault
from imagepipe.base.names import TaskName
from imagepipe.ingest.dataset import Dataset, list_features

RESERVED = frozenset(list_features("classification")) - {"label"} | {SIZE}
"""Names of features that every record has, or the evaluation makes, which no side feature may have."""

_ROWS_IN_FILE = 10_000  # one unit of work for a remote worker: 1 GB of images of 100 kB

# No leading zeros: 007 and 02139 are names, not numbers.
_INT = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?")
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
    """

    path: str
    row: int | None
    reason: str | None
    metadata: str
    labels: list[str]
    side: dict[str, Side]


def infer_type(value: Side) -> str:
    """Returns the narrowest feature type that holds a side value: ``int64``, ``float`` or ``bytes``.

    Text counts as the number that it spells, as CSV has nothing but text.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= 20 and _INT.fullmatch(text):  # more digits than 64 bits have are an identifier
        return "int64" if -(2**63) <= int(text) < 2**63 else "bytes"
    return "float" if _is_number(text) and not text.lstrip("-").isdigit() else "bytes"


def widen(one: str, other: str) -> str:
    """Returns the feature type that holds values of both types."""
    return max(one, other, key=_WIDER.index)


def make_feature(value: Side, type_: str) -> bytes | int | float:
    """Returns a side value as a value of a feature type that is at least as wide as its own."""
    text = value if isinstance(value, str) else json.dumps(value)
    if type_ == "int64":
        return int(text)
    return float(text) if type_ == "float" else os.fsencode(text)


def reject(path: str, row: int | None, reason: str) -> Row:
    """Returns a record that can't be used."""
    return Row(path=path, row=row, reason=reason, metadata="", labels=[], side={})


def make_row(path: str, row: int | None, metadata: str, label: object, side: dict[str, Side], task: TaskName) -> Row:
    """Returns a row with its label read as the task wants it, or a rejected one."""
    if isinstance(label, bool | list | dict):
        return reject(path, row, "label is neither text nor a number")
    text = "" if label is None else unicodedata.normalize("NFC", str(label)).strip()  # macOS decomposes accents
    labels = sorted({part for part in map(str.strip, text.split("|")) if part}) if task == "multilabel" else [text]
    if not text or not labels:
        return reject(path, row, "missing label")
    if task == "regression":
        if not _is_number(text):
            return reject(path, row, f"label is not a number: {text[:100]}")
        labels = [repr(float(text))]
    if fault := next(filter(None, map(find_fault, labels)), None):
        return reject(path, row, f"label holds {fault}: {text[:100]!r}")
    return Row(path=path, row=row, reason=None, metadata=metadata, labels=labels, side=side)


def _is_number(text: str) -> bool:
    return bool(_FLOAT.fullmatch(text)) and any(c.isdigit() for c in text) and math.isfinite(float(text))


@dataclass(frozen=True)
class Spool:
    """The rows of a source, written to files for Beam.

    Attributes:
        rows: their number.
        files: paths of JSON-lines files of Row.
        features: name to type of every side feature, of the dataset's records too.
    """

    rows: int
    files: list[str]
    features: dict[str, str]


def spool_rows(rows: Iterable[Row], staging: str, dataset: Dataset) -> Spool:
    """Writes rows to files, as Beam's job descriptions have no room for them, and infers the side features' types.

    Args:
        rows: of a source.
        staging: folder that is written to.
        dataset: that the rows are added to.

    Raises:
        IngestError: a column's values don't fit its type in the dataset.
    """
    own = list_features(dataset.options.task)
    fixed = {name: type_ for name, type_ in dataset.features.items() if name not in own}
    types: dict[str, str] = {}
    count = 0
    paths: list[str] = []
    stream = iter(rows)
    while chunk := list(islice(stream, _ROWS_IN_FILE)):
        count += len(chunk)
        paths.append(f"{staging}/rows/{len(paths):06}.jsonl")
        with filesystem.create(paths[-1]) as file:
            file.write("".join(json.dumps(row) + "\n" for row in chunk).encode())
        for name, value in (item for row in chunk for item in row["side"].items()):
            types[name] = widen(types.get(name, "int64"), infer_type(value))
    for name, type_ in types.items():
        if name in fixed and widen(fixed[name], type_) != fixed[name]:
            raise IngestError(
                f"Column '{name}' is {fixed[name]} in the dataset, and holds {type_} values now: correct the values, "
                "or ingest everything into a new folder."
            )
    return Spool(count, paths, {**types, **fixed})
