"""Sorting and counting of any number of texts, in memory that does not grow with it: temporary files hold the rest."""

import heapq
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from itertools import islice
from typing import IO, Any

_IN_MEMORY = 100_000  # items: some 20 MB
_CACHE_KIB = 32_768


class DiskCounter:
    """Counts texts by their hashes, of 16 bytes, in a temporary database that goes with this object."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)  # in memory, until it outgrows its cache
        for statement in (
            "PRAGMA journal_mode = OFF",
            f"PRAGMA cache_size = -{_CACHE_KIB}",
            "CREATE TABLE counts (hash BLOB PRIMARY KEY, count INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            self._table.execute(statement)

    def add(self, text: str) -> int:
        """Counts a text once more, and returns how often it was counted, 1 or more."""
        (count,) = self._table.execute(
            "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count",
            (_hash(text),),
        ).fetchone()
        return int(count)

    def __contains__(self, text: str) -> bool:
        query = self._table.execute("SELECT 1 FROM counts WHERE hash = ?", (_hash(text),))
        return query.fetchone() is not None


def _hash(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def sort_on_disk(items: Iterable[Any], key: Callable[[Any], Any]) -> Iterator[Any]:
    """Sorts items, all of which are taken before this returns.

    Args:
        items: lists of values of JSON. Tuples come back as lists if they don't fit into memory.
        key: by which they are sorted.

    Returns:
        The items in order.
    """
    remaining = iter(items)
    run = sorted(islice(remaining, _IN_MEMORY), key=key)
    if len(run) < _IN_MEMORY:
        return iter(run)
    files = ExitStack()
    spilled = [_spill(files, run)]
    while run := sorted(islice(remaining, _IN_MEMORY), key=key):
        spilled.append(_spill(files, run))
    return _merge(files, spilled, key)


def _spill(files: ExitStack, run: list[Any]) -> IO[str]:
    file = files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))  # noqa: SIM115 (the stack closes it)
    file.writelines(f"{json.dumps(item)}\n" for item in run)
    file.seek(0)
    return file


def _merge(files: ExitStack, spilled: list[IO[str]], key: Callable[[Any], Any]) -> Iterator[Any]:
    with files:
        yield from heapq.merge(*(map(json.loads, file) for file in spilled), key=key)
