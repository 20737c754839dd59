"""Shards of a dataset: TFRecord files named by their content, each with an index of what is in it."""

import gzip
import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NotRequired, TypedDict, cast

from imagepipe.base import filesystem, tfrecord
from imagepipe.ingest.dataset import Compression, read_lines


class IndexEntry(TypedDict):
    """One line of a dataset's index: what the dataset has of an image.

    Attributes:
        sha256: hex, of the original file.
        copies: path to labels; of an image with a record, the one copy that was written.
        shard: path of its TFRecord file below the dataset's folder; None if it was refused for its labels.
        group: of an image with a record; None or missing if it has none.
        side: hash of its side features, see ``rows.digest_side``; missing if it has none.
        source: the place in the dataset's list of sources of the one that gave it; earlier versions left it out.
        holders: by the place of a source that has the image, the path of its copy, as of when it was last read; missing
            if it is only the one that gave it.
        givers: of an image that was refused, by the path of a copy the place of its source; earlier versions left them
            out.
    """

    sha256: str
    copies: dict[str, list[str]]
    shard: str | None
    group: NotRequired[str | None]
    side: NotRequired[str]
    source: NotRequired[int]
    holders: NotRequired[dict[str, str]]
    givers: NotRequired[dict[str, int | None]]


@dataclass(frozen=True)
class Record:
    """A serialized tf.train.Example, with the entry of its image in the index, but for the shard."""

    data: bytes
    entry: IndexEntry


@dataclass(frozen=True)
class StagedShard:
    """A shard that is written, but not in its place yet.

    Attributes:
        staged: present path of its TFRecord file; its index is beside it.
        file: later path, below the dataset's folder.
        records: number of records.
        bytes: size of the TFRecord file.
    """

    staged: str
    file: str
    records: int
    bytes: int


def read_split(shard: str) -> str:
    """Returns the split of a shard."""
    return shard.partition("/")[0]


def locate_index(shard: str) -> str:
    """Returns the path of a shard's index, both below the dataset's folder."""
    return f"index/{shard.replace('/', '-').partition('.')[0]}.jsonl"


def write(staging: str, split: str, compress: Compression | None, records: Iterable[Record]) -> StagedShard | None:
    """Streams records into a staged shard and its index; returns None, and writes no file, if there is no record.

    The shard's name comes from the records, so that the same ones give the same files.
    """
    # Until then its name is unique: Beam may run a bundle twice, and at the same time.
    staged = f"{staging}/shards/{uuid.uuid4().hex}"
    digest = hashlib.sha256()
    entries: list[IndexEntry] = []
    with ExitStack() as stack:
        file: BinaryIO | None = None
        for record in records:
            file = file or stack.enter_context(_open_write(staged, compress))
            file.write(tfrecord.frame_record(record.data))
            digest.update(record.data)
            entries.append(record.entry)
    if not entries:
        return None
    name = f"{split}/{digest.hexdigest()[:20]}.tfrecord{'.gz' if compress else ''}"
    _write_index(f"{staged}.jsonl", (entry | {"shard": name} for entry in entries))
    return StagedShard(staged, name, len(entries), filesystem.size(staged) or 0)


def read_index(path: str) -> Iterator[IndexEntry]:
    """Yields the entries of an index file; none if there is no such file.

    Raises:
        IngestError: a line is damaged.
    """
    return cast(Iterator[IndexEntry], read_lines(path, {"sha256": str, "copies": dict}))


def rewrite_all(
    folder: str,
    leaving: Iterable[IndexEntry],
    edited: Mapping[str, IndexEntry],
    staging: str,
    compress: Compression | None,
) -> tuple[list[StagedShard], list[str]]:
    """Stages anew every shard that loses records, see ``rewrite``.

    Args:
        folder: of the dataset.
        leaving: entries of the records that go.
        edited: entries by hash that replace those of the index.
        staging: folder that is written to.
        compress: compression of the dataset.

    Returns:
        The staged shards, and the names of those that they replace.
    """
    hashes_by_shard: dict[str, set[str]] = defaultdict(set)
    for entry in leaving:
        hashes_by_shard[str(entry["shard"])].add(entry["sha256"])
    rewritten = [
        rewrite(folder, shard, hashes, edited, staging, compress) for shard, hashes in sorted(hashes_by_shard.items())
    ]
    return [shard for shard in rewritten if shard is not None], sorted(hashes_by_shard)


def rewrite(
    folder: str,
    shard: str,
    without: Collection[str],
    edited: Mapping[str, IndexEntry],
    staging: str,
    compress: Compression | None,
) -> StagedShard | None:
    """Stages a copy of a dataset's shard without the images of some hashes; returns None if nothing is left.

    Args:
        folder: of the dataset.
        shard: below it.
        without: hashes.
        edited: entries by hash that replace those of the index.
        staging: folder that is written to.
        compress: compression of the dataset.
    """
    entries = {entry["sha256"]: entry for entry in _read_index(folder, shard, edited)}
    with _open_read(filesystem.join(folder, shard), compress) as stored:
        records = (
            Record(data, entries[sha256])
            for data in tfrecord.read_records(stored)
            if (sha256 := tfrecord.read_bytes_feature(data, "sha256")[0].decode()) not in without
        )
        return write(staging, read_split(shard), compress, records)


def rewrite_index(folder: str, shard: str, edited: Mapping[str, IndexEntry], staging: str) -> str:
    """Stages a shard's index with edited entries, see ``rewrite``; returns its path."""
    staged = f"{staging}/shards/{uuid.uuid4().hex}.jsonl"
    _write_index(staged, _read_index(folder, shard, edited))
    return staged


def _read_index(folder: str, shard: str, edited: Mapping[str, IndexEntry]) -> Iterator[IndexEntry]:
    entries = read_index(filesystem.join(folder, locate_index(shard)))
    return (edited.get(entry["sha256"], entry) for entry in entries)


def _write_index(path: str, entries: Iterable[IndexEntry]) -> None:
    filesystem.write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def read_records(path: str, compress: Compression | None) -> Iterator[bytes]:
    """Yields the records of a shard, staged or in its place.

    Raises:
        OSError, EOFError, ValueError, zlib.error: it is missing or damaged.
    """
    with _open_read(path, compress) as stored:
        yield from tfrecord.read_records(stored)


@contextmanager
def _open_write(path: str, compress: Compression | None) -> Iterator[BinaryIO]:
    with filesystem.create(path) as raw:
        if not compress:
            yield raw
            return
        # Without a name and a time in its header, the same records give the same bytes.
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped:
            yield cast(BinaryIO, zipped)


@contextmanager
def _open_read(path: str, compress: Compression | None) -> Iterator[BinaryIO]:
    with filesystem.open_read(path) as raw:
        if not compress:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as zipped:
            yield cast(BinaryIO, zipped)
