"""Folders that a process of this machine is using, so that no other one removes them.

The mark is a shared lock on the folder itself: it needs no file in it, goes with the process however that ends, and
follows the folder when it is renamed. Processes on other machines that share a file system don't see it.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from imagepipe.base.locks import LOCK, is_at


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Marks a folder as in use; any number of processes may do so at the same time.

    Raises:
        OSError: if there is no such folder.
    """
    while True:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)  # which waits for somebody who looks whether it is in use: microseconds
            if is_at(handle, folder):
                yield
                return
        finally:
            os.close(handle)


def is_in_use(folder: Path) -> bool:
    """Returns whether a process holds a folder or one inside it, with ``hold_folder`` or ``locks.lock_folder``.

    Where that can't be found out, for want of permission or of locks on a network's file system, it counts as held.
    """
    errors: list[OSError] = []
    for parent, _, files in os.walk(folder, onerror=errors.append):
        if _is_locked(parent, fcntl.LOCK_EX) or (LOCK in files and has_writer(Path(parent))):
            return True
    return not all(isinstance(error, FileNotFoundError | NotADirectoryError) for error in errors)


def has_writer(folder: Path) -> bool:
    """Returns whether a process holds a folder with ``locks.lock_folder``; also if that can't be found out."""
    return _is_locked(f"{folder}/{LOCK}", fcntl.LOCK_SH)


def _is_locked(path: str, probe: int) -> bool:
    """Returns whether a path can't be locked now; a shared probe sees a writer only, and not who looks as well."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, probe | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
