"""Lists and reads the variables of a SavedModel that Keras exported; the program in it is not loaded.

TensorFlow would take seconds to import, and would read a stranger's bytes in C++. What is read here is little: the
index of a checkpoint (``tensorflow/core/util/tensor_bundle``), a table in LevelDB's format, uncompressed, with a
message ``BundleEntryProto`` for each variable; and the message ``TrackableObjectGraph``, which has their names.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagepipe.base.tfrecord import compute_masked_crc
from trainer.weights.layers import Contents, Shape, collect_layers, widen_bfloat16

_VARIABLES = "variables/variables"
_MAX_SIDES = 8  # of a shape; a convolution has 4, of volumes 5
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_OTHERS = ("optimizer/", "_optimizer/", "keras_api/")  # the state of an optimizer and of metrics
_SLOT = "/.OPTIMIZER_SLOT/"  # in the key of such a state beside its variable
_MAX_INDEX = 64 << 20  # bytes of the index, or of the names; 0.1 and 1 MB for a thousand layers
_MAX_KEY = 4096  # bytes
_FOOTER, _MAGIC = 48, (0xDB4775248B80FB57).to_bytes(8, "little")
_FLOATS: dict[int, np.dtype] = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 14: np.dtype("<u2"), 19: np.dtype("<f2")}
_STRING, _BFLOAT16 = 7, 14  # tensorflow.DataType


class _Entry(NamedTuple):
    """A variable: its type, shape, and the bytes of the file of values that has it."""

    dtype: int
    shape: Shape
    shard: int
    offset: int
    size: int
    checksum: bytes


def get_index(path: str) -> Path:
    """Returns the file that lists the variables of a SavedModel, given its folder."""
    return Path(path, f"{_VARIABLES}.index")


def is_saved_model(path: str) -> bool:
    """Returns whether a folder has the variables of a SavedModel."""
    return get_index(path).is_file()


class Checkpoint:
    """The variables of a SavedModel.

    Args:
        path: its folder.

    Raises:
        OSError: if the index is damaged, or in a format that Keras does not write.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        index = get_index(path)
        if index.stat().st_size > _MAX_INDEX:
            raise OSError(f"{index} is larger than {_MAX_INDEX >> 20} MiB")
        self._entries: dict[str, _Entry] = {}
        self._shards = 1
        size = 0
        for key, value in _read_table(index.read_bytes()):
            size += len(key)
            if size > _MAX_INDEX:  # in the file, a key may be a few bytes behind the start of the one before
                raise OSError(f"the names of its variables are larger than {_MAX_INDEX >> 20} MiB")
            if key:
                self._entries[key.decode()] = _parse_entry(value)
            else:
                self._shards = _get_number(value, 1)

    def list_contents(self) -> Contents:
        """Returns the layers, in topological order.

        Raises:
            OSError: if the variables have no names, or are of no layers.
        """
        if _GRAPH not in self._entries:
            raise OSError("its variables have no names")
        if self._entries[_GRAPH].size > _MAX_INDEX:
            raise OSError(f"the names of its variables are larger than {_MAX_INDEX >> 20} MiB")
        weights: dict[str, tuple[str, Shape, str]] = {}
        for key, name in _list_names(self._read_bytes(_GRAPH)):
            entry = self._entries.get(key)
            if entry and entry.dtype in _FLOATS and "/" in name and not key.startswith(_OTHERS) and _SLOT not in key:
                _, _, first = weights.get(name, ("", (), key))
                # Keras 3 exports each twice; of two networks, variables of one name are different ones.
                is_same = (self._entries[first].shape, self._entries[first].checksum) == (entry.shape, entry.checksum)
                weights[name if is_same else key] = (name, entry.shape, first if is_same else key)
        if not weights:
            raise OSError("it has no layers with weights")
        version = " of Keras 2" if Path(self._path, "keras_metadata.pb").is_file() else ""
        return Contents(collect_layers(list(weights.values())), True, f"SavedModel{version}")

    def read(self, key: str) -> np.ndarray:
        """Returns a variable's numbers.

        Raises:
            OSError: if the file of values is too short, or not what was written.
        """
        entry = self._entries[key]
        dtype = _FLOATS[entry.dtype]
        if entry.size != math.prod(entry.shape) * dtype.itemsize:
            raise OSError(f"{key} has {entry.size} bytes, which is not its shape's number")
        numbers = np.frombuffer(self._read_bytes(key), dtype).reshape(entry.shape)
        if entry.dtype == _BFLOAT16:
            return widen_bfloat16(numbers)
        return numbers

    def _read_bytes(self, key: str) -> bytes:
        entry = self._entries[key]
        shard = Path(self._path, f"{_VARIABLES}.data-{entry.shard:05d}-of-{self._shards:05d}")
        if entry.offset + entry.size > shard.stat().st_size:
            raise OSError(f"{shard} is too short")
        with shard.open("rb") as file:
            file.seek(entry.offset)
            content = file.read(entry.size)
        if entry.dtype == _STRING:  # one text: its length, the checksum of that, the bytes
            _, start = _read_varint(content, 0)
            return content[start + 4 :]
        if compute_masked_crc(content) != entry.checksum:
            raise OSError(f"{key} is damaged: its checksum is wrong")
        return content


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a table: a footer points to an index of blocks."""
    if len(content) < _FOOTER or not content.endswith(_MAGIC):
        raise OSError("the index of its variables is damaged")
    footer = content[-_FOOTER:]
    _, at = _read_handle(footer, 0)  # of a block that nobody uses
    blocks, _ = _read_handle(footer, at)
    rest = len(content)
    for _, entry in _read_block(content[blocks]):
        place, _ = _read_handle(entry, 0)
        rest -= place.stop - place.start
        if rest < 0:
            raise OSError("the index of its variables is damaged: its blocks overlap")
        yield from _read_block(content[place])


def _read_handle(content: bytes, at: int) -> tuple[slice, int]:
    """Returns where a block and the byte after it are, and where this ends."""
    offset, at = _read_varint(content, at)
    size, at = _read_varint(content, at)
    return slice(offset, offset + size + 1), at


def _read_block(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of a block; a key begins with a part of the one before it."""
    if len(block) < 5 or block[-1]:
        raise OSError("the index of its variables is damaged, or compressed")
    end = len(block) - 1 - 4 * (1 + int.from_bytes(block[-5:-1], "little"))  # there the places of whole keys begin
    key, at = b"", 0
    while at < end:
        shared, at = _read_varint(block, at)
        rest, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        if shared + rest > _MAX_KEY:
            raise OSError("the index of its variables is damaged: a name is too long")
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _parse_entry(message: bytes) -> _Entry:
    fields = dict(_read_fields(message))
    sides = (_get_number(side, 1) for number, side in _read_fields(fields.get(2, b"")) if number == 2)
    shape = tuple(islice(sides, _MAX_SIDES + 1))
    if len(shape) > _MAX_SIDES:
        raise OSError(f"the index of its variables is damaged: a shape has more than {_MAX_SIDES} sides")
    dtype, shard, offset, size = (_get_number(message, number) for number in (1, 3, 4, 5))
    return _Entry(dtype, shape, shard, offset, size, fields.get(6, b""))


def _list_names(graph: bytes) -> Iterator[tuple[str, str]]:
    """Yields the key and the name (``Conv1/kernel``) of each variable."""
    for number, node in _read_fields(graph):
        for inner, attribute in _read_fields(node) if number == 1 else ():
            if inner == 2:
                fields = dict(_read_fields(attribute))
                yield fields.get(3, b"").decode(), fields.get(2, b"").decode()


def _get_number(message: bytes, number: int) -> int:
    """Returns a whole number of a protocol buffer's message; 0 if it is not there."""
    return int.from_bytes(dict(_read_fields(message)).get(number, b""), "little")


def _read_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the fields of a protocol buffer's message: number, and content; numbers in little-endian order."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                value, at = _read_varint(message, at)
                yield tag >> 3, value.to_bytes(10, "little")
                continue
            case 1:
                length = 8
            case 2:
                length, at = _read_varint(message, at)
            case 5:
                length = 4
            case _:
                raise OSError("a message in it is damaged")
        yield tag >> 3, message[at : at + length]
        at += length


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """Returns a number of 7 bits a byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise OSError("a number in it is damaged")
