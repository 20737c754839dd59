"""Folders of images as people have them: which of their files count."""

import os
from collections.abc import Iterator
from pathlib import Path

_IGNORED = frozenset({"thumbs.db", "desktop.ini"})  # what Windows leaves in folders of pictures


def list_files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, str | None]]:
    """Yields (path, None) for every file, and (path, reason) for every folder that can't be listed."""
    try:
        status = folder.stat()
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.path, entry.is_dir()) for entry in entries)
    except OSError as error:
        yield str(folder), f"folder can't be listed: {error.strerror}"
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        yield str(folder), "folder that links to one above itself"
        return
    for name, path, is_folder in listed:
        if is_ignored(name):
            continue
        if is_folder:
            yield from list_files(Path(path), (*above, here))
        else:
            yield path, None


def is_ignored(name: str) -> bool:
    """Returns whether a file or folder of that name is passed over."""
    return name.startswith(".") or name.lower() in _IGNORED
