"""Shards of a dataset: TFRecord files named by their content, each with an index of what is in it."""

import gzip
import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, TypedDict, cast

from imagepipe.base import filesystem, tfrecord
from imagepipe.ingest.dataset import Compression


class Known(TypedDict):
    """One line of a dataset's index: what is known of an image.

    Attributes:
        sha256: hex, of the original file.
        copies: path to labels; of an image that is in, the one copy that is.
        shard: path of its TFRecord file below the dataset's folder; None where it was refused for its labels.
    """

    sha256: str
    copies: dict[str, list[str]]
    shard: str | None


@dataclass(frozen=True)
class Record:
    """A serialized tf.train.Example, and what the index says of its image."""

    data: bytes
    sha256: str
    copies: dict[str, list[str]]


@dataclass(frozen=True)
class Staged:
    """A shard that is written, but not in its place yet.

    Attributes:
        staged: where its TFRecord file is; its index is beside it.
        file: where it is to be, below the dataset's folder.
        records: how many.
        bytes: size of the TFRecord file.
    """

    staged: str
    file: str
    records: int
    bytes: int


def index_file(shard: str) -> str:
    """Path of a shard's index, both below the dataset's folder."""
    return f"index/{shard.replace('/', '-').partition('.')[0]}.jsonl"


def write(staging: str, split: str, compress: Compression | None, records: Iterable[Record]) -> Staged | None:
    """Streams records into a staged shard and its index; None, and no file, where there is no record.

    The shard's name comes from the records, so that the same ones give the same files.
    """
    # The name until then is its own: Beam may run a bundle twice, and at the same time.
    staged = f"{staging}/shards/{uuid.uuid4().hex}"
    digest = hashlib.sha256()
    known: list[tuple[str, dict[str, list[str]]]] = []
    with ExitStack() as stack:
        file: BinaryIO | None = None
        for record in records:
            file = file or stack.enter_context(_created(staged, compress))
            file.write(tfrecord.frame_record(record.data))
            digest.update(record.data)
            known.append((record.sha256, record.copies))
    if not known:
        return None
    name = f"{split}/{digest.hexdigest()[:20]}.tfrecord{'.gz' if compress else ''}"
    lines = "".join(json.dumps(Known(sha256=sha256, copies=copies, shard=name)) + "\n" for sha256, copies in known)
    filesystem.write_whole(f"{staged}.jsonl", lines.encode())
    return Staged(staged, name, len(known), filesystem.size(staged) or 0)


def rewrite(
    folder: str, shard: str, without: Collection[str], staging: str, compress: Compression | None
) -> Staged | None:
    """Stages a copy of a dataset's shard without the images of some hashes; None where nothing is left."""
    with filesystem.open_read(filesystem.join(folder, index_file(shard))) as file:
        known = {line["sha256"]: line["copies"] for line in map(json.loads, file)}
    with _opened(filesystem.join(folder, shard), compress) as stored:
        records = (
            Record(data, sha256, known[sha256])
            for data in tfrecord.read_records(stored)
            if (sha256 := tfrecord.read_bytes_feature(data, "sha256")[0].decode()) not in without
        )
        return write(staging, shard.partition("/")[0], compress, records)


@contextmanager
def _created(path: str, compress: Compression | None) -> Iterator[BinaryIO]:
    with filesystem.create(path) as raw:
        if not compress:
            yield raw
            return
        # Without a name and a time in its header, the same records give the same bytes.
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as zipped:
            yield cast(BinaryIO, zipped)


@contextmanager
def _opened(path: str, compress: Compression | None) -> Iterator[BinaryIO]:
    with filesystem.open_read(path) as raw:
        if not compress:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as zipped:
            yield cast(BinaryIO, zipped)
