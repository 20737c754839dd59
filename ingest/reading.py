"""A row's file to its hash and to its Example. Imports no Beam: worker processes of a local run do without."""

import hashlib
import os
from collections.abc import Mapping
from typing import cast

from ingest import examples, files, images
from ingest.dataset import Options
from ingest.limits import MAX_BYTES
from ingest.sources import Row, feature


class Hashed(Row):
    """A row with what reading its file told.

    Attributes:
        sha256: hex, of the file; empty where the row was rejected.
        size: bytes of the file.
        copies: path and row of further rows of the same file.
    """

    sha256: str
    size: int
    copies: list[tuple[str, int | None]]


def hash_rows(rows: list[Row]) -> list[Hashed]:
    """Reads and hashes files; a row whose file can't be read, or can't be an image, gets a reason."""
    return [_hash_one(row) for row in rows]


def _hash_one(row: Row) -> Hashed:
    reason, sha256, size = row["reason"], "", 0
    if reason is None:
        try:
            data = files.read(row["path"], MAX_BYTES)
            images.check_kind(data)
            sha256, size = hashlib.sha256(data).hexdigest(), len(data)
        except images.BadImage as error:
            reason = str(error)
        except OSError as error:
            reason = _why_unread(error)
        except ValueError as error:  # a path with a NUL
            reason = f"can't be read: {error}"
    return cast(Hashed, {**row, "reason": reason, "sha256": sha256, "size": size, "copies": []})


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
        data = files.read(row["path"], MAX_BYTES)
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            return images.BadImage("changed while it was ingested")
        image = images.normalize(data, max_pixels=options.max_pixels, max_side=options.max_side)
    except images.BadImage as error:
        return error
    except OSError as error:
        return images.BadImage(_why_unread(error))
    if options.task == "regression":
        label: list[examples.Value] = [float(row["labels"][0])]
    else:
        label = [os.fsencode(text) for text in row["labels"]]
    return examples.encode(
        {
            "input": [image.data],
            "metadata": [os.fsencode(row["metadata"])],
            "label": label,
            "width": [image.width],
            "height": [image.height],
            "format": [image.format.encode()],
            "sha256": [row["sha256"].encode()],
            **{name: [feature(value, types[name])] for name, value in row["side"].items()},
        }
    )
