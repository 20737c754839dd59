"""Manifests: tables that name an image in each row, and its label where one learns from them. CSV and JSON lines."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.labels import find_fault
from imagepipe.base.names import TaskName
from imagepipe.ingest.rows import RESERVED, Row, make_row, reject

MAX_LINE = 2**20
"""Longest line of a manifest, in characters: a longer one is no row but an accident, or an attack on the memory."""


Cells = tuple[int, dict[str, Any] | str]
"""A row of a table: its line, from 1, and its values by column; or the reason why it can't be read."""


def is_manifest(source: str) -> bool:
    """Returns whether a file is a manifest, judged by its name."""
    return _find_reader(source) is not None


def read_manifest(source: str, task: TaskName) -> Iterator[Row]:
    """Reads the rows of a manifest of labelled images.

    Args:
        source: absolute path or URI of the manifest.
        task: how labels are read.

    Raises:
        IngestError: its columns can't be used.
    """
    for number, cells in read_table(source, ("path", "label")):
        yield reject(source, number, cells) if isinstance(cells, str) else _make_row(source, number, cells, task)


def read_table(source: str, needed: tuple[str, ...]) -> Iterator[Cells]:
    """Reads a manifest, row by row, whatever its columns mean.

    Args:
        source: absolute path or URI; its name says its format.
        needed: columns without which it is of no use.

    Raises:
        IngestError: a column is missing, or can't be called so.
    """
    reader = _find_reader(source)
    if reader is None:
        raise IngestError(f"{source} is not a manifest (.csv, .jsonl, .ndjson).")
    with filesystem.open_read(source) as file:
        yield from reader(source, file, needed)


def _find_reader(source: str) -> Callable[[str, BinaryIO, tuple[str, ...]], Iterator[Cells]] | None:
    suffix = source.rpartition("/")[2].rpartition(".")[2].lower()
    return {"csv": _read_csv, "jsonl": _read_json_lines, "ndjson": _read_json_lines}.get(suffix)


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


def _read_csv(source: str, file: BinaryIO, needed: tuple[str, ...]) -> Iterator[Cells]:
    reader = csv.reader(_read_lines(file), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except (StopIteration, csv.Error) as error:
        raise IngestError(f"{source} has no header row; its first line must name the columns: path,label,…") from error
    _check_columns(source, header)
    for name in needed:
        if name not in header:
            raise IngestError(
                f"{source} has no column '{name}' (columns: {', '.join(header)}); {' and '.join(needed)} are needed."
            )
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"unreadable row, lines {number} to {reader.line_num}: {error}"
            continue
        if not values:  # a blank line
            continue
        if len(values) != len(header):
            lines = f"lines {number} to {reader.line_num}"
            yield number, f"unreadable row, {lines}: {len(values)} columns, the header has {len(header)}"
            continue
        yield number, dict(zip(header, values, strict=True))


def _read_json_lines(source: str, file: BinaryIO, _needed: tuple[str, ...]) -> Iterator[Cells]:
    checked: set[str] = set()
    for number, line in enumerate(_read_lines(file), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"unreadable row: {error}"
            continue
        if not isinstance(values, dict):
            yield number, "unreadable row: not a JSON object"
            continue
        if not values.keys() <= checked:
            _check_columns(f"{source}, line {number}", list(values))
            checked |= values.keys()
        yield number, values


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


def _make_row(source: str, number: int, values: dict[str, Any], task: TaskName) -> Row:
    path = values.pop("path", None)
    if not isinstance(path, str) or not path.strip():
        return reject(source, number, "unreadable row: no path")
    label = values.pop("label", None)
    if any(map(_is_not_utf8, (path, label, *values.values()))):
        return reject(source, number, "unreadable row: not UTF-8")
    image = filesystem.join(source.rpartition("/")[0], path)
    side = {}
    for name, value in values.items():
        if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
            return reject(image, number, f"unreadable row: column '{name}' is neither text nor a number")
        if value is not None and value != "":
            side[name] = int(value) if isinstance(value, bool) else value
    return make_row(image, number, path, label, side, task)


def _is_not_utf8(value: object) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)
