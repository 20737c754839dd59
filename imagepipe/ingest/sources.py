"""Sources of labelled images: a folder of class folders, a CSV manifest, a JSON-lines manifest.

Each is read as a stream of rows, one per file or manifest row, whether or not it can be used.
"""

import csv
import io
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.features import SIZE
from imagepipe.base.labels import find_fault
from imagepipe.base.names import TaskName
from imagepipe.ingest.dataset import Dataset, list_features

MAX_LINE = 2**20
"""Longest line of a manifest, in characters: a longer one is no row but an accident, or an attack on the memory."""

RESERVED = frozenset(list_features("classification")) - {"label"} | {SIZE}
"""Names of features that every record has, or the evaluation makes, which no side feature may have."""

_ROWS_IN_FILE = 10_000  # one unit of work for a remote worker: 1 GB of images of 100 kB

# No leading zeros: 007 and 02139 are names, not numbers.
_INT = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_WIDER = ("int64", "float", "bytes")  # a value of one type can be written as any type after it
_IGNORED = frozenset({"thumbs.db", "desktop.ini"})  # what Windows leaves in folders of pictures

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


def read_rows(source: str, task: TaskName) -> Iterator[Row]:
    """Returns the rows of a source, in an order that depends on its content only.

    Args:
        source: absolute path or URI, as ``filesystem.absolute`` returns it; a name ending in .csv, .jsonl or .ndjson is
            a manifest, a folder is a folder of class folders.
        task: how labels are read.

    Raises:
        IngestError: there is no such source, or it is of no supported kind, or its columns can't be used.
    """
    suffix = source.rpartition("/")[2].rpartition(".")[2].lower()
    manifest = {"csv": _read_csv, "jsonl": _read_json_lines, "ndjson": _read_json_lines}.get(suffix)
    if filesystem.is_folder(source):
        return _read_uri_folder(source, task) if filesystem.is_uri(source) else _read_folder(Path(source), task)
    if filesystem.size(source) is None:
        raise IngestError(f"{source}: no such folder or file. Give a folder of class folders, or a manifest.")
    if manifest is None:
        raise IngestError(f"{source} is neither a folder nor a manifest (.csv, .jsonl, .ndjson).")
    return _read_manifest(source, task, manifest)


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


# --- side features and labels


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


def _reject(path: str, row: int | None, reason: str) -> Row:
    return Row(path=path, row=row, reason=reason, metadata="", labels=[], side={})


def _make_row(path: str, row: int | None, metadata: str, label: object, side: dict[str, Side], task: TaskName) -> Row:
    """Returns a row with its label read as the task wants it, or a rejected one."""
    if isinstance(label, bool | list | dict):
        return _reject(path, row, "label is neither text nor a number")
    text = "" if label is None else unicodedata.normalize("NFC", str(label)).strip()  # macOS decomposes accents
    labels = sorted({part for part in map(str.strip, text.split("|")) if part}) if task == "multilabel" else [text]
    if not text or not labels:
        return _reject(path, row, "missing label")
    if task == "regression":
        if not _is_number(text):
            return _reject(path, row, f"label is not a number: {text[:100]}")
        labels = [repr(float(text))]
    if fault := next(filter(None, map(find_fault, labels)), None):
        return _reject(path, row, f"label holds {fault}: {text[:100]!r}")
    return Row(path=path, row=row, reason=None, metadata=metadata, labels=labels, side=side)


def _is_number(text: str) -> bool:
    return bool(_FLOAT.fullmatch(text)) and any(c.isdigit() for c in text) and math.isfinite(float(text))


# --- folders


def _read_folder(source: Path, task: TaskName) -> Iterator[Row]:
    """Reads the files below a local folder, sorted, links followed; skips hidden files and folders and Thumbs.db."""
    for path, reason in _list_files(source, ()):
        yield _reject(path, None, reason) if reason else _make_folder_row(str(source), path, task)


def _list_files(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str | None]]:
    """Yields (path, None) for every file, and (path, reason) for every folder that can't be listed."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.path, entry.is_dir()) for entry in entries)
    except OSError as error:
        yield str(folder), f"folder can't be listed: {error.strerror}"
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        yield str(folder), "folder that links to one above itself"
        return
    for name, path, is_folder in listed:
        if _is_ignored(name):
            continue
        if is_folder:
            yield from _list_files(Path(path), (*above, here))
        else:
            yield path, None


def _read_uri_folder(source: str, task: TaskName) -> Iterator[Row]:
    for path, _ in filesystem.walk(source):
        if not any(map(_is_ignored, path[len(source) :].split("/"))):
            yield _make_folder_row(source, path, task)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED


def _make_folder_row(source: str, path: str, task: TaskName) -> Row:
    metadata = path[len(source) :].lstrip("/")
    label = metadata.partition("/")[0] if "/" in metadata else None
    return _make_row(path, None, metadata, label, {}, task)


# --- manifests


def _read_manifest(source: str, task: TaskName, manifest: Any) -> Iterator[Row]:
    with filesystem.open_read(source) as file:
        yield from manifest(source, file, task)


def _read_lines(file: BinaryIO) -> Iterator[str]:
    """Yields lines of at most MAX_LINE characters; a longer one becomes a NUL, which no row can be."""
    # Bytes that are not UTF-8 become surrogates, so that only their own rows are refused.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            while (rest := text.readline(MAX_LINE)) and not rest.endswith("\n"):
                pass
            line = "\0\n"
        yield line


def _read_csv(source: str, file: BinaryIO, task: TaskName) -> Iterator[Row]:
    reader = csv.reader(_read_lines(file), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise IngestError(f"{source} has no header row; its first line must name the columns: path,label,…") from error
    _check_columns(source, header)
    for name in ("path", "label"):
        if name not in header:
            raise IngestError(
                f"{source} has no column '{name}' (columns: {', '.join(header)}); path and label are needed."
            )
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield _reject(source, number, f"unreadable row, lines {number} to {reader.line_num}: {error}")
            continue
        if not values:  # a blank line
            continue
        if len(values) != len(header):
            yield _reject(
                source,
                number,
                f"unreadable row, lines {number} to {reader.line_num}: "
                f"{len(values)} columns, the header has {len(header)}",
            )
            continue
        yield _make_manifest_row(source, number, dict(zip(header, values, strict=True)), task)


def _read_json_lines(source: str, file: BinaryIO, task: TaskName) -> Iterator[Row]:
    checked: set[str] = set()
    for number, line in enumerate(_read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _reject(source, number, f"unreadable row: {error}")
            continue
        if not isinstance(values, dict):
            yield _reject(source, number, "unreadable row: not a JSON object")
            continue
        if not values.keys() <= checked:
            _check_columns(f"{source}, line {number}", list(values))
            checked |= values.keys()
        yield _make_manifest_row(source, number, values, task)


def _check_columns(where: str, names: list[str]) -> None:
    if clashing := sorted(RESERVED.intersection(names)):
        raise IngestError(
            f"{where}: a column can't be called {' or '.join(clashing)}: the pipeline has such a feature itself. "
            "Rename it."
        )
    if "" in names or len(set(names)) < len(names) or any(map(find_fault, names)):
        raise IngestError(
            f"{where}: every column needs a name of its own, in UTF-8 and on one line, and these are "
            f"{', '.join(map(repr, names))}."
        )


def _make_manifest_row(source: str, number: int, values: dict[str, Any], task: TaskName) -> Row:
    path = values.pop("path", None)
    if not isinstance(path, str) or not path.strip():
        return _reject(source, number, "unreadable row: no path")
    label = values.pop("label", None)
    if any(map(_is_not_utf8, (path, label, *values.values()))):
        return _reject(source, number, "unreadable row: not UTF-8")
    image = filesystem.join(source.rpartition("/")[0], path)
    side = {}
    for name, value in values.items():
        if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
            return _reject(image, number, f"unreadable row: column '{name}' is neither text nor a number")
        if value is not None and value != "":
            side[name] = int(value) if isinstance(value, bool) else value
    return _make_row(image, number, path, label, side, task)


def _is_not_utf8(value: object) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)
