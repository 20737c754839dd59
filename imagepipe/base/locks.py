"""One writer at a time for a folder, on this machine or on an object store.

The folder holds a file ``.lock``. It stays when the lock is released: a process that deletes a lock's file may delete
the one that another process has locked in the meantime, and a third then locks a new file of that name. While it holds
the lock it may: who waits looks whether the file that it has locked is still there.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from imagepipe.base import filesystem

LOCK = ".lock"
"""Name of the file, in the folder that it locks."""

STALE_SECONDS = 600
"""A store's lock that has not been renewed for so long belongs to a process that was killed."""

_RENEW_SECONDS = 60
_LOOK_SECONDS = 0.05  # longer than ``in_use`` takes to look, which it does by taking the lock
_SETTLE_SECONDS = 1  # longer than two processes that start at once take from looking to writing


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike[str], busy: Exception) -> Iterator[Callable[[], bool]]:
    """Holds a folder, created if missing, for one process at a time.

    Locally the operating system holds the lock, which goes with the process. A store has none to offer: there the file
    says who holds it, and is renewed every minute, so that the lock of a killed process ends after ten. So does that of
    one that slept, or could not reach the store, for so long: it then belongs to the next one, and is left alone.

    Args:
        folder: a path or a URI.
        busy: raised if another process holds the folder.

    Yields:
        A function that renews the lock, and returns whether this process still holds it: to be called before what only
        the holder may do. It raises OSError if the store can't be reached.

    Raises:
        OSError: the folder can't be created, or its file can't be written.
    """
    path = filesystem.join(os.fspath(folder), LOCK)
    with _hold_object(path, busy) if filesystem.is_uri(path) else _hold_file(Path(path), busy) as renew:
        yield renew


@contextlib.contextmanager
def _hold_file(path: Path, busy: Exception) -> Iterator[Callable[[], bool]]:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:  # which leaves the time of its last change
            if not _try_lock(file):
                time.sleep(_LOOK_SECONDS)
                if not _try_lock(file):
                    raise busy
            if is_at(file.fileno(), path):
                yield lambda: True
                return


def is_at(handle: int, path: Path) -> bool:
    """Returns whether an open file or folder, which may have been locked too late, is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _hold_object(path: str, busy: Exception) -> Iterator[Callable[[], bool]]:
    """Writes an object that names this process, unless a fresh one is there; of several at once the last one wins.

    Stores that can create an object only if there is none agree neither on how to ask for it nor on who offers it.
    """
    holder = f"host {socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex}".encode()
    if filesystem.size(path) and time.time() - filesystem.modified(path) < STALE_SECONDS:
        raise busy
    filesystem.write_whole(path, holder)
    time.sleep(_SETTLE_SECONDS)
    if filesystem.read_bytes(path) != holder:
        raise busy
    released = threading.Event()

    def write_if_held(content: bytes) -> bool:
        try:
            is_held = filesystem.read_bytes(path) == holder
        except FileNotFoundError:  # somebody has cleared the folder
            return False
        if is_held:
            filesystem.write_whole(path, content)
        return is_held

    def keep_renewing() -> None:
        while not released.wait(_RENEW_SECONDS):
            with contextlib.suppress(OSError):  # it tries again in a minute
                write_if_held(holder)

    renewing = threading.Thread(target=keep_renewing, daemon=True)
    renewing.start()
    try:
        yield lambda: write_if_held(holder)
    finally:
        released.set()
        renewing.join()
        with contextlib.suppress(OSError):  # then it ends by itself
            write_if_held(b"")
