"""Brings weights that a URI names to this machine: what reads them takes files only."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

from imagepipe.base import filesystem
from imagepipe.base.errors import WeightsError
from trainer.weights.contents import list_shards

_MAX_BYTES = 8 << 30  # of all files; the largest of Keras's applications has 1.3 GB
_MAX_FILES = 1_000  # of a SavedModel


@contextmanager
def open_fetched(path: str) -> Iterator[str]:
    """Yields what ``fetch_weights`` returns; errors, also those of its users, name the path as it was given.

    Raises:
        WeightsError: see ``fetch_weights``.
    """
    own = given = path
    try:
        own = file = fetch_weights(path)
        if filesystem.is_uri(path):
            own, given = (name.rpartition("/")[0] for name in (file, path))  # of all the files that come with it
        yield file
    except WeightsError as error:
        raise WeightsError(str(error).replace(own, given)) from error


@cache
def fetch_weights(path: str) -> str:
    """Returns the path of weights on this machine: their own, or that of a copy, which lives as long as the process.

    Args:
        path: of a file or a SavedModel's folder, or its URI. With a ``.weights.json`` come the files that it names.

    Returns:
        The path; there is nothing at it if there is nothing at the URI.

    Raises:
        WeightsError: if they can't be fetched, or are larger than weights are.
    """
    path = filesystem.absolute(path)
    if not filesystem.is_uri(path):
        return path
    folder = tempfile.mkdtemp(prefix="imagepipe-weights-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    parent, _, name = path.rpartition("/")
    copy = f"{folder}/{name}"
    try:
        size = filesystem.size(path)
        _copy([(path, size)] if size is not None else list(filesystem.walk(path)), parent, folder)
        if size is not None:
            shards = [f"{parent}/{Path(shard).name}" for shard in list_shards(copy)]
            _copy([(shard, filesystem.size(shard)) for shard in shards], parent, folder)
    except OSError as error:
        raise WeightsError(f"{path} can't be fetched: {error}") from error
    return copy


def _copy(files: list[tuple[str, int | None]], parent: str, folder: str) -> None:
    """Copies files, by URI and size, from below one folder into another; one without a size is not there."""
    total = sum(size or 0 for _, size in files)
    if total > _MAX_BYTES or len(files) > _MAX_FILES:
        raise OSError(
            f"it has {total:,} bytes in {len(files):,} files; at most {_MAX_BYTES:,} in {_MAX_FILES:,} are read"
        )
    for file, size in files:
        name = file[len(parent) + 1 :]
        if ".." in PurePosixPath(name).parts:  # an object may be called so, and must not be written beside the copy
            raise OSError(f"{name} leads out of it")
        if size is not None:
            filesystem.copy(file, f"{folder}/{name}")
