"""Parquet with the images in it, as Hugging Face's datasets write it.

A column of structs has the bytes of an image and its path (https://huggingface.co/docs/datasets, ``Image``).
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.images import MAX_BYTES
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.base.progress import print_note
from imagepipe.ingest.archives import check_ratio
from imagepipe.ingest.parquet import is_plain, make_plain, open_parquet, read_class_names
from imagepipe.ingest.parts import Part, open_parts
from imagepipe.ingest.rows import RESERVED, Row, Side, make_row, reject


def holds_images(path: str) -> bool:
    """Returns whether a Parquet file has a column of images, rather than of their paths.

    Raises:
        IngestError: it can't be read.
    """
    with open_parquet(path) as table:
        return bool(_list_image_columns(table.schema_arrow))


def read_images(
    path: str, start: str, split: str | None, task: TaskName, staging: str, group: str | None
) -> Iterator[Row]:
    """Reads the rows of a Parquet file with labelled images, whose bytes go into a file of the staging folder.

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
    with open_parquet(path) as table, open_parts(staging) as add:
        columns = _find_columns(path, table.schema_arrow, group)
        for sample in _read_samples(path, table, columns.image, [columns.label, *columns.side]):
            place = f"{sample.number}/{sample.name.rpartition('/')[2]}" if sample.name else str(sample.number)
            if sample.reason:
                yield reject(f"{path}/{place}", sample.number, sample.reason)
                continue
            label = make_plain(sample.cells.pop(columns.label).as_py(), columns.classes.get(columns.label, ()))
            side = {name: _make_side(cell, columns.classes.get(name, ())) for name, cell in sample.cells.items()}
            row = make_row(
                f"{path}/{place}",
                sample.number,
                f"{start}{place}",
                label,
                {name: value for name, value in side.items() if value is not None and name not in ("split", group)},
                task,
                split=split or side.get("split"),
                group=side.get(group) if group else None,
            )
            if row["reason"] is None:
                row["at"] = add(sample.image.as_py())
            yield row


class Question(NamedTuple):
    """A row with an image to ask a model about.

    Attributes:
        number: of the row, from 1.
        path: the image's, as the row has it; "" if it has none.
        reason: why it can't be used, or None.
        at: where the image lies; None if it can't be used.
        cells: text and numbers of the further columns; None where one has no value.
    """

    number: int
    path: str
    reason: str | None
    at: Part | None
    cells: dict[str, Side | None]


def read_questions(path: str, staging: str, needed: Iterable[str]) -> Iterator[Question]:
    """Reads the rows of a Parquet file with images, labelled or not; see ``read_images``.

    Args:
        path: an absolute path or URI.
        staging: folder that is written to.
        needed: columns without which it is of no use.

    Raises:
        IngestError: it can't be read, a column is missing, or which has the images can't be told.
    """
    with open_parquet(path) as table, open_parts(staging) as add:
        schema = table.schema_arrow
        image = _find_image(path, schema)
        further, classes = [name for name in _list_plain(schema) if name != image], read_class_names(schema)
        if missing := [name for name in needed if name not in further]:
            raise IngestError(f"{path} has no column '{missing[0]}' with text or numbers, only {list_names(further)}.")
        _report_ignored(path, schema, {image, *further})
        for number, name, reason, data, cells in _read_samples(path, table, image, further):
            at = None if reason else add(data.as_py())
            side = {key: _make_side(cell, classes.get(key, ())) for key, cell in cells.items()}
            yield Question(number, name, reason, at, side)


class _Sample(NamedTuple):
    """A row: its number, the image's path or "", why it can't be used, the image's bytes, and other columns."""

    number: int
    name: str
    reason: str | None
    image: Any
    cells: dict[str, Any]


def _read_samples(path: str, table: Any, image: str, others: list[str]) -> Iterator[_Sample]:
    _check_sizes(path, table.metadata)
    # One row at a time, as an image may be as large as a thousand others, and a page may hold one for all rows.
    batches = table.iter_batches(1, columns=[image, *others], use_threads=False)
    for number, batch in enumerate(batches, start=1):
        cells = {name: batch.column(name)[0] for name in others}
        value = batch.column(image)[0]
        data = value["bytes"]
        size = data.as_buffer().size if data.is_valid else 0
        too_large = f"file of more than {MAX_BYTES >> 20} MiB" if size > MAX_BYTES else None
        reason = too_large if size else "no bytes of the image in the file"
        yield _Sample(number, value["path"].as_py() or "", reason, data, cells)


def _check_sizes(path: str, description: Any) -> None:
    """Refuses a file that unpacks to far more than it is."""
    groups = map(description.row_group, range(description.num_row_groups))
    unpacked = sum(group.column(i).total_uncompressed_size for group in groups for i in range(group.num_columns))
    check_ratio(path, unpacked, filesystem.size(path) or 0)


# --- which column is what


class _Columns(NamedTuple):
    """The columns of images and of labels, and further ones; by column the names of classes told by number."""

    image: str
    label: str
    side: list[str]
    classes: Mapping[str, Sequence[str]]


def _find_columns(path: str, schema: Any, group: str | None) -> _Columns:
    classes = read_class_names(schema)
    image, label = _find_image(path, schema), _find_label(path, schema, classes)
    further = [name for name in _list_plain(schema) if name not in (image, label)]
    side = [name for name in further if name == group or name not in RESERVED]
    _report_ignored(path, schema, {image, label, *side})
    if group is not None and group not in side:
        raise IngestError(f"{path} has no column '{group}' with text or numbers, which --group names.")
    return _Columns(image, label, side, classes)


def _find_image(path: str, schema: Any) -> str:
    images = _list_image_columns(schema)
    if not images:
        raise IngestError(f"{path} has no column of images, only {list_names(schema.names)}.")
    return _choose_column(path, images, "image")


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


def _find_label(path: str, schema: Any, named: Collection[str]) -> str:
    """Returns the column of labels: the one called so, else the only one that has classes."""
    if "label" in schema.names:
        return "label"
    classes = [name for name in schema.names if name != "split" and name in named]
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


def _list_plain(schema: Any) -> list[str]:
    return [field.name for field in schema if is_plain(field.type)]


def _report_ignored(path: str, schema: Any, used: Collection[str]) -> None:
    if ignored := [name for name in schema.names if name not in used]:
        print_note(f"{path}: columns that are passed over: {list_names(ignored)}")


# --- values


def _make_side(cell: Any, classes: Sequence[str]) -> Side | None:
    value = make_plain(cell.as_py(), classes)
    if isinstance(value, bool):
        return int(value)
    return None if value in ("", math.inf, -math.inf) else value
