"""Full disks: which errors come from one, and where there is no room; few say where they were writing."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from imagepipe.base.errors import FULL_DISK, USER_ERRORS

_MESSAGES = (os.strerror(errno.ENOSPC), "database or disk is full")  # the second is SQLite's


def is_full_disk(error: BaseException) -> bool:
    """Returns whether a full disk is behind an error, also where a library has turned that into its own error.

    An error that a user can fix tells its own story, even if a full disk is behind it.
    """
    return any(_is_system_error(cause) or any(text in str(cause) for text in _MESSAGES) for cause in _trace(error))


def find_full_file(error: BaseException) -> OSError | None:
    """Returns the operating system's error behind an error, or itself, that names the file a full disk has no room for.

    Returns:
        None if there is none: then it is unknown where there is no room.
    """
    named = (cause for cause in _trace(error) if isinstance(cause, OSError) and cause.filename)
    return next(filter(_is_system_error, named), None)


def _trace(error: BaseException | None) -> Iterator[BaseException]:
    """Gives an error and those behind it as a traceback shows them, up to one that a user can fix."""
    traced = list[BaseException]()
    while error is not None and error not in traced and not isinstance(error, USER_ERRORS):
        traced.append(error)
        yield error
        error = error.__cause__ if error.__suppress_context__ else error.__context__


def _is_system_error(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in FULL_DISK


@contextmanager
def measure_full_disk(path: Path, what: str, count_bytes: Callable[[], int]) -> Iterator[None]:
    """Removes a file that a full disk has left incomplete, and tells how large it would be.

    Args:
        path: the file that is written in the block.
        what: its content, such as ``the pixels``.
        count_bytes: computes the size that the whole file would have.

    Raises:
        OSError: that says so, in place of the error of the full disk, unless that names another file.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        path.unlink(missing_ok=True)
        if (full := find_full_file(error)) and full.filename != str(path):
            raise
        needed, free = (f"{count / 1e6:,.1f} MB" for count in (count_bytes(), shutil.disk_usage(path.parent).free))
        text = f"{os.strerror(errno.ENOSPC)} for {what}, which take {needed} in all; {free} are free"
        raise OSError(errno.ENOSPC, text, str(path)) from error


@contextmanager
def name_full_disk(folder: str) -> Iterator[None]:
    """Turns errors of a full disk into one OSError that names a folder, or the file if one of them does.

    Few say where they were writing.
    """
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        full = find_full_file(error)
        if full is error:
            raise
        if full:
            raise OSError(full.errno, full.strerror, full.filename) from error
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from error
