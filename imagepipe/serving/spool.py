"""The inputs of a batch prediction in files, from which workers on any machine take them, a shard at a time."""

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from imagepipe.base import filesystem
from imagepipe.serving.listing import Item

# A kill costs at most a shard: some seconds of a GPU, half a minute of two cores. A file of requests is one shard.
_IMAGES_IN_SHARD = 256
_SHARDS_IN_FILE = 64


class Shard(NamedTuple):
    """A unit of work.

    Attributes:
        id: its name, 32 hexadecimal digits.
        spool: the file with its inputs.
        offset: where they begin, in bytes.
        size: number of bytes.
    """

    id: str
    spool: str
    offset: int
    size: int


@dataclass
class Spool:
    """Inputs in files.

    Attributes:
        files: their paths; to each belongs a list of its shards.
        inputs: number of inputs, of which a file of requests is one.
        request_files: number of these files.
    """

    files: list[str]
    inputs: int = 0
    request_files: int = 0


def spool_items(items: Iterable[Item], folder: str) -> Spool:
    """Divides inputs into shards, and writes them to files in a folder; memory holds those of one file."""
    spool = Spool([])
    shards = _divide(items)
    while some := list(islice(shards, _SHARDS_IN_FILE)):
        path = f"{folder}/inputs-{len(spool.files):05}.jsonl"
        spool.files.append(path)
        index: list[Shard] = []
        offset = 0
        with filesystem.create(path) as file:
            for shard in some:
                data = "".join(f"{json.dumps(item)}\n" for item in shard).encode()
                file.write(data)
                index.append(Shard(uuid.uuid4().hex, path, offset, len(data)))
                offset += len(data)
                spool.inputs += len(shard)
                spool.request_files += shard[0].is_request_file
        filesystem.write_whole(_name_index(path), json.dumps(index).encode())
    return spool


def read_shards(spool: str) -> Iterator[Shard]:
    """Yields the shards of a file of inputs."""
    for shard in json.loads(filesystem.read_bytes(_name_index(spool))):
        yield Shard(*shard)


def _name_index(spool: str) -> str:
    return spool.removesuffix("l")


def _divide(items: Iterable[Item]) -> Iterator[list[Item]]:
    images: list[Item] = []
    for item in items:
        if item.is_request_file:
            yield [item]
            continue
        images.append(item)
        if len(images) == _IMAGES_IN_SHARD:
            yield images
            images = []
    if images:
        yield images


def read_shard(shard: Shard) -> list[Item]:
    """Returns the inputs of a shard."""
    lines = filesystem.read_part(shard.spool, shard.offset, shard.size).splitlines()
    return [Item(*json.loads(line)) for line in lines]
