"""All or nothing: how files get into a dataset's folder.

New files are written into a staging folder inside it. When all are there, a journal that names every move and deletion
is written in one step; from then on the ingest has happened, and the next ingest finishes it. Without a journal it has
not happened, and the next ingest deletes the staging folder. dataset.json moves last.

This guards against a killed process, not against a machine that loses power with shards still in its cache: those show
as files of the wrong size in ``dataset.load``.
"""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError, describe_error
from imagepipe.base.filesystem import PARTIAL
from imagepipe.base.locks import STALE_SECONDS, lock_folder
from imagepipe.ingest.dataset import DESCRIPTION, JOURNAL, STAGING


@contextlib.contextmanager
def lock(folder: str) -> Iterator[Callable[[], None]]:
    """Holds a dataset's folder, created if missing, for one ingest.

    Yields:
        A function that raises IngestError if another ingest holds the folder by now, see ``locks.lock_folder``.

    Raises:
        IngestError: another ingest holds it, or it can't be created.
    """
    killed = f", or was killed less than {STALE_SECONDS // 60} minutes ago" if filesystem.is_uri(folder) else ""
    busy = IngestError(f"Another ingest into {folder} is running{killed}: wait for it, or stop it.")
    with contextlib.ExitStack() as stack:
        try:
            renew = stack.enter_context(lock_folder(folder, busy))
        except OSError as error:
            raise IngestError(f"{folder} can't be used as the dataset's folder: {describe_error(error)}.") from error

        def check_lock() -> None:
            if not renew():
                raise IngestError(
                    f"Another ingest has taken over {folder}: this one could not renew its lock for "
                    f"{STALE_SECONDS // 60} minutes, as when the machine sleeps. Nothing was written: run it again."
                )

        yield check_lock


def recover(folder: str) -> None:
    """Finishes an ingest that was interrupted after its journal was written, and deletes what any other one left.

    Raises:
        IngestError: the journal is damaged; then nothing is changed.
    """
    journal = filesystem.join(folder, JOURNAL)
    if filesystem.size(journal) is not None:
        try:
            content = json.loads(filesystem.read_bytes(journal))
            moves = [(_check_path(source), _check_path(target)) for source, target in content["moves"]]
            deletions = [_check_path(path) for path in content["deletions"]]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise IngestError(
                f"{journal} is damaged: restore it from a copy, or ingest all sources into a new folder."
            ) from error
        _move(folder, moves, deletions)
    for name in filesystem.list_folder(folder):
        if name.startswith(STAGING):
            filesystem.delete_folder(filesystem.join(folder, name))
        elif name.startswith(PARTIAL):
            filesystem.delete(filesystem.join(folder, name))


@contextlib.contextmanager
def open_staging(folder: str) -> Iterator[str]:
    """Gives a new folder inside ``folder`` to write into, and deletes it at the end with all that was not committed."""
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
    needed = sorted(
        ((source, target) for source, target in moves.items() if not _are_equal(folder, source, target)),
        key=lambda move: (move[1] == DESCRIPTION, move[1]),
    )
    deletions = sorted(set(deletions) - set(moves.values()))
    if needed or deletions:
        journal = json.dumps({"moves": needed, "deletions": deletions}, indent=1).encode()
        filesystem.write_whole(filesystem.join(folder, JOURNAL), journal)
        _move(folder, needed, deletions)


def _move(folder: str, moves: list[tuple[str, str]], deletions: list[str]) -> None:
    """Does what the journal says, from wherever it was interrupted, and deletes the journal."""
    for path in deletions:
        filesystem.delete(filesystem.join(folder, path))
    for source, target in moves:
        staged = filesystem.join(folder, source)
        if filesystem.size(staged) is not None:  # else it was moved already
            filesystem.rename(staged, filesystem.join(folder, target))
    filesystem.delete(filesystem.join(folder, JOURNAL))


def _check_path(path: object) -> str:
    """Returns a path of a journal, which a dataset that was received from others may lead out of its folder.

    Raises:
        ValueError: it is no path below the folder.
    """
    if not isinstance(path, str) or "\0" in path or filesystem.is_uri(path):
        raise ValueError(f"{path!r} is no path")
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(f"{path!r} leads out of the folder")
    return path


def _are_equal(folder: str, source: str, target: str) -> bool:
    staged, present = filesystem.join(folder, source), filesystem.join(folder, target)
    size = filesystem.size(present)
    if size is None or size != filesystem.size(staged):
        return False
    with filesystem.open_read(staged) as one, filesystem.open_read(present) as other:
        while (block := one.read(2**20)) == other.read(2**20):
            if not block:
                return True
    return False
