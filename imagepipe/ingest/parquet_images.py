"""Parquet with the images in it, as Hugging Face's datasets write it.

A column of structs has the bytes of an image and its path (https://huggingface.co/docs/datasets, ``Image``); the names
of the classes are in the schema's metadata, under the key ``huggingface`` (``ClassLabel``).
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.images import MAX_BYTES
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.base.progress import print_note
from imagepipe.ingest.archives import check_ratio
from imagepipe.ingest.parts import open_parts
from imagepipe.ingest.rows import RESERVED, Row, Side, make_row, reject

_BUFFER = 2**20  # of a column that is read: else all images of a row group are in memory at once


def holds_images(path: str) -> bool:
    """Returns whether a Parquet file has a column of images, rather than of their paths.

    Raises:
        IngestError: it can't be read.
    """
    with _open(path) as table:
        return bool(_list_image_columns(table.schema_arrow))


def read_images(
    path: str, start: str, split: str | None, task: TaskName, staging: str, group: str | None
) -> Iterator[Row]:
    """Reads the rows of a Parquet file with images, whose bytes go into a file of the staging folder.

    Args:
        path: an absolute path or URI.
        start: start of each image's metadata.
        split: of all images; None to take that of a column ``split``, if there is one.
        task: how labels are read.
        staging: folder that is written to.
        group: the column that tells an image's group; None if there is none.

    Raises:
        IngestError: it can't be read, or which column is which can't be told.
    """
    with _open(path) as table, open_parts(staging) as add:
        columns = _find_columns(path, table.schema_arrow, group)
        _check_sizes(path, table.metadata)
        wanted = [columns.image, columns.label, *columns.side]
        # One row at a time, as an image may be as large as a thousand others, and a page may hold one for all rows.
        for number, batch in enumerate(table.iter_batches(1, columns=wanted, use_threads=False), start=1):
            cells = {name: batch.column(name)[0] for name in wanted}
            image = cells.pop(columns.image)
            data, name = image["bytes"], image["path"].as_py()
            place = f"{number}/{name.rpartition('/')[2]}" if name else str(number)
            size = data.as_buffer().size if data.is_valid else 0
            if not 0 < size <= MAX_BYTES:
                reason = f"file of more than {MAX_BYTES >> 20} MiB" if size else "no bytes of the image in the file"
                yield reject(f"{path}/{place}", number, reason)
                continue
            label = _name_label(cells.pop(columns.label).as_py(), columns.names)
            side = {name: _make_plain(cell.as_py()) for name, cell in cells.items()}
            row = make_row(
                f"{path}/{place}",
                number,
                f"{start}{place}",
                label,
                {name: value for name, value in side.items() if value is not None and name not in ("split", group)},
                task,
                split=split or side.get("split"),
                group=side.get(group) if group else None,
            )
            if row["reason"] is None:
                row["at"] = add(data.as_py())
            yield row


@contextmanager
def _open(path: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with filesystem.open_read(path) as file, pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:  # not Arrow's: a full disk, no permission
            raise
        raise IngestError(f"{path} can't be read as Parquet: {' '.join(str(error).split())[:300]}") from error


def _check_sizes(path: str, description: Any) -> None:
    """Refuses a file that unpacks to far more than it is."""
    groups = map(description.row_group, range(description.num_row_groups))
    unpacked = sum(group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns))
    check_ratio(path, unpacked, filesystem.size(path) or 0)


# --- which column is what


class _Columns(NamedTuple):
    """The columns of images and of labels, names of the classes that are told by number, and further columns."""

    image: str
    label: str
    names: list[str]
    side: list[str]


def _find_columns(path: str, schema: Any, group: str | None) -> _Columns:
    images = _list_image_columns(schema)
    if not images:
        raise IngestError(f"{path} has no column of images, only {list_names(schema.names)}.")
    features = _read_features(schema)
    image, label = _choose_column(path, images, "image"), _find_label(path, schema, features)
    side = _list_side(path, schema, {image, label}, group)
    if group is not None and group not in side:
        raise IngestError(f"{path} has no column '{group}' with text or numbers, which --group names.")
    return _Columns(image, label, _read_class_names(features.get(label)), side)


def _list_image_columns(schema: Any) -> list[str]:
    import pyarrow.types as pt

    structs = {
        field.name: {part.name: part.type for part in field.type} for field in schema if pt.is_struct(field.type)
    }
    return [
        name
        for name, parts in structs.items()
        if {"bytes", "path"} <= parts.keys()
        and (pt.is_binary(parts["bytes"]) or pt.is_large_binary(parts["bytes"]))
        and (pt.is_string(parts["path"]) or pt.is_large_string(parts["path"]) or pt.is_null(parts["path"]))
    ]


def _read_features(schema: Any) -> dict[str, Any]:
    """Returns Hugging Face's description of each column; none if another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _read_class_names(feature: Any) -> list[str]:
    """Returns the names of the classes that a column has by number; none if it has none, or other values."""
    if isinstance(feature, list) and feature:  # a list of them, as older versions wrote it, and newer ones
        feature = feature[0]
    if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _find_label(path: str, schema: Any, features: Mapping[str, Any]) -> str:
    """Returns the column of labels: the one called so, else the only one that has classes."""
    if "label" in schema.names:
        return "label"
    classes = [name for name in schema.names if _read_class_names(features.get(name))]
    if not classes:
        raise IngestError(
            f"{path} has no column 'label', only {list_names(schema.names)}: rename the one that has the labels."
        )
    return _choose_column(path, classes, "label")


def _choose_column(path: str, names: list[str], wanted: str) -> str:
    if len(names) > 1 and wanted not in names:
        raise IngestError(
            f"{path} has several columns that could be '{wanted}' ({list_names(names)}): rename the one that is meant "
            f"to '{wanted}'."
        )
    return wanted if wanted in names else names[0]


def _list_side(path: str, schema: Any, others: set[str], group: str | None) -> list[str]:
    """Returns the columns with text and numbers; says which others are passed over."""
    import pyarrow.types as pt

    plain = (pt.is_string, pt.is_large_string, pt.is_integer, pt.is_floating, pt.is_boolean)
    rest = [field for field in schema if field.name not in others]
    rest = [field for field in rest if field.name == group or field.name not in RESERVED]
    side = [field.name for field in rest if any(test(field.type) for test in plain)]
    if ignored := [field.name for field in schema if field.name not in {*side, *others}]:
        print_note(f"{path}: columns that are passed over: {list_names(ignored)}")
    return side


# --- values


def _name_label(value: Any, names: list[str]) -> Any:
    """Returns a label as text: the name of its class where it is a number of one, of which -1 means none."""
    if isinstance(value, list):
        return [_name_label(item, names) for item in value]
    if not names or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _make_plain(value: Any) -> Side | None:
    if isinstance(value, bool):
        return int(value)
    if value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
