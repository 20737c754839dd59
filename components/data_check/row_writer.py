"""The steps that read Examples: each reads a TFRecord file and writes a file of what the checks need of it.

They run on this machine or on Beam's workers, and give the same files.
"""

import gzip
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.data_check import label_errors, near_duplicates
from components.data_check.split import MAX_SLICES, ColumnValue
from imagepipe.base import appearance, filesystem, images, tfrecord
from imagepipe.base.features import Features, read_group
from imagepipe.base.labels import find_fault

SLICES, FAULTY = "slices", "faulty"
"""Metadata of a file of rows, JSON: ``Split.slices`` and ``Split.faulty`` of its Examples, as lists and dicts."""

THUMBNAIL = np.dtype([("readable", np.bool_), ("pixels", np.uint8, appearance.THUMBNAIL_SIDE**2)])
"""A row of a file of thumbnails: whether the image could be read, and its gray pixels."""

_ROWS = 8192  # in memory at once
_BATCH = 64  # images that are described at once
_GOLDEN = (5**0.5 - 1) / 2
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "sha256": pa.string(),
        "labels": pa.list_(pa.string()),
        "group": pa.string(),
        "hash": pa.uint64(),
        "plain": pa.bool_(),
        "unreadable": pa.bool_(),
        "descriptors": pa.binary(),
        "side": pa.string(),
    }.items()
)


@dataclass(frozen=True)
class Reading:
    """The parts of a split's Examples that are read.

    Attributes:
        folder: folder of the split, whose ``*.gz`` files are read.
        features: names of an Example's features.
        describe_every: every n-th image gets descriptors, see ``label_errors``; 0 for none.
        slices: combinations of columns whose values are collected.
        columns_every: of every n-th image the side features are kept; 0 for none.
    """

    folder: str
    features: Features
    describe_every: int = 0
    slices: Sequence[tuple[str, ...]] = ()
    columns_every: int = 0


def write_rows(target: str, source: str, number: int, reading: Reading) -> None:
    """Reads a file of Examples once, and writes a Parquet file with a row for each.

    Columns are ``id``, ``sha256``, ``group`` (text or null), ``labels`` (list of text), ``hash`` (uint64), ``plain``
    and ``unreadable`` (bool); and for every n-th row ``descriptors`` (float32 as bytes) and ``side`` (JSON by name).

    Args:
        target: file of the rows.
        source: TFRecord file, gzipped.
        number: of the file in its split, from 0.
        reading: what is read.
    """
    slices: dict[tuple[str, ...], set[tuple[str, ...]]] = {columns: set() for columns in reading.slices}
    faulty: dict[str, Counter[str]] = {column: Counter() for column in reading.features.categorical}
    rows: list[dict[str, Any]] = []
    described: dict[int, np.ndarray] = {}  # images that wait for their descriptors, by row
    with filesystem.create(target) as file, pq.ParquetWriter(file, _SCHEMA) as writer:
        for index, record in enumerate(_read_records(source)):
            example = tfrecord.decode_example(record)
            _collect_values(example, slices, faulty)
            image, row = _make_row(example, index, number, reading)
            if image is not None:
                described[len(rows)] = image
            rows.append(row)
            if len(described) == _BATCH or len(rows) == _ROWS:
                _add_descriptors(rows, described)
            if len(rows) == _ROWS:
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                rows = []
        _add_descriptors(rows, described)
        writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
        lists = [[columns, sorted(values)] for columns, values in slices.items()]
        writer.add_key_value_metadata({SLICES: json.dumps(lists), FAULTY: json.dumps(faulty)})


def write_thumbnails(target: str, source: str, feature: str, indices: np.ndarray) -> None:
    """Reads a file of Examples once, and writes a row of THUMBNAIL for some of them.

    Args:
        target: file of the thumbnails.
        source: TFRecord file, gzipped.
        feature: name of the image's feature.
        indices: of the Examples in the file, ascending, int64 ``[n]``, at least one.
    """
    wanted = set(indices.tolist())
    with filesystem.create(target) as file:
        for index, record in enumerate(itertools.islice(_read_records(source), max(wanted) + 1)):
            if index in wanted:
                row = np.zeros(1, THUMBNAIL)
                image = _decode(tfrecord.read_bytes_feature(record, feature), appearance.THUMBNAIL_SIDE)
                if image is not None:
                    row["readable"] = True
                    row["pixels"] = np.frombuffer(appearance.make_thumbnail(Image.fromarray(image)), np.uint8)
                file.write(row.tobytes())


def _read_records(source: str) -> Iterator[bytes]:
    with filesystem.open_read(source) as file, gzip.open(file) as records:
        yield from tfrecord.read_records(cast(BinaryIO, records))


def _is_every(count: int, index: int, number: int) -> bool:
    """Returns whether an Example is one of every ``count``: in the first file the first, in others one after it.

    The places are spread by the golden ratio, so that many small files together give as many as one large file.
    """
    return count > 0 and index % count == int(number * _GOLDEN * count) % count


def _make_row(
    example: Mapping[str, list[Any]], index: int, number: int, reading: Reading
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Returns the image, if it is to be described, and the row."""
    features, measured, image = reading.features, _read_measurements(example), None
    is_described = _is_every(reading.describe_every, index, number)
    is_readable = True
    if is_described or measured is None:
        image = _decode(example.get(features.input, []), label_errors.SIDE)
        is_readable = image is not None
        if image is not None:
            measured = measured or _measure(image)
    dhash, contrast = measured or (0, 0.0)
    side = {}
    if is_sampled := _is_every(reading.columns_every, index, number):
        side = {column: _read_value(example, column) for column in features.side}
    return image if is_described else None, {
        "id": _read_text(example, features.metadata) or None,
        "sha256": _read_text(example, "sha256"),
        "labels": [tfrecord.to_text(value) for value in example.get(features.label, [])],
        "group": next(map(tfrecord.to_text, read_group(example.get(features.group))), None),
        "hash": dhash,
        "plain": contrast < near_duplicates.MIN_CONTRAST,
        "unreadable": not is_readable,
        "side": json.dumps(side) if is_sampled else None,
    }


def _collect_values(
    example: Mapping[str, list[Any]],
    slices: Mapping[tuple[str, ...], set[tuple[str, ...]]],
    faulty: Mapping[str, Counter[str]],
) -> None:
    for column, counts in faulty.items():
        counts.update(filter(find_fault, map(tfrecord.to_text, example.get(column, []))))
    for columns, values in slices.items():
        if len(values) <= MAX_SLICES:
            values.update(itertools.product(*(map(tfrecord.to_text, example.get(column, [])) for column in columns)))


def _add_descriptors(rows: list[dict[str, Any]], images: dict[int, np.ndarray]) -> None:
    """Adds the descriptors of images, by row, to the rows, and empties the dict."""
    if images:
        descriptors = label_errors.compute_descriptors(np.stack(list(images.values())))
        for place, row in zip(images, descriptors, strict=True):
            rows[place]["descriptors"] = row.tobytes()
        images.clear()


def _decode(values: Sequence[bytes | int | float], side: int) -> np.ndarray | None:
    """Returns the pixels of an image feature, None unless it is one image that can be decoded."""
    try:
        (data,) = values
        return images.read_pixels(data if isinstance(data, bytes) else b"", side)
    except (images.BadImage, ValueError):
        return None


def _measure(image: np.ndarray) -> tuple[int, float]:
    measured = appearance.measure_appearance(appearance.make_thumbnail(Image.fromarray(image)))
    return int(measured.dhash, 16), measured.contrast


def _read_measurements(example: Mapping[str, list[Any]]) -> tuple[int, float] | None:
    """Returns difference hash and contrast as ingest measured them, None for Examples made elsewhere."""
    try:
        (dhash,), (contrast,) = example["dhash"], example["contrast"]
        bits = int(dhash, 16)
        return (bits, float(contrast)) if len(dhash) == appearance.HASH_BITS // 4 and bits >= 0 else None
    except (KeyError, TypeError, ValueError):
        return None


def _read_value(example: Mapping[str, list[Any]], name: str) -> ColumnValue:
    """Returns a value of a side feature; None, as if it were missing, of a number that is not finite."""
    value = next(iter(example.get(name, [])), None)
    if isinstance(value, float) and not math.isfinite(value):  # no quantiles come of it, and Transform drops it
        return None
    return tfrecord.to_text(value) if isinstance(value, bytes) else value


def _read_text(example: Mapping[str, list[Any]], name: str) -> str | None:
    values = example.get(name)
    return tfrecord.to_text(values[0]) if values else None
