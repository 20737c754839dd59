"""Label maps: files that name the numbers by which other programs' Examples tell classes."""

import re
from collections.abc import Iterator
from itertools import pairwise

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.base.labels import find_fault

_MAX_BYTES = 16 * 2**20
_NUMBERED = re.compile(r"(\d{1,18})\s*:\s*(.+)")
_OTHERWISE_NUMBERED = re.compile(r"(\d{1,18})[\s,;=]\s*(.+)")
# Protobuf's text format, as far as a StringIntLabelMap of TensorFlow's object detection uses it.
_STRING = r""" "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' """
_TOKEN = re.compile(
    rf"""
    (?: \s | \#[^\n]* )*+
    (?: (?P<open> \w+ \s* :? \s* \{{ ) | (?P<close> \}} ) | (?P<key>\w+) \s* : \s* (?P<value> {_STRING} | [-+.\w]+ ) )
    \s* [,;]?
    """,
    re.VERBOSE,
)


_END = re.compile(r"(?:\s|#[^\n]*)*+")
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def read_label_map(path: str) -> dict[int, str]:
    """Reads the names of classes by their numbers.

    Args:
        path: a file with a name on each line, counted from 0; or ``number:name`` on each line; or, if it ends in
            ``.pbtxt``, a label map of TensorFlow's object detection, whose items have an ``id`` and a ``name``, and
            perhaps a ``display_name``, which comes first.

    Raises:
        ConfigError: it can't be read or understood, or has a number or a name twice; the message says where.
    """
    try:
        content = filesystem.read(path, _MAX_BYTES)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES >> 20} MiB")
        text = content.decode("utf-8-sig")
        return _check(_read_items(text) if path.endswith(".pbtxt") else _read_lines(text))
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.features.label_map: {path}: No such file. If that is a feature with the names, it is the label, "
            "without a map, such as data.features.label: image/class/text"
        ) from error
    except OSError as error:
        raise ConfigError(f"data.features.label_map: {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"data.features.label_map: {path}: {error}") from error


def _check(items: Iterator[tuple[str, int, str]]) -> dict[int, str]:
    names: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for where, number, name in items:
        if not name:
            raise ValueError(f"{where} has no name")
        if fault := find_fault(name):
            raise ValueError(f"{where}: {name!r} holds {fault}, so it can't name a class")
        if number in names:
            raise ValueError(f"{where}: {number} has a name already, '{names[number]}'")
        if name in numbers:
            raise ValueError(f"{where}: '{name}' is the name of {numbers[name]} already")
        names[number], numbers[name] = name, number
    return names


def _read_lines(text: str) -> Iterator[tuple[str, int, str]]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    numbered = [match for match in map(_NUMBERED.fullmatch, lines) if match]
    if len(numbered) == len(lines):
        for line, match in enumerate(numbered, 1):
            yield f"line {line}", int(match[1]), match[2]
        return
    if 2 * len(numbered) > len(lines):  # else it is a name such as 12:30
        line = next(line for line, text in enumerate(lines, 1) if not _NUMBERED.fullmatch(text))
        raise ValueError(f"line {line} has no number, and others have: write number:name on each line")
    others = [match for match in map(_OTHERWISE_NUMBERED.fullmatch, lines) if match]
    if len(others) == len(lines) > 1 and all(int(x[1]) + 1 == int(y[1]) for x, y in pairwise(others)):
        raise ValueError(f"line 1: is {others[0][1]} the number of {others[0][2]}? Then write number:name on each line")
    for line, name in enumerate(lines, 1):
        yield f"line {line}", line - 1, name


def _read_items(text: str) -> Iterator[tuple[str, int, str]]:
    depth = count = at = 0
    item: dict[str, str] = {}
    while match := _TOKEN.match(text, at):
        at = match.end()
        if match["open"]:
            depth += 1
            if depth == 1:
                item, count = {}, count + 1
        elif match["close"]:
            depth -= 1
            if depth == 0:
                yield f"item {count}", _read_id(item, count), item.get("display_name") or item.get("name", "")
        elif depth == 1:
            value = match["value"]
            item[match["key"]] = _unescape(value[1:-1] if value[0] in "\"'" else value)
    if depth or not _END.fullmatch(text, at):
        line = text.count("\n", 0, at) + 1
        raise ValueError(f"line {line} is not of a label map: item {{ id: 1 name: 'rose' }}")


def _unescape(text: str) -> str:
    """Returns a string of protobuf's text format as it is meant: its bytes beyond ASCII may be octal or hexadecimal."""

    def decode(match: re.Match[bytes]) -> bytes:
        octal, hexadecimal, letter = match.groups()
        if letter:
            return _ESCAPED.get(letter, letter)
        return bytes([int(octal, 8) & 0xFF if octal else int(hexadecimal, 16)])

    return _ESCAPE.sub(decode, text.encode()).decode()


def _read_id(item: dict[str, str], count: int) -> int:
    if not item.get("id", "").isdecimal():
        raise ValueError(f"item {count} has no id that is a whole number")
    return int(item["id"])
