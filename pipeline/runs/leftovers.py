"""Finds what killed runs, trainings and deployments have left behind in a workdir."""

import time
from collections.abc import Iterable, Iterator
from itertools import filterfalse
from pathlib import Path

from imagepipe.base.filesystem import PARTIAL, is_uri
from imagepipe.base.in_use import is_in_use
from imagepipe.deploy.storage import REMOVED
from pipeline.runs.removal import Removal
from pipeline.workdir import Workdir

_FOREIGN_SECONDS = 24 * 3600  # of a folder to which another machine may be writing
_SYSTEM = ".system"  # where TFX has its temporary folders


def find_leftovers(
    workdir: Workdir, serving: Iterable[str], nodes: set[str], recorded: set[str], resumes: bool
) -> Iterator[Removal]:
    """Yields the files and folders that nothing needs any more; no run may be in progress.

    Args:
        workdir: the pipeline's folder.
        serving: folders of versions, also outside the workdir.
        nodes: names of the pipeline's nodes.
        recorded: all artifacts in ML Metadata, each as ``NODE/KEY/EXECUTION``.
        resumes: whether the newest run failed, so that the next one may continue its training.
    """
    states = sorted(_list_folders(workdir.training), key=_read_last_change)
    for state in states[:-1] if resumes else states:
        if not is_in_use(state):
            yield Removal("training", state)
    for node in _list_folders(workdir.artifacts):
        if node.name in nodes:
            yield from _find_leftovers_of_node(node, recorded)
    for folder in (*map(Path, filterfalse(is_uri, serving)), *_list_folders(workdir.runs)):
        for path in _list_paths(folder):
            if not path.name.startswith((PARTIAL, REMOVED)) or is_in_use(path):
                continue
            if path.is_relative_to(workdir.root) or time.time() - _read_last_change(path) > _FOREIGN_SECONDS:
                yield Removal("partial", path)


def _find_leftovers_of_node(node: Path, recorded: set[str]) -> Iterator[Removal]:
    for key in _list_folders(node):
        for folder in _list_folders(key):
            if key.name == _SYSTEM:
                yield from (Removal("temporary", temporary) for temporary in _list_folders(folder))
                continue
            is_recorded = f"{node.name}/{key.name}/{folder.name}" in recorded
            if folder.name.isdigit() and not is_recorded and not is_in_use(folder):
                yield Removal("partial", folder)


def _list_folders(folder: Path) -> list[Path]:
    return [path for path in _list_paths(folder) if path.is_dir()]


def _list_paths(folder: Path) -> list[Path]:
    """Returns all that is in a folder but symbolic links; nothing if it is missing, or behind such a link."""
    if not folder.is_dir() or folder.resolve() != folder:
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())


def _read_last_change(path: Path) -> float:
    """Returns when a file, or a folder or something in it, was last changed, in seconds since 1970."""
    return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))
