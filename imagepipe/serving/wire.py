"""Bounds on protobuf messages, counted in their bytes before anything is made of them.

An empty submessage is two bytes in the message and a hundred in memory, so that 32 MiB of them would become 1.6 GB.
"""

from collections.abc import Iterator
from typing import Any

from imagepipe.serving.types import RequestError

_FIXED = {1: 8, 5: 4}  # sizes of numbers by their wire type, see https://protobuf.dev/programming-guides/encoding
_VARINT, _DELIMITED = 0, 2
_MAX_VARINT_BYTES = 10
_MAX_DEPTH = 16  # of messages in messages: those of inference are at most 5 deep, others may hold themselves


def check_message(body: bytes, kind: Any, most: int) -> None:
    """Checks that a message has no more values than are allowed; those of packed numbers count by their bytes.

    Args:
        body: the message.
        kind: its descriptor; only its submessages are looked into.
        most: number of values.

    Raises:
        RequestError: if it has more, or is no such message.
    """
    if _count(memoryview(body), kind, most, _MAX_DEPTH) < 0:
        raise RequestError("too_many_values", f"the message has more than {most:,} values")


def _count(body: memoryview, kind: Any, room: int, depth: int) -> int:
    """Returns how many values there is room for after those of a message; less than 0 if it has too many."""
    for number, content, _ in iterate_fields(body):
        room -= 1
        if room < 0 or not depth:
            return -1
        field = kind.fields_by_number.get(number)
        if content is None or field is None:
            continue
        if field.message_type is not None:
            room = _count(content, field.message_type, room, depth - 1)
        elif field.type not in (field.TYPE_BYTES, field.TYPE_STRING):
            room -= len(content)
    return room


def iterate_fields(body: memoryview) -> Iterator[tuple[int, memoryview | None, memoryview]]:
    """Yields the fields of a message: the number, the content of one that is delimited, and all of it.

    Raises:
        RequestError: if it is no message.
    """
    at = 0
    while at < len(body):
        start = at
        tag, at = _read_varint(body, at)
        wire_type = tag & 7
        content = None
        if wire_type in _FIXED:
            at += _FIXED[wire_type]
        elif wire_type == _VARINT:
            _, at = _read_varint(body, at)
        elif wire_type == _DELIMITED:
            size, at = _read_varint(body, at)
            content = body[at : at + size]
            at += size
        else:  # groups, which no message of ours has
            raise RequestError("wrong_type", "the message is not one of this method")
        if at > len(body):
            raise RequestError("wrong_type", "the message is cut")
        yield tag >> 3, content, body[start:at]


def _read_varint(body: memoryview, at: int) -> tuple[int, int]:
    """Returns the number at a place, and the place after it."""
    number = 0
    for shift, byte in enumerate(body[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return number, at + shift + 1
    raise RequestError("wrong_type", "the message is cut")
