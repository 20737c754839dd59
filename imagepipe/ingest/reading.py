"""A row's file to its hash and to its Example. Imports no Beam: worker processes of a local run do without."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from imagepipe.base import appearance, filesystem, images, tfrecord
from imagepipe.base.images import MAX_BYTES
from imagepipe.ingest.dataset import Options
from imagepipe.ingest.sources import Row, feature

_BATCH_ROWS = 16
_BATCH_BYTES = 2**20  # a batch is read as a whole by one thread: of large files it has few


class Hashed(Row):
    """A row with what reading its file told.

    Attributes:
        sha256: hex, of the file; empty where the row was rejected.
        size: bytes of the file.
        copies: path and row of further rows of the same file.
        proved: width, height, format and appearance of an image that goes through byte for byte, where it was decoded
            already.
    """

    sha256: str
    size: int
    copies: list[tuple[str, int | None]]
    proved: tuple[int, int, str, appearance.Appearance] | None


def batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    """Rows in lists of at most _BATCH_ROWS, and of at most _BATCH_BYTES where their sizes are known."""
    batch: list[Any] = []
    total = 0
    for row in rows:
        batch.append(row)
        total += row.get("size", 0)
        if len(batch) == _BATCH_ROWS or total >= _BATCH_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def row_batches(path: str) -> Iterator[list[Row]]:
    """Batches of the rows in a file of JSON lines, which is opened when the first is asked for."""
    with filesystem.open_read(path) as file:
        yield from batches(map(json.loads, file))


def hash_rows(options: Options, prove: bool, rows: list[Row]) -> list[Hashed]:
    """Reads and hashes files; a row whose file can't be read, or can't be an image, gets a reason.

    Args:
        options: of the dataset.
        prove: decodes what is to go through byte for byte as well. Worth it where nothing is known of the files yet.
        rows: as the source has them.
    """
    return [_hash_one(row, options, prove) for row in rows]


def _hash_one(row: Row, options: Options, prove: bool) -> Hashed:
    reason, sha256, size, proved = row["reason"], "", 0, None
    if reason is None:
        try:
            data = filesystem.read(row["path"], MAX_BYTES)
            images.check_kind(data)
            sha256, size = hashlib.sha256(data).hexdigest(), len(data)
            if prove and (
                image := images.keep_unchanged(data, max_pixels=options.max_pixels, max_side=options.max_side)
            ):
                proved = (image.width, image.height, image.format, appearance.measure_appearance(image.thumbnail))
        except images.BadImage as error:
            reason = str(error)
        except OSError as error:
            reason = _why_unread(error)
        except ValueError as error:  # a path with a NUL
            reason = f"can't be read: {error}"
    found: dict[str, Any] = {
        "reason": reason,
        "sha256": "" if reason else sha256,
        "size": size,
        "copies": [],
        "proved": proved,
    }
    return cast(Hashed, {**row, **found})


def _why_unread(error: OSError) -> str:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "missing file"
        case PermissionError():
            return "permission denied"
        case _:
            return f"can't be read: {error.strerror or error}"


def to_examples(
    options: Options, types: Mapping[str, str], rows: list[Hashed]
) -> list[tuple[Hashed, bytes | images.BadImage]]:
    """Each row with its serialized tf.train.Example, or with the reason why it can't be one.

    Args:
        options: of the dataset.
        types: of the side features.
        rows: readable when they were hashed.
    """
    return [(row, to_example(row, options, types)) for row in rows]


def to_example(row: Hashed, options: Options, types: Mapping[str, str]) -> bytes | images.BadImage:
    """Reads an image again, and makes its serialized tf.train.Example; or the reason why it can't be one."""
    try:
        data = filesystem.read(row["path"], MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return images.BadImage("changed while it was ingested")
        if row["proved"]:
            width, height, kind, looks = row["proved"]
        else:
            image = images.normalize(data, max_pixels=options.max_pixels, max_side=options.max_side)
            data, width, height, kind = image.data, image.width, image.height, image.format
            looks = appearance.measure_appearance(image.thumbnail)
    except images.BadImage as error:
        return error
    except OSError as error:
        return images.BadImage(_why_unread(error))
    if options.task == "regression":
        label: list[tfrecord.Value] = [float(row["labels"][0])]
    else:
        label = [os.fsencode(text) for text in row["labels"]]
    brightness, contrast, dhash = looks  # from JSON a plain list
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
            **{name: [feature(value, types[name])] for name, value in row["side"].items()},
        }
    )
