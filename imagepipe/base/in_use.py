"""Folders that a process of this machine is using, so that no other one removes them.

The mark is a shared lock on the folder itself: it needs no file in it, goes with the process however that ends, and
follows the folder when it is renamed. Processes on other machines that share a file system don't see it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from imagepipe.base.locks import LOCK


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Marks a folder as in use; any number of processes may do so at the same time.

    Raises:
        OSError: if there is no such folder.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)  # which waits for somebody who looks whether it is in use: microseconds
        yield
    finally:
        os.close(handle)


def is_in_use(folder: Path) -> bool:
    """Returns whether a process holds a folder or one inside it, with ``hold_folder`` or ``locks.lock_folder``."""
    for parent, _, files in os.walk(folder):
        if _is_locked(parent) or (LOCK in files and _is_locked(f"{parent}/{LOCK}")):
            return True
    return False


def _is_locked(path: str) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
