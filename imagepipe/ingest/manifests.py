"""Manifests: tables that name an image in each row, and its label where one learns from them."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.labels import find_fault, list_names
from imagepipe.base.names import TaskName
from imagepipe.base.progress import print_note
from imagepipe.ingest.delimited import MAX_LINE, TOO_LONG, Cells, Say, build_object, read_delimited, read_lines
from imagepipe.ingest.parquet import is_plain, make_plain, open_parquet, read_class_names
from imagepipe.ingest.rows import RESERVED, Row, make_row, reject

SUFFIXES = ".csv, .tsv, .jsonl, .ndjson, .parquet"
"""Ends of the names of manifests, for messages."""

_NAMES = ("path", "label", "split")
"""Columns with a meaning, which may be written in capitals."""

_OTHER_NAMES = {
    "path": "file filename file_name filepath file_path image image_path image_name image_file img img_path",
    "label": "class class_name category target species labels tag tags y",
}
"""Other names that people give them: never taken for them silently."""

_REMEDY = "Save the manifest as UTF-8, as by: iconv -f WINDOWS-1252 -t UTF-8"
_ROWS_AT_ONCE = 1000  # of Parquet
_MAX_PAGES = 2**30  # bytes of a row group's column, unpacked: more is no table of paths and labels


def is_manifest(source: str) -> bool:
    """Returns whether a file is a manifest, judged by its name."""
    return _find_reader(source) is not None


def read_manifest(source: str, task: TaskName, group: str | None = None) -> Iterator[Row]:
    """Reads the rows of a manifest of labelled images.

    Args:
        source: absolute path or URI of the manifest.
        task: how labels are read.
        group: the column that tells an image's group, which is no side feature.

    Raises:
        IngestError: its columns can't be used.
    """
    if group in _NAMES:
        raise IngestError(f"--group {group}: this column can't tell the group of an image; name another one.")
    needed = ("path", "label", group) if group else ("path", "label")
    for number, cells in read_table(source, needed, print_note):
        row = reject(source, number, cells) if isinstance(cells, str) else _make_row(source, number, cells, task, group)
        yield row


def locate_image(manifest: str, path: str) -> str:
    """Returns the absolute path or URI of an image that a manifest names.

    Backslashes separate folders where there is a file of that name, and none with backslashes in its name.

    Args:
        manifest: absolute path or URI.
        path: as the manifest has it: absolute, a URI, or as seen from the manifest's folder.
    """
    folder = manifest.rpartition("/")[0]
    image = filesystem.join(folder, path)
    if "\\" in path:
        forward = filesystem.join(folder, path.replace("\\", "/"))
        with contextlib.suppress(OSError):  # such as of a name that is too long: whoever reads the image says so
            return forward if not filesystem.exists(image) and filesystem.exists(forward) else image
    return image


def read_table(
    source: str, needed: tuple[str, ...], say: Say = lambda _: None, pass_over: Say | None = None
) -> Iterator[Cells]:
    """Reads a manifest, row by row, whatever its columns mean.

    Values are text, without blanks around it, also numbers of JSON, which are written in several ways; or they are
    None, true, false, a number, a list or a dict.

    Args:
        source: absolute path or URI; its name says its format.
        needed: columns without which it is of no use. In small letters; in the file they may have capitals.
        say: is told what was found out about the file.
        pass_over: is told the names of Parquet's columns that are not read: those that aren't needed, and hold neither
            text nor numbers. None refuses them.

    Raises:
        IngestError: a column is missing, can't be called so, or can't be read.
    """
    reader = _find_reader(source)
    if reader is None:
        raise IngestError(f"{source} is not a manifest ({SUFFIXES}).")
    if reader is _read_parquet:
        yield from _read_parquet(source, needed, say, pass_over)
    else:
        yield from reader(source, needed, say)


def _find_reader(source: str) -> Callable[[str, tuple[str, ...], Say], Iterator[Cells]] | None:
    suffix = source.rpartition("/")[2].rpartition(".")[2].lower()
    return {
        "csv": _read_csv,
        "tsv": _read_csv,
        "jsonl": _read_json_lines,
        "ndjson": _read_json_lines,
        "parquet": _read_parquet,
    }.get(suffix)


def _read_csv(source: str, needed: tuple[str, ...], say: Say) -> Iterator[Cells]:
    header, rows = read_delimited(source, needed, say)
    names = _read_header(source, header, needed)
    for number, cells in rows:
        yield number, cells if isinstance(cells, str) else dict(zip(names, cells.values(), strict=True))


def _read_header(source: str, header: list[str], needed: tuple[str, ...]) -> list[str]:
    """Returns the names of a table's columns, those with a meaning in small letters."""
    names = _fold_names(header)
    if fault := _explain_names(names):
        raise IngestError(f"{source}: {fault}")
    if missing := [name for name in needed if name not in names]:
        meanings = {other: name for name in missing for other in _OTHER_NAMES.get(name, "").split()}
        renames = [f"'{column}' to '{meanings[column.lower()]}'" for column in names if column.lower() in meanings]
        raise IngestError(
            f"{source} has no column '{missing[0]}' (columns: {list_names(names)}); {' and '.join(needed)} are needed. "
            + (f"If they are what is meant, rename {' and '.join(renames)}." if renames else "")
            + ("" if renames else "Its first row has to name the columns.")
        )
    return names


def _fold_names(names: list[str]) -> list[str]:
    return [name.lower() if name.lower() in _NAMES and name.lower() not in names else name for name in names]


def _explain_names(names: list[str]) -> str | None:
    """Returns why columns can't have these names; None if they can."""
    counts = Counter(names)
    odd = [name[:100] for name in counts if not name or counts[name] > 1 or find_fault(name)]
    if not odd:
        return None
    return (
        "every column needs a name of its own, in UTF-8 and on one line, and these are none: "
        f"{list_names(list(map(repr, odd)))}." + (f" {_REMEDY}." if any(map(_is_not_utf8, odd)) else "")
    )


def _read_json_lines(source: str, _needed: tuple[str, ...], _say: Say) -> Iterator[Cells]:
    checked: dict[tuple[str, ...], list[str]] = {}
    decoder = json.JSONDecoder(
        parse_int=str, parse_float=str, parse_constant=_read_constant, object_pairs_hook=build_object
    )
    for number, line in enumerate(read_lines(source), start=1):
        if line.startswith(TOO_LONG):
            yield number, f"unreadable row: its line is longer than {MAX_LINE:,} characters"
            continue
        if not line.strip():
            continue
        try:
            values = decoder.decode(line.strip())
        except (ValueError, RecursionError) as error:
            yield number, f"unreadable row: {error}"
            continue
        if not isinstance(values, dict):
            yield number, "unreadable row: not a JSON object"
            continue
        keys = tuple(values)
        if keys not in checked:
            names = _fold_names(list(keys))
            if fault := _explain_names(names):
                yield number, f"unreadable row: {fault}"
                continue
            checked = {keys: names}  # of the last rows alone: a stranger's may each have others
        yield number, {name: _strip(value) for name, value in zip(checked[keys], values.values(), strict=True)}


def _read_constant(text: str) -> float | None:
    return None if text == "NaN" else float(text)


def _strip(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _read_parquet(source: str, needed: tuple[str, ...], _say: Say, pass_over: Say | None = None) -> Iterator[Cells]:
    with open_parquet(source) as table:
        schema = table.schema_arrow
        columns = [name for name in schema.names if name != "__index_level_0__"]  # pandas' index
        names = _read_header(source, columns, needed)
        read = {}
        for name, column in zip(names, columns, strict=True):
            kind = schema.field(column).type
            if _is_readable(name, kind):
                read[column] = name
            elif pass_over is None or name in (*needed, "metadata"):
                reason = "which is neither text nor a number: leave it out."
                raise IngestError(f"{source}: column '{column}' holds {kind}, {reason}")
            else:
                pass_over(column)
        class_names = read_class_names(schema)
        classes = [class_names.get(column, []) for column in read]
        for group in range(table.num_row_groups):
            description = table.metadata.row_group(group)
            for column in range(description.num_columns):
                path = description.column(column).path_in_schema  # "label.list.element" of a list
                is_read = path in read or path.partition(".")[0] in read
                if is_read and (unpacked := description.column(column).total_uncompressed_size) > _MAX_PAGES:
                    raise IngestError(
                        f"{source}: a row group has {unpacked:,} bytes of one column; at most {_MAX_PAGES:,} are "
                        "read. Write it with smaller row groups."
                    )
        number = 0
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=list(read), use_threads=False):
            for values in zip(*(batch.column(column).to_pylist() for column in read), strict=True):
                number += 1
                yield number, dict(zip(read.values(), map(make_plain, values, classes), strict=True))


def _is_readable(name: str, kind: Any) -> bool:
    import pyarrow.types as pt

    is_labels = name == "label" and (pt.is_list(kind) or pt.is_large_list(kind))
    return is_plain(kind.value_type if is_labels else kind)


def _make_row(source: str, number: int, values: dict[str, Any], task: TaskName, group: str | None) -> Row:
    unit = values.pop(group, None) if group else None
    if clashing := sorted(RESERVED & values.keys()):
        raise IngestError(
            f"{source}, line {number}: a column can't be called {' or '.join(clashing)}: the pipeline has such a "
            "feature itself. Rename it" + (", or give --group group." if "group" in clashing else ".")
        )
    path = values.pop("path", None)
    if not isinstance(path, str) or not path:
        return reject(source, number, "unreadable row: no path")
    label, split = values.pop("label", None), values.pop("split", None)
    if any(map(_is_not_utf8, (path, label, split, unit, *values.values()))):
        return reject(source, number, f"unreadable row: not UTF-8, or damaged. {_REMEDY}")
    image = locate_image(source, path)
    side = {}
    for name, value in values.items():
        if isinstance(value, list | dict) or (isinstance(value, float) and not math.isfinite(value)):
            return reject(image, number, f"unreadable row: column '{name}' is neither text nor a number")
        if value is not None and value != "":
            side[name] = int(value) if isinstance(value, bool) else value
    return make_row(image, number, path, label, side, task, split=split, group=unit)


def _is_not_utf8(value: object) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)
