"""Files of captured rows: ``date=YYYY-MM-DD/hour=HH/version=V/part-<name>.parquet`` below a folder.

A file is seen whole or not at all. The folder may be local or the URI of a store; any number of servers may write into
one folder.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from imagepipe.base import filesystem
from imagepipe.capture.rows import SCHEMA

_DATE = re.compile(r"date=(\d{4}-\d\d-\d\d)")
_PART = re.compile(r"date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/version=([^/]+)/part-[^/]+\.parquet")

Row = Mapping[str, Any]


def write_rows(folder: str, rows: Sequence[Row], name: str) -> None:
    """Writes rows, a file per hour and version; one of the same name is replaced.

    Args:
        folder: the capture's.
        rows: with the columns of ``rows.SCHEMA``; those that are missing are null.
        name: of the files, within their folders.

    Raises:
        OSError: if a file can't be written.
    """
    parts: dict[str, list[Row]] = {}
    for row in rows:
        where = f"{row['time']:date=%Y-%m-%d/hour=%H}/version={quote(row['version'], safe='')}"
        parts.setdefault(where, []).append(row)
    for where, part in parts.items():
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(part, SCHEMA), content, compression="zstd")
        filesystem.write_whole(f"{folder}/{where}/part-{name}.parquet", content.getvalue())


def list_parts(folder: str, since: datetime | None = None) -> Iterator[str]:
    """Yields the files of a capture, oldest first.

    Args:
        folder: the capture's.
        since: leaves out the files of the hours before.

    Raises:
        OSError: if the folder can't be listed.
    """
    for path, _ in filesystem.walk(folder):
        if (match := _PART.fullmatch(path[len(folder) :].lstrip("/"))) and (
            since is None or f"{match[1]} {match[2]}" >= f"{since.astimezone(UTC):%Y-%m-%d %H}"
        ):
            yield path


def delete_old(folder: str, days: int, today: date) -> None:
    """Deletes the rows of days that are longer ago than so many.

    Args:
        folder: the capture's.
        days: number of days before today that are kept.
        today: in UTC.

    Raises:
        OSError: if a folder can't be deleted.
    """
    for name in filesystem.list_subfolders(folder):
        if (match := _DATE.fullmatch(name)) and match[1] < f"{today - timedelta(days)}":
            filesystem.delete_folder(f"{folder}/{name}")
