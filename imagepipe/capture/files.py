"""Files of captured rows: ``date=YYYY-MM-DD/hour=HH/version=V/part-<name>.parquet`` below a folder.

A file is seen whole or not at all. The folder may be local or the URI of a store; any number of servers may write into
one folder.
"""

import io
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
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
    for where, part in split_rows(rows).items():
        write_part(folder, where, part, name)


def split_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each file by its folder, relative to the capture's: one per hour and version."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        where = f"{row['time']:date=%Y-%m-%d/hour=%H}/version={quote(row['version'], safe='')}"
        parts.setdefault(where, []).append(row)
    return parts


def write_part(folder: str, where: str, rows: Sequence[Row], name: str) -> None:
    """Writes the rows of one hour and version; a file of the same name is replaced.

    Args:
        folder: the capture's.
        where: the file's folder, as ``split_rows`` gives it.
        rows: as of ``write_rows``.
        name: of the file.

    Raises:
        OSError: if the file can't be written.
    """
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), content, compression="zstd")
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

    Today is taken for the day after the last one with rows: the clock may have jumped ahead, until it is set by the
    network's. So after a pause less is deleted, and the rest on the next day with rows.

    Args:
        folder: the capture's.
        days: number of days before today that are kept.
        today: in UTC, by this machine's clock; what is later, as by another's, is left alone.

    Raises:
        OSError: if a folder can't be deleted.
    """
    names = filesystem.list_subfolders(folder)
    dates = sorted(match[1] for match in map(_DATE.fullmatch, names) if match and match[1] < f"{today}")
    if dates:
        first_kept = date.fromordinal(max(1, date.fromisoformat(dates[-1]).toordinal() + 1 - days))
        for day in dates[: bisect_left(dates, f"{first_kept}")]:
            filesystem.delete_folder(f"{folder}/date={day}")
