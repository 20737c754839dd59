"""Folders of images as people have them: which of their files count, and which are passed over.

What systems and programs leave in folders (thumbnails of a NAS, wastebaskets, resource forks) is passed over and
counted, by name alone: it may look like photos. An entry that can't be read costs that entry only.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import NamedTuple

from imagepipe.base import filesystem
from imagepipe.base.errors import FULL_DISK
from imagepipe.base.on_disk import sort_on_disk

# In lower case. Names that begin with a dot, such as ._photo.jpg, .thumbnails or .ipynb_checkpoints, are hidden anyway.
_JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r"})
_JUNK_FOLDERS = frozenset(
    {
        "@eadir",  # Synology's thumbnails
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP's
        "@recently-snapshot",
        "__macosx",  # resource forks in archives made on a Mac
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
_HIDDEN = "hidden"
SPECIAL = "not files (pipes, sockets, devices)"
"""Why entries are passed over, in folders and in archives."""

_MAX_LISTINGS = 1_000  # of one folder: with two links each to the next, 40 folders have a trillion paths


class _Entry(NamedTuple):
    """An entry of a folder that is listed, and why it can't be read, or None."""

    name: str
    is_folder: bool
    reason: str | None


class _Listing(NamedTuple):
    """A folder's entries in order; ``above`` has device and number of the folders that it lies in, and its own."""

    folder: str
    entries: Iterator[tuple[str, bool, str | None]]
    above: tuple[tuple[int, int], ...]


def list_files(folder: str, passed_over: Counter[str]) -> Iterator[tuple[str, str | None]]:
    """Lists the files below a folder, at any depth, sorted by name; links are followed.

    Memory does not grow with their number: see ``on_disk.sort_on_disk``.

    Args:
        folder: a path, or a URI of a folder.
        passed_over: is added to as the listing goes on: number of files by why they don't count, as
            ``describe_passed_over`` says it.

    Yields:
        (path, None) for every file that may be an image, whatever its name; (path, reason) for every entry that can't
        be used: a link to nowhere or to itself, a folder that can't be listed, a name that is not UTF-8.
    """
    if filesystem.is_uri(folder):
        yield from _list_store(folder, passed_over)
        return
    pending: list[_Listing] = []
    listings = Counter[tuple[int, int]]()

    def enter(path: str, above: tuple[tuple[int, int], ...]) -> str | None:
        """Makes a folder the next one to be listed, or returns why it can't be."""
        try:
            status = os.stat(path)  # noqa: PTH116 (of many, Path is slow)
            here = (status.st_dev, status.st_ino)
            if here in above:
                return "folder that links to one above itself"
            listings[here] += 1
            if listings[here] > _MAX_LISTINGS:
                return f"folder to which links lead more than {_MAX_LISTINGS:,} times"
            with os.scandir(path) as entries:
                counted = (item for entry in entries if (item := _examine(entry, passed_over)))
                ordered = sort_on_disk(counted, key=itemgetter(0))
        except OSError as error:
            if error.errno in FULL_DISK:  # of the temporary files
                raise
            return f"folder can't be listed: {error.strerror}"
        pending.append(_Listing(path, ordered, (*above, here)))
        return None

    if problem := enter(folder, ()):
        yield folder, problem
    while pending:
        parent, entries, above = pending[-1]
        entry = next(entries, None)
        if entry is None:
            pending.pop()
            continue
        name, is_folder, problem = entry
        path = os.path.join(parent, name)  # noqa: PTH118 (of many, Path is slow)
        if not problem:
            problem = enter(path, above) if is_folder else check_name(path[len(folder) :])
        if problem or not is_folder:
            yield path, problem


def list_subfolders(folder: str) -> list[str]:
    """Returns the names of the folders in a folder that count, sorted; none if it can't be listed."""
    return [name for name in filesystem.list_subfolders(folder) if not _find_kind(name, True)]


def describe_passed_over(passed_over: Mapping[str, int]) -> str:
    """Returns the files that were passed over as text, such as "40 in @eaDir, 3 hidden"; "" if there are none."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(passed_over.items()) if count)


def explain_passing_over(path: str) -> str | None:
    """Returns why a file is passed over, by its path as seen from its source; None if it counts."""
    *folders, name = path.split("/")
    return next(filter(None, (_find_kind(folder, True) for folder in folders)), None) or _find_kind(name, False)


def check_name(path: str) -> str | None:
    """Returns why a file can't be called that; None if it can. Metadata and labels are text further on."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"name is not UTF-8, rename it: {os.fsencode(path.lstrip('/'))!r}"
    return None


def _list_store(folder: str, passed_over: Counter[str]) -> Iterator[tuple[str, str | None]]:
    for path, _ in filesystem.walk(folder):
        if kind := explain_passing_over(path[len(folder) :].strip("/")):
            passed_over[kind] += 1
        else:
            yield path, check_name(path[len(folder) :])


def _examine(entry: os.DirEntry[str], passed_over: Counter[str]) -> _Entry | None:
    """Returns an entry as it is to be listed; None if it is passed over, and counted."""
    reason: str | None = None
    try:
        is_folder = entry.is_dir()
        # A link to nowhere is neither, and asking for its status says so.
        is_special = not is_folder and not entry.is_file() and not stat.S_ISREG(entry.stat().st_mode)
    except OSError as error:
        is_folder = is_special = False
        problem = "link that can't be followed" if entry.is_symlink() else "can't be read"
        reason = f"{problem}: {error.strerror}"
    if kind := _find_kind(entry.name, is_folder):
        # Of a folder its files are counted; but a link may lead to the whole disk.
        passed_over[kind] += _count_files(entry.path) if is_folder and not entry.is_symlink() else 1
        return None
    if is_special:
        passed_over[SPECIAL] += 1
        return None
    return _Entry(entry.name, is_folder, reason)


def _find_kind(name: str, is_folder: bool) -> str | None:
    """Returns why an entry of that name is passed over; None if it counts."""
    if name.startswith("."):
        return _HIDDEN
    if is_folder:
        return f"in {name}" if name.lower() in _JUNK_FOLDERS else None
    return name if name.lower() in _JUNK_FILES else None


def _count_files(folder: str) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))
