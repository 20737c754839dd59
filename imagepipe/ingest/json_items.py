"""A large JSON document, item by item: exports of annotations have hundreds of megabytes, most of them shapes."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError

_CHUNK = 2**20
_MAX_ITEM = 2**25  # characters of one item: COCO's masks as run lengths of large images have some hundred thousand
_BLANKS = " \t\r\n"
_ENDS = frozenset(f"{_BLANKS},:]}}")  # what comes after a value
_DECODER = json.JSONDecoder()


def read_items(path: str) -> Iterator[tuple[str, Any]]:
    """Reads the items of a document's lists one at a time, with bounded memory.

    Args:
        path: an absolute path or URI.

    Yields:
        Of a document that is a list: "" and each item. Of one that is an object: each key, with each item if its value
        is a list, else with the value.

    Raises:
        IngestError: it is no such JSON, or an item is far too long.
    """
    with filesystem.open_read(path) as file:
        text = _Text(file)
        try:
            if text.peek() == "[":
                for item in text.read_list():
                    yield "", item
            else:
                yield from _read_object(text)
            if text.peek():
                raise ValueError("there is more after its end")
        except (ValueError, RecursionError) as error:
            raise IngestError(f"{path} can't be read as JSON: {error}.") from error


def _read_object(text: "_Text") -> Iterator[tuple[str, Any]]:
    text.take("{")
    while text.peek() != "}":
        key = text.read_value()
        if not isinstance(key, str):
            raise ValueError(f"a key is {str(key)[:50]!r}, and no text")
        text.take(":")
        if text.peek() == "[":
            for item in text.read_list():
                yield key, item
        else:
            yield key, text.read_value()
        if text.peek() != "}":
            text.take(",")
    text.take("}")


class _Text:
    """The text of a document, of which only a part is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._is_whole = "", 0, False

    def peek(self) -> str:
        """Returns the next character that is not blank; "" at the end."""
        while True:
            while self._at < len(self._text):
                if (character := self._text[self._at]) not in _BLANKS:
                    return character
                self._at += 1
            if self._is_whole:
                return ""
            self._read_more()

    def take(self, character: str) -> None:
        """Goes past a character, which has to come next."""
        if (following := self.peek()) != character:
            raise ValueError(f"{character!r} is expected, not {following!r}" if following else "it is cut short")
        self._at += 1

    def read_list(self) -> Iterator[Any]:
        """Reads the items of a list."""
        self.take("[")
        while self.peek() != "]":
            yield self.read_value()
            if self.peek() != "]":
                self.take(",")
        self.take("]")

    def read_value(self) -> Any:
        """Reads one value as a whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._is_whole:
                    raise
            else:
                if self._is_whole or self._text[end : end + 1] in _ENDS:  # else it may be a number that goes on
                    self._at = end
                    return value
            if len(self._text) - self._at > _MAX_ITEM:
                raise ValueError(f"an item has more than {_MAX_ITEM:,} characters, or an error in them")
            self._read_more()

    def _read_more(self) -> None:
        rest = self._text[self._at :]
        data = self._file.read(max(_CHUNK, len(rest)))  # so that a long item is tried only a few times
        self._is_whole = not data
        self._text, self._at = rest + self._decoder.decode(data, final=self._is_whole), 0
