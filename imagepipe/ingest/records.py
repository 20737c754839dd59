"""A row's file, read twice: first to its hash, and, if it is to be written, to its tf.train.Example.

Worker processes of a local run do this without Beam.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from imagepipe.base import appearance, filesystem, images, tfrecord
from imagepipe.base.images import MAX_BYTES
from imagepipe.base.workers import map_survivably
from imagepipe.ingest.dataset import Options
from imagepipe.ingest.parts import read_part
from imagepipe.ingest.rows import MISSING_FILE, Row, make_features

_BATCH_BYTES = 2**20  # a batch is read as a whole by one thread: of large files it has few


class HashedRow(Row):
    """A row whose file has been read.

    Attributes:
        sha256: hex, of the file; empty if the row was rejected.
        size: bytes of the file.
        copies: path and row of further rows with the same file.
        grouped: to how many of all rows with this file their source gives a group: to the others it was handed on.
        measured: width, height, format and appearance of an image that is written byte for byte, if it has been decoded
            already.
        weights: weight by split of the draw, once that is decided; one split if it is fixed.
        change: ``new``; ``relabelled``; ``edited``, if the dataset has the image with these labels, and its group or
            side features have changed; or ``already``, if only its path has.
        holders: other sources that have the image, see ``shards.IndexEntry``.
    """

    sha256: str
    size: int
    copies: list[tuple[str, int | None]]
    grouped: int
    measured: tuple[int, int, str, appearance.Appearance] | None
    weights: dict[str, int]
    change: str
    holders: dict[str, str]


def make_batches(rows: Iterable[Any], limit: int) -> Iterator[list[Any]]:
    """Yields rows in lists of at most ``limit``, and of at most _BATCH_BYTES if their sizes are known."""
    batch: list[Any] = []
    total = 0
    for row in rows:
        batch.append(row)
        total += row.get("size", 0)
        if len(batch) == limit or total >= _BATCH_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def read_batches(path: str, limit: int) -> Iterator[list[Row]]:
    """Yields batches of the rows in a file of JSON lines, which is opened when the first is asked for."""
    with filesystem.open_read(path) as file:
        yield from make_batches(map(json.loads, file), limit)


def hash_rows(options: Options, decode: bool, rows: list[Row]) -> list[HashedRow]:
    """Reads and hashes files; a row whose file can't be read, or can't be an image, gets a reason.

    Args:
        options: of the dataset.
        decode: also decodes images that are written byte for byte. Worth it while the dataset has none of the files.
        rows: as the source has them.
    """
    return map_survivably(functools.partial(_hash_row, options, decode), _make_hashed, rows)


def _make_hashed(
    row: Row, reason: str | None, sha256: str = "", size: int = 0, measured: tuple[Any, ...] | None = None
) -> HashedRow:
    undecided = {"copies": [], "grouped": 0, "weights": {}, "change": "new", "holders": {}}
    read = {"reason": reason, "sha256": sha256, "size": size, "measured": measured}
    return cast(HashedRow, {**row, **read, **undecided})


def _hash_row(options: Options, decode: bool, row: Row) -> HashedRow:
    reason, sha256, size, measured = row["reason"], "", 0, None
    if reason is None:
        try:
            data = read_part(row["at"]) if row["at"] else filesystem.read(row["path"], MAX_BYTES)
            images.check_kind(data)
            sha256, size = hashlib.sha256(data).hexdigest(), len(data)
            if decode and (
                image := images.keep_unchanged(data, max_pixels=options.max_pixels, max_side=options.max_side)
            ):
                measured = (image.width, image.height, image.format, appearance.measure_appearance(image.thumbnail))
        except images.BadImage as error:
            reason = str(error)
        except OSError as error:
            reason = _explain(error)
        except ValueError as error:  # a path with a NUL
            reason = f"can't be read: {error}"
    return _make_hashed(row, None, sha256, size, measured) if reason is None else _make_hashed(row, reason)


def _explain(error: OSError) -> str:
    """Returns why a file can't be read, for the quarantine."""
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return MISSING_FILE
        case PermissionError():
            return "permission denied"
        case _:
            return f"can't be read: {error.strerror or error}"


def encode_rows(
    options: Options, types: Mapping[str, str], rows: list[HashedRow]
) -> list[tuple[HashedRow, bytes | images.BadImage]]:
    """Returns each row with its serialized tf.train.Example, or with the reason why it can't be one.

    Args:
        options: of the dataset.
        types: of the side features.
        rows: readable when they were hashed.
    """
    encode = functools.partial(encode_row, options, types)
    if all(row["measured"] for row in rows):  # nothing is decoded, so nothing crashes
        return [(row, encode(row)) for row in rows]
    examples = map_survivably(encode, lambda _, reason: images.BadImage(reason), rows)
    return list(zip(rows, examples, strict=True))


def encode_row(options: Options, types: Mapping[str, str], row: HashedRow) -> bytes | images.BadImage:
    """Reads an image again and returns its serialized tf.train.Example, or the reason why it can't be one."""
    try:
        data = read_part(row["at"]) if row["at"] else filesystem.read(row["path"], MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return images.BadImage("changed while it was ingested")
        if row["measured"]:
            width, height, kind, measured = row["measured"]
        else:
            image = images.normalize(data, max_pixels=options.max_pixels, max_side=options.max_side)
            data, width, height, kind = image.data, image.width, image.height, image.format
            measured = appearance.measure_appearance(image.thumbnail)
    except images.BadImage as error:
        return error
    except OSError as error:
        return images.BadImage(_explain(error))
    if options.task == "regression":
        label: list[tfrecord.Value] = [float(row["labels"][0])]
    else:
        label = [os.fsencode(text) for text in row["labels"]]
    brightness, contrast, dhash = measured  # a plain list, if it went through JSON
    return tfrecord.encode_example(
        {
            "input": [data],
            "metadata": [os.fsencode(row["metadata"])],
            "label": label,
            "width": [width],
            "height": [height],
            "format": [kind.encode()],
            "sha256": [row["sha256"].encode()],
            "aspect": [width / height],
            "bytes": [len(data)],
            "brightness": [brightness],
            "contrast": [contrast],
            "dhash": [dhash.encode()],
            **({} if row["group"] is None else {"group": [os.fsencode(row["group"])]}),
            **make_features(row["side"], types),
        }
    )
