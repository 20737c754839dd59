"""File operations on local paths and on URIs of object stores and Hadoop, such as ``gs://bucket/folder``.

Local paths go to the operating system directly; URIs go to ``stores``. Every failure is an ``OSError`` with a plain
message.
"""

import contextlib
import errno
import glob as local_glob
import io
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, cast
from urllib.parse import unquote, urlsplit

from imagepipe.base.stores import connect, describe, find_key, find_root, list_objects, open_stream, plain_errors

PARTIAL = ".partial-"
"""Start of the names of files and folders that are not complete yet."""

_MAGIC = re.compile(r"[\[*?]")


def is_uri(path: str) -> bool:
    """Returns whether the path names a file system by a scheme."""
    return "://" in path


def absolute(path: str) -> str:
    """Returns the path without ``file://`` and without a slash at its end, made absolute if it is local."""
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    if is_uri(path):
        return path.rstrip("/")
    # Unlike Path.resolve this keeps symbolic links: the folder that a link stands in is the one the user meant.
    return os.path.abspath(path)  # noqa: PTH100


def resolve(path: str) -> str:
    """Returns an absolute path with all links in it followed; a URI stays unchanged."""
    return path if is_uri(path) else os.path.realpath(path)


def join(folder: str, path: str) -> str:
    """Returns ``path`` as seen from ``folder``; an absolute path or a URI stays unchanged."""
    if is_uri(path):
        return absolute(path)
    if is_uri(folder):
        return path if path.startswith("/") else f"{folder}/{path}"
    return absolute(f"{folder}/{path}") if not path.startswith("/") else absolute(path)


# --- reading and writing


def read(path: str, limit: int, admit: Callable[[int], None] | None = None) -> bytes:
    """Returns up to ``limit + 1`` bytes of a file, so that more than ``limit`` tells that the file is larger.

    Args:
        path: of the file, or its URI.
        limit: largest size that the caller takes.
        admit: called with the number of bytes of a store's file before they are read.

    Raises:
        OSError: it is missing, not an ordinary file (a pipe would block for ever), or can't be read.
    """
    if is_uri(path):
        with plain_errors(path), connect(path).open(path, "rb") as file:
            if admit:
                admit(min(file.size, limit + 1))
            return file.read(limit + 1)
    # As few system calls as can be: threads that read many small files spend their time handing Python's lock around
    # them, three times as long as the calls themselves.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", path)
        wanted = min(status.st_size, limit + 1)
        data = os.read(handle, wanted)
        while len(data) < wanted and (more := os.read(handle, wanted - len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def read_part(path: str, offset: int, size: int) -> bytes:
    """Returns ``size`` bytes of a file from an offset on, or as many as there are.

    Raises:
        OSError: as of ``read``.
    """
    if is_uri(path):
        with plain_errors(path):
            return bytes(connect(path).cat_file(path, start=offset, end=offset + size))
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.pread(handle, size, offset)
        while len(data) < size and (more := os.pread(handle, size - len(data), offset + len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def read_bytes(path: str) -> bytes:
    """Returns the whole content of a file."""
    if is_uri(path):
        with plain_errors(path):
            return bytes(connect(path).cat_file(path))
    with open_read(path) as file:
        return file.read()


def read_text(path: str) -> str:
    """Returns the whole content of a UTF-8 file; line ends stay as they are stored."""
    return read_bytes(path).decode()


def open_read(path: str) -> BinaryIO:
    """Opens a file as a stream of the bytes that are stored: nothing is decompressed."""
    if not is_uri(path):
        return Path(path).open("rb")
    return io.BufferedReader(open_stream(path, "rb"), 2**20)


def create(path: str) -> BinaryIO:
    """Opens a stream to write a new file through; the folder need not exist."""
    if not is_uri(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("wb", 2**20)
    return cast(BinaryIO, open_stream(path, "wb"))


def write_whole(path: str, data: bytes) -> None:
    """Writes a file that is seen either whole or not at all, also after a power cut; the folder need not exist."""
    if is_uri(path):  # an object store shows an object when it is complete
        with plain_errors(path):
            connect(path).pipe_file(path, data)
        return
    with open_whole(Path(path)) as file:
        file.write(data)


@contextlib.contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a stream to write a local file through that is seen either whole or not at all, also after a power cut.

    Until then it has a name of its own beside ``path``: Beam may try a bundle twice, and at the same time. Only a kill
    leaves such a file; whoever holds the folder deletes them, see PARTIAL.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{uuid.uuid4().hex}"
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush_folder(str(path.parent))
    finally:
        partial.unlink(missing_ok=True)


def flush_folder(folder: str) -> None:
    """Flushes a folder to the disk: without it, a file that was renamed may be gone after a power cut."""
    if is_uri(folder):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- moving, copying, deleting


def rename(source: str, target: str) -> None:
    """Moves a file, within one file system; a file at the target is replaced. Local folders can be moved too."""
    if not is_uri(source):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(source).replace(target)
        return
    with plain_errors(source):  # not by mv, which takes names with brackets for patterns
        system = connect(source)
        system.cp_file(source, target)
        system.rm_file(source)


def copy(source: str, target: str) -> None:
    """Copies a file, also from one file system to another; a file at the target is replaced."""
    if is_uri(source) and is_uri(target) and find_root(source) == find_root(target):
        with plain_errors(source):
            connect(source).cp_file(source, target)  # the store does it; the bytes don't pass through here
        return
    with open_read(source) as original, create(target) as duplicate:
        shutil.copyfileobj(original, duplicate, 2**20)


def copy_folder(source: str, target: str) -> None:
    """Copies a folder and everything in it into a folder that may exist, also from one file system to another."""
    if not is_uri(source) and not is_uri(target):
        shutil.copytree(source, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
        return
    source, target = source.rstrip("/"), target.rstrip("/")
    for path, _ in walk(source):
        copy(path, target + path[len(source) :])


def delete(path: str) -> None:
    """Deletes a file; one that does not exist is deleted already."""
    if not is_uri(path):
        Path(path).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError), plain_errors(path):
        connect(path).rm_file(path)


def delete_folder(folder: str) -> None:
    """Deletes a folder and everything in it; one that does not exist is deleted already."""
    if not is_uri(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    paths = [path for path, _ in walk(folder)]
    with plain_errors(folder):
        system = connect(folder)
        if plain := [path for path in paths if not _MAGIC.search(path)]:
            system.rm(plain)  # hundreds in one request; but what looks like a pattern would delete all that it matches
        for path in paths:
            if _MAGIC.search(path):
                system.rm_file(path)


# --- existence, sizes, listings


def exists(path: str) -> bool:
    """Returns whether there is a file or a folder."""
    return describe(path) is not None if is_uri(path) else Path(path).exists()


def is_folder(path: str) -> bool:
    """Returns whether there is a folder; on an object store, whether anything lies below the path."""
    if not is_uri(path):
        return Path(path).is_dir()
    entry = describe(path)
    return entry is not None and entry["type"] == "directory"


def size(path: str) -> int | None:
    """Returns the file's size in bytes, or None if there is no such file."""
    if not is_uri(path):
        file = Path(path)
        return file.stat().st_size if file.is_file() else None
    entry = describe(path)
    return int(entry["size"]) if entry is not None and entry["type"] == "file" else None


def modified(path: str) -> float:
    """Returns when a file was last written, in seconds since 1970."""
    if not is_uri(path):
        return Path(path).stat().st_mtime
    with plain_errors(path):
        return float(connect(path).modified(path).timestamp())


def list_folder(folder: str) -> list[str]:
    """Returns the names of the files and folders in a folder, sorted; none if it does not exist."""
    if not is_uri(folder):
        return sorted(os.listdir(folder)) if Path(folder).is_dir() else []  # noqa: PTH208 (names, not paths)
    return sorted(name for name, _ in _list_stored(folder))


def list_subfolders(folder: str) -> list[str]:
    """Returns the names of the folders in a folder, links to folders included, sorted; none if it can't be listed."""
    if not is_uri(folder):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry))
        return []
    return sorted(name for name, is_folder in _list_stored(folder) if is_folder)


def _list_stored(folder: str) -> Iterator[tuple[str, bool]]:
    """Yields the names in a store's folder, each with whether it is a folder."""
    try:
        with plain_errors(folder):
            entries = connect(folder).ls(folder, detail=True)
    except FileNotFoundError:
        return
    root = find_key(folder)
    for entry in entries:
        if (path := str(entry["name"]).rstrip("/")) != root:
            yield path[len(root) + 1 :], entry["type"] == "directory"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Asked for a link to itself, the entry would raise.
    is_link = entry.is_symlink()
    return os.path.isdir(entry.path) if is_link else entry.is_dir()  # noqa: PTH112


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """Yields path and size in bytes of every file below a folder, in order of the paths; none if it does not exist.

    Each path starts with the folder as it was given (without a slash at its end), so that callers can cut it off.
    """
    if not is_uri(folder):
        local = Path(folder)
        for path in sorted(local.rglob("*")):
            if path.is_file():
                yield f"{folder.rstrip('/')}/{path.relative_to(local)}", path.stat().st_size
        return
    yield from list_objects(folder)


def unescape(pattern: str) -> str:
    """Returns the path that a pattern names whose special characters are escaped, as ``glob.escape`` does."""
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


def glob(pattern: str) -> list[str]:
    """Returns the paths of the files and folders that match a pattern with ``*``, ``?``, ``[]`` or ``**``, sorted.

    Folders that it starts with are taken by name if there are such, see ``split_pattern``.
    """
    if _MAGIC.search(pattern.rpartition("/")[0]):
        folder, rest = split_pattern(pattern)
        pattern = f"{local_glob.escape(folder)}/{rest}" if folder else pattern
    if not is_uri(pattern):
        return sorted(local_glob.glob(pattern, recursive=True))  # noqa: PTH207 (a pattern may be absolute)
    with plain_errors(pattern):
        keys = connect(pattern).glob(pattern)
    whole = pattern.rstrip("/")
    start = whole[: len(whole) - len(find_key(pattern))]
    return sorted(start + key for key in keys)


def split_pattern(pattern: str) -> tuple[str, str]:
    """Returns the longest part of a pattern that is a folder, even with a ``[`` in its name, and the pattern below it.

    Args:
        pattern: an absolute path or URI; of a relative one that starts with no folder, the folder is empty.
    """
    folder = pattern.rpartition("/")[0]
    bucket = "/".join(pattern.split("/", 3)[:3]) if is_uri(pattern) else ""
    while folder not in ("", bucket) and not is_folder(folder):
        folder = folder.rpartition("/")[0]
    return folder, pattern[len(folder) :].lstrip("/")


def is_plain(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path has no character that makes it a pattern, as TensorFlow and TFX take each path for one."""
    return not _MAGIC.search(os.fspath(path))


@contextlib.contextmanager
def link_plainly(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a plain path of a local folder: its own, or that of a link which is gone afterwards."""
    if is_plain(folder):
        yield Path(folder)
        return
    with TemporaryDirectory() as temporary:
        link = Path(temporary, "folder")
        link.symlink_to(Path(folder).resolve())
        yield link
