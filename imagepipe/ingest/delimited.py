"""Tables as text: their encoding, and how the columns of a CSV are separated, found out from the file itself."""

import codecs
import csv
import io
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.kinds import find_packing

MAX_LINE = 2**20
"""Longest line of a table, in characters: a longer one is no row but an accident, or an attack on the memory."""

TOO_LONG = "\0"
"""Stands for a line that is longer than MAX_LINE."""

Cells = tuple[int, dict[str, Any] | str]
"""A row of a table: its line, from 1, and its values by column; or the reason why it can't be read."""

Say = Callable[[str], None]
"""Takes a sentence about what was found out, for the user."""

_HEAD = 2**16  # bytes of a file from which encoding and separator are found out
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OPEN = "a quote opens in it that is not closed as it should be"
_INDEX = "Unnamed: 0"  # pandas' name of a column that it once wrote without one, its index


def read_lines(source: str) -> Iterator[str]:
    """Yields the lines of a text file, with their ends; one of more than MAX_LINE characters as TOO_LONG.

    Bytes that are not text in the file's encoding become surrogates, so that only their own rows are refused.

    Raises:
        IngestError: it is an archive.
    """
    # The head is read before: a store in memory has one position for all who read.
    yield from _decode_lines(source, _find_encoding(_read_head(source)))


def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON, for ``object_pairs_hook``.

    Raises:
        ValueError: it has a key twice, of which Python takes the last one.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return values


def _decode_lines(source: str, encoding: str) -> Iterator[str]:
    with filesystem.open_read(source) as file:
        is_utf8 = encoding.startswith("utf-8")
        errors = "surrogateescape" if is_utf8 else "replace"  # UTF-16 and UTF-32 know no surrogateescape
        text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
        is_open = False  # whether the last part read ends between "\r" and what may be its "\n"
        while line := text.readline(MAX_LINE):
            if is_open and line == "\n":
                is_open = False
                continue
            part = line
            while len(part) == MAX_LINE and not part.endswith(("\n", "\r")):
                part = text.readline(MAX_LINE)
            is_open = len(part) == MAX_LINE and part.endswith("\r")
            if part is not line:
                line = f"{TOO_LONG}\n"
            yield line if is_utf8 else line.replace("\ufffd", "\udcff")


def read_delimited(source: str, needed: tuple[str, ...], say: Say) -> tuple[list[str], Iterator[Cells]]:
    """Reads a table whose columns are separated by commas, semicolons or tabs.

    Left out are columns at the end that have neither a name nor values, and a first one without a name that numbers the
    rows, as pandas and R write it; blanks around values are cut off.

    Args:
        source: absolute path or URI.
        needed: columns by which the separator is told from other characters of the header.
        say: is told what was found out.

    Returns:
        The names of the columns, and the rows, blank ones left out.

    Raises:
        IngestError: there is no header, or it is an archive.
    """
    head = _read_head(source)
    encoding = _find_encoding(head)
    start = head.decode(encoding, errors="replace")
    lines = _Lines(_decode_lines(source, encoding))
    if start.lower().startswith("sep="):  # for Excel: what separates the columns
        start = start.partition("\n")[2]
        next(lines)
    separator = max(_SEPARATORS, key=lambda one: _rate_header(_split_head(start, one), needed))
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    try:
        while not any(header := _read_row(reader, lines)):  # blank lines above
            pass
    except StopIteration as error:
        raise IngestError(f"{source} has no header row; its first line must name the columns: path,label,…") from error
    except csv.Error as error:
        raise IngestError(f"{source}: its header row can't be read: {error}. Are all quotes in it closed?") from error
    if len(lines.row_lines) > 1:
        raise IngestError(f"{source}: its header row has more than one line: close the quotes in its first one.")
    while header and not header[-1]:
        header.pop()
    first = _has_index(header, _split_head(start, separator)[1:])
    name = source.rpartition("/")[2]
    say(
        f"{name}: columns separated by {_SEPARATORS[separator]}"
        + (f", in {encoding.upper()}" if not encoding.startswith("utf-8") else "")
        + ("; the first column only numbers the rows, and is left out" if first else "")
    )
    return header[first:], _read_rows(reader, lines, header, int(first))


def _read_head(source: str) -> bytes:
    with filesystem.open_read(source) as file:
        head = file.read(_HEAD)
    if packed := find_packing(head):
        raise IngestError(f"{source} is packed by {packed}: unpack it first.")
    return head


def _find_encoding(head: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) / 4:  # half of the bytes of ASCII in UTF-16 are zero, in text of UTF-8 none is
        return "utf-16-be" if even > odd else "utf-16-le"
    return "utf-8"


def _split_head(text: str, separator: str) -> list[list[str]]:
    """Returns the rows at the start of a table, the last of which may be cut off: the header, and rows below it."""
    rows = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True):
            if any(values := [value.strip() for value in row]):
                rows.append(values)
    except csv.Error:  # what is wrong is told when the row is read
        pass
    return rows


def _rate_header(rows: list[list[str]], needed: tuple[str, ...]) -> tuple[int, int]:
    header = rows[0] if rows else []
    return len(set(needed).intersection(map(str.lower, header))), len(header)


def _has_index(header: list[str], rows: list[list[str]]) -> bool:
    """Returns whether the first column is one that numbers the rows."""
    if not header or header[0] not in ("", _INDEX):
        return False
    values = [row[0] for row in rows[: max(1, len(rows) - 1)] if row]
    return all(value.isascii() and value.isdigit() for value in values)


class _Lines:
    """The lines of a table, which csv reads row by row.

    Attributes:
        number: how many lines have been read.
        row_lines: those of the row that is being read.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self.number = 0
        self.start_row()

    def start_row(self) -> None:
        self.row_lines: list[str] = []
        self._length = 0

    def give_back(self) -> None:
        """Has all lines of the row but its first read again, each but the last as a row of its own.

        So every line is read a few times at most, whatever quotes there are.
        """
        rest = self.row_lines[1:]
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._again and self.row_lines:
            raise csv.Error(_OPEN)
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        self.row_lines.append(line)
        self._length += len(line)
        if self._length > 2 * MAX_LINE:  # a quote that is never closed, or an attack
            raise csv.Error(f"longer than {2 * MAX_LINE:,} characters")
        return line


def _read_row(reader: Any, lines: _Lines) -> list[str]:
    """Returns the values of the next row, without blanks around them; those after quotes are an error in CSV proper."""
    lines.start_row()
    try:
        row = next(reader)
    except csv.Error as error:
        separator = reader.dialect.delimiter
        text = re.sub(rf'"[ \t]+(?={re.escape(separator)}|\r?\n?$)', '"', "".join(lines.row_lines))
        try:
            (row,) = csv.reader([text], delimiter=separator, strict=True, skipinitialspace=True)
        except (csv.Error, ValueError):  # still none, or several
            raise error from None
    return [value.strip() for value in row]


def _read_rows(reader: Any, lines: _Lines, header: list[str], first: int) -> Iterator[Cells]:
    names = [name.lower() for name in header]
    separator = reader.dialect.delimiter
    while True:
        number, reason = lines.number + 1, None
        try:
            values = _read_row(reader, lines)
        except StopIteration:
            return
        except csv.Error as error:
            values, reason = [], str(error)
        while len(values) > len(header) and not values[-1]:
            values.pop()
        if not reason and any(values) and len(values) != len(header):
            reason = f"{len(values)} columns, the header has {len(header)}"
        if f"{TOO_LONG}\n" in lines.row_lines:
            reason = f"longer than {MAX_LINE:,} characters"
        path = dict(zip(names, values, strict=False)).get("path", "")
        if len(lines.row_lines) > 1 and (reason or _holds_row(path, lines.row_lines[1], names, separator)):
            lines.give_back()
            yield number, f"unreadable row: line {number}: {_OPEN}"
        elif reason:
            yield number, f"unreadable row: line {number}: {reason}"
        elif any(values):
            yield number, dict(zip(header[first:], values[first:], strict=True))


def _holds_row(path: str, line: str, names: list[str], separator: str) -> bool:
    """Returns whether the second line of a row is a row itself: a quote is open, as no text has such a line.

    It is if it has all columns, and a path that ends as the row's own does.
    """
    (cells,) = _split_head(line, separator) or [[]]
    _, dot, suffix = path.rpartition(".")
    return len(cells) == len(names) and bool(dot) and cells[names.index("path")].endswith(f".{suffix}")
