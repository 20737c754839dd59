"""Parquet files, of images or of their paths: how they are opened, and what their columns and values are.

Hugging Face's datasets have names of classes in the schema's metadata, under the key ``huggingface`` (``ClassLabel``),
and their numbers in the columns (https://huggingface.co/docs/datasets).
"""

import datetime
import decimal
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.features import restore_whole

_BUFFER = 2**20  # of a column that is read: else all images of a row group are in memory at once


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """Opens a Parquet file as a ``pyarrow.parquet.ParquetFile`` whose columns are read piece by piece.

    Args:
        path: an absolute path or URI.

    Raises:
        IngestError: it is none, or damaged, also where that shows as it is read.
        OSError: of the system, such as a lack of permission.
    """
    import pyarrow as pa  # not above: most sources do without
    import pyarrow.parquet as pq

    try:
        with filesystem.open_read(path) as file, pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:  # not Arrow's: a full disk, no permission
            raise
        raise IngestError(f"{path} can't be read as Parquet: {' '.join(str(error).split())[:300]}") from error


def is_plain(kind: Any) -> bool:
    """Returns whether a column of an Arrow type holds text, numbers, dates or times, or names of categories."""
    import pyarrow.types as pt

    values = kind.value_type if pt.is_dictionary(kind) else kind
    plain = (pt.is_string, pt.is_large_string, pt.is_integer, pt.is_floating, pt.is_boolean, pt.is_null, pt.is_decimal)
    times = (pt.is_date, pt.is_timestamp, pt.is_time)
    return any(is_kind(values) for is_kind in (*plain, *times))


def read_class_names(schema: Any) -> dict[str, list[str]]:
    """Returns the names of the classes that columns have by number; none if another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {column: names for column, feature in features.items() if (names := _read_names(feature))}


def _read_names(feature: Any) -> list[str]:
    if isinstance(feature, list) and feature:  # a list of them, as older versions wrote it, and newer ones
        feature = feature[0]
    if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def make_plain(value: Any, classes: Sequence[str] = ()) -> Any:
    """Returns a value of a plain column as one of JSON, whose numbers are finite or infinite.

    Args:
        value: of PyArrow.
        classes: the names of classes that are told by number, of which -1 means none; there are none by default.
    """
    if isinstance(value, list):
        return [make_plain(item, classes) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if classes and isinstance(number := restore_whole(value), int):
        return classes[number] if 0 <= number < len(classes) else None
    return value.strip() if isinstance(value, str) else value
