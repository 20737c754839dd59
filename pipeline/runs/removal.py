"""Removes results of old runs, so that a kill at any moment leaves ML Metadata true, and the next time finishes it."""

import errno
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import stat_result
from pathlib import Path
from typing import Literal

from imagepipe.base.in_use import is_in_use
from imagepipe.deploy.storage import REMOVED
from pipeline.runs import metadata_store
from pipeline.workdir import Workdir

_BLOCK = 512  # bytes: the unit of st_blocks, whatever the file system's is


@dataclass(frozen=True)
class Removal:
    """A folder to remove, or a file that a killed process has left.

    Attributes:
        kind: an artifact of a run; a version of a model; the state of a training that didn't end; what a killed process
            left half written or half removed; a temporary folder of TFX.
        path: its path.
        run: the run that made it, by id; '' if it isn't known.
    """

    kind: Literal["artifact", "version", "training", "partial", "temporary"]
    path: Path
    run: str = ""


def measure(removals: Iterable[Removal]) -> list[int]:
    """Returns the bytes on disk that each removal frees, if they are done in this order: as ``du`` counts them.

    A file with several hard links is freed with the last of them, and only if all go.
    """
    links: Counter[tuple[int, int]] = Counter()
    sizes = []
    for removal in removals:
        size = 0
        for status in _walk(removal.path):
            file = status.st_dev, status.st_ino
            links[file] += 1
            if stat.S_ISDIR(status.st_mode) or links[file] == status.st_nlink:
                size += status.st_blocks * _BLOCK
        sizes.append(size)
    return sizes


def _walk(path: Path) -> Iterator[stat_result]:
    """Yields the status of a path and of everything in it; symbolic links are not followed."""
    status = path.lstat()
    yield status
    if stat.S_ISDIR(status.st_mode):
        for inner in path.iterdir():
            yield from _walk(inner)


def remove(removals: list[Removal], artifacts: list[int], workdir: Workdir) -> Iterator[tuple[Removal, OSError | None]]:
    """Removes folders, and yields each when it is gone or has failed; the caller holds the workdir's lock.

    ML Metadata is told before the first artifact goes. If the process is killed then, the folders are found again the
    next time; in between, TFX takes nothing from its cache of which a part may be missing. To record it takes some room
    on the disk, which the other folders may have to free: they go first.

    Args:
        removals: the folders.
        artifacts: ids of the artifacts that are then gone, in ML Metadata.
        workdir: the pipeline's folder.

    Raises:
        BusyError: if ML Metadata can't be written; no artifact is removed then.
    """
    yield from _remove_each(removal for removal in removals if removal.kind != "artifact")
    if artifacts:
        metadata_store.record_removal(workdir.metadata, artifacts)
    yield from _remove_each(removal for removal in removals if removal.kind == "artifact")


def _remove_each(removals: Iterable[Removal]) -> Iterator[tuple[Removal, OSError | None]]:
    for removal in removals:
        path = removal.path
        try:
            if removal.kind == "version":  # a server must not see half of it
                path = path.rename(path.with_name(f"{REMOVED}{path.name}"))
                if is_in_use(path):  # since it was planned; from now on none can begin to use it
                    path.rename(removal.path)
                    raise OSError(errno.EBUSY, "a process is using it", str(removal.path))
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            yield removal, error
        else:
            yield removal, None
