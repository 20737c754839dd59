"""All or nothing: how files get into a dataset's folder.

New files are written into a staging folder inside it. When all are there, a journal that names every move and deletion
is written in one step; from then on the ingest has happened, and whoever comes next finishes it. Without a journal it
has not, and whoever comes next deletes the staging folder. dataset.json moves last.

This guards against a killed process, not against a machine that loses power with shards still in its cache: those show
as files of the wrong size in ``dataset.load``.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.ingest.dataset import DESCRIPTION, JOURNAL, STAGING


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Holds a dataset's folder for one ingest, and makes it if need be; what stays empty is removed again.

    Object stores have no locks: there, whoever schedules ingests must not start two into one folder.

    Raises:
        IngestError: another ingest holds it, or it can't be made.
    """
    if filesystem.is_uri(folder):
        yield
        return
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise IngestError(f"{folder} can't be used as the dataset's folder: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # on the folder itself; it ends with the process
        except BlockingIOError as error:
            raise IngestError(f"Another ingest into {folder} is running: wait for it, or stop it.") from error
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            path.rmdir()  # refuses unless empty


def recover(folder: str) -> None:
    """Finishes an ingest that was interrupted after its journal was written, and clears away one that was before."""
    journal = filesystem.join(folder, JOURNAL)
    if filesystem.size(journal) is not None:
        with filesystem.open_read(journal) as file:
            moves = json.load(file)
        _finish(folder, moves["moves"], moves["deletions"])
    for staging in _stagings(folder):
        filesystem.delete_folder(staging)


@contextlib.contextmanager
def staging(folder: str) -> Iterator[str]:
    """A new folder inside ``folder`` to write into; gone, with all that was not committed, when the block ends."""
    path = filesystem.join(folder, f"{STAGING}{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        if filesystem.size(filesystem.join(folder, JOURNAL)) is None:
            filesystem.delete_folder(path)


def commit(folder: str, moves: dict[str, str], deletions: list[str]) -> None:
    """Moves staged files into place and deletes others, as one step that is finished later if it is cut short.

    Args:
        folder: of the dataset.
        moves: staged path to its place, both relative to ``folder``. dataset.json is moved last, and a file that would
            replace an equal one is dropped, so that nothing changes where nothing is new.
        deletions: relative to ``folder``.
    """
    todo = sorted(
        ((source, target) for source, target in moves.items() if not _equal(folder, source, target)),
        key=lambda move: (move[1] == DESCRIPTION, move[1]),
    )
    deletions = sorted(set(deletions) - set(moves.values()))
    if todo or deletions:
        journal = json.dumps({"moves": todo, "deletions": deletions}, indent=1).encode()
        filesystem.write_whole(filesystem.join(folder, JOURNAL), journal)
        _finish(folder, todo, deletions)


def _finish(folder: str, moves: list[tuple[str, str]], deletions: list[str]) -> None:
    for path in deletions:
        filesystem.delete(filesystem.join(folder, path))
    for source, target in moves:
        staged = filesystem.join(folder, source)
        if filesystem.size(staged) is not None:  # else it was moved before the interruption
            filesystem.rename(staged, filesystem.join(folder, target))
    filesystem.delete(filesystem.join(folder, JOURNAL))


def _equal(folder: str, source: str, target: str) -> bool:
    staged, present = filesystem.join(folder, source), filesystem.join(folder, target)
    size = filesystem.size(present)
    if size is None or size != filesystem.size(staged):
        return False
    with filesystem.open_read(staged) as one, filesystem.open_read(present) as other:
        while (block := one.read(2**20)) == other.read(2**20):
            if not block:
                return True
    return False


def _stagings(folder: str) -> list[str]:
    if filesystem.is_uri(folder):
        names = {path[len(folder) + 1 :].partition("/")[0] for path, _ in filesystem.walk(folder)}
        return [filesystem.join(folder, name) for name in sorted(names) if name.startswith(STAGING)]
    return sorted(map(str, Path(folder).glob(f"{STAGING}*")))
