"""Copies on this machine of Examples on an object store: TensorFlow's own file system knows gs://, and no other."""

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError
from imagepipe.base.workers import map_in_order
from pipeline.source import Source, list_examples

_THREADS = 8  # that copy, each a file


def stage_examples(source: Source, folder: Path) -> Source:
    """Copies Examples that TensorFlow can't open into a folder of this machine, for the nodes of a run.

    A file that is there already, of the same size and time, stays, and others go. So the next run copies what is new,
    and ImportExampleGen's cache, which goes by names, sizes and times, holds.

    Args:
        source: the Examples.
        folder: for the copies, which stay for the next run; it is made if there is something to copy.

    Returns:
        The same source, or the copies as one.

    Raises:
        ConfigError: if a name leads out of the folder.
        OSError: if a file can't be read or written.
    """
    if not filesystem.is_uri(source.base) or source.base.startswith("gs://"):
        return source
    paths = {below: path for _, path, below in list_examples(source)}
    if odd := next((below for below in paths if ".." in PurePosixPath(below).parts), None):
        raise ConfigError(f"data.path: {paths[odd]}: a name with .. can't be copied to this machine")
    for path, _ in list(filesystem.walk(str(folder))):
        if path.removeprefix(f"{folder}/") not in paths:
            filesystem.delete(path)
    copies = ((path, folder / below) for below, path in paths.items())
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in map_in_order(pool, lambda pair: _update(*pair), copies, 2 * _THREADS):
            pass
    return replace(source, base=glob.escape(str(folder)))


def _update(path: str, copy: Path) -> None:
    """Copies a file if the copy is missing or another one; a kill leaves no half of one under its name."""
    modified = int(filesystem.modified(path))
    if copy.is_file() and (copy.stat().st_size, int(copy.stat().st_mtime)) == (filesystem.size(path), modified):
        return
    partial_copy = copy.with_name(f"{filesystem.PARTIAL}{copy.name}")
    filesystem.copy(path, str(partial_copy))
    os.utime(partial_copy, (modified, modified))
    partial_copy.replace(copy)


@contextmanager
def open_splits(dataset: str, splits: Sequence[str]) -> Iterator[Path]:
    """Gives a folder of this machine that has splits of a dataset: its own, or for a URI a copy in the block."""
    if not filesystem.is_uri(dataset):
        yield Path(dataset)
        return
    with tempfile.TemporaryDirectory(prefix="imagepipe-data-") as temporary, ThreadPoolExecutor(_THREADS) as pool:
        files = [(path, Path(temporary, name)) for name in splits for path, _ in filesystem.walk(f"{dataset}/{name}")]
        for _ in map_in_order(pool, _fetch_below, files, 2 * _THREADS):
            pass
        yield Path(temporary)


def _fetch_below(pair: tuple[str, Path]) -> None:
    path, folder = pair
    filesystem.copy(path, str(folder / path.rpartition("/")[2]))
