"""The few file operations of ingest, on local paths and on URIs of any file system that Beam reads.

A path with a scheme (``gs://bucket/folder``) goes to Beam's file systems, which are imported then and not before; all
others to the operating system directly. Every failure is an ``OSError``.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from apache_beam.io.filesystems import FileSystems


def is_uri(path: str) -> bool:
    """Whether the path names a file system by a scheme."""
    return "://" in path


def absolute(path: str) -> str:
    """The path without ``file://``, made absolute where it is local, without a slash at its end."""
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    if is_uri(path):
        return path.rstrip("/")
    # Unlike Path.resolve this keeps symbolic links: the folder that a link stands in is the one the user meant.
    return os.path.abspath(path)  # noqa: PTH100


def join(folder: str, path: str) -> str:
    """``path`` seen from ``folder``; an absolute path or a URI stays what it is."""
    if is_uri(path):
        return absolute(path)
    if is_uri(folder):
        return path if path.startswith("/") else f"{folder}/{path}"
    return absolute(f"{folder}/{path}") if not path.startswith("/") else absolute(path)


@contextlib.contextmanager
def locked(folder: Path, busy: Exception) -> Iterator[None]:
    """Holds a local folder, made if missing, for one process at a time, by a file ``.lock`` in it.

    Raises ``busy`` if another process holds it; the lock goes with the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield


def read(path: str, limit: int) -> bytes:
    """Up to ``limit + 1`` bytes of a file, so that a longer answer than ``limit`` tells that the file is larger.

    Raises:
        OSError: it is missing, not an ordinary file (a pipe would block for ever), or can't be read.
    """
    if is_uri(path):
        with open_read(path) as file:
            return file.read(limit + 1)
    # As few system calls as can be: threads that read many small files spend their time handing Python's lock around
    # them, three times as long as the calls themselves.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", path)
        wanted = min(found.st_size, limit + 1)
        data = os.read(handle, wanted)
        while len(data) < wanted and (more := os.read(handle, wanted - len(data))):
            data += more
        return data
    finally:
        os.close(handle)


def open_read(path: str) -> BinaryIO:
    """The file's bytes as a stream, as stored: nothing is decompressed."""
    if not is_uri(path):
        return Path(path).open("rb")
    return _on_beam(path, lambda systems, raw: systems.open(path, "application/octet-stream", raw))


def create(path: str) -> BinaryIO:
    """A stream to write a new file through; the folder need not exist."""
    if not is_uri(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("wb")
    return _on_beam(path, lambda systems, raw: systems.create(path, "application/octet-stream", raw))


def write_whole(path: str, data: bytes) -> None:
    """Writes a file that is seen either whole or not at all."""
    if is_uri(path):  # an object store shows an object when it is complete
        with create(path) as file:
            file.write(data)
        return
    part = f"{path}.part"
    with create(part) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(part).replace(path)


def size(path: str) -> int | None:
    """The file's size in bytes, or None where there is no such file."""
    if not is_uri(path):
        found = Path(path)
        return found.stat().st_size if found.is_file() else None
    if not _on_beam(path, lambda systems, _: systems.exists(path)):
        return None
    return int(_on_beam(path, lambda systems, _: systems.get_filesystem(path).size(path)))


def rename(source: str, target: str) -> None:
    """Moves a file, within one file system; a file at the target is replaced."""
    if not is_uri(source):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(source).replace(target)
        return
    if size(target) is not None:
        delete(target)
    folder = target.rpartition("/")[0]
    # Object stores have no folders to make; Hadoop's file system has, and refuses one that is there.
    with contextlib.suppress(OSError):
        _on_beam(folder, lambda systems, _: systems.mkdirs(folder))
    _on_beam(source, lambda systems, _: systems.rename([source], [target]))


def delete(path: str) -> None:
    """Deletes a file; one that is not there is deleted already."""
    if not is_uri(path):
        Path(path).unlink(missing_ok=True)
    elif size(path) is not None:
        _on_beam(path, lambda systems, _: systems.delete([path]))


def delete_folder(folder: str) -> None:
    """Deletes a folder and all in it; one that is not there is deleted already."""
    if not is_uri(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif paths := [path for path, _ in walk(folder)]:
        _on_beam(folder, lambda systems, _: systems.delete(paths))


def walk(folder: str) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of every file below a folder, in order of the paths."""
    if is_uri(folder):
        pattern = re.sub(r"([\[*?])", r"[\1]", folder) + "/**"
        found = _on_beam(folder, lambda systems, _: systems.match([pattern])[0].metadata_list)
        yield from sorted((entry.path, int(entry.size_in_bytes)) for entry in found)
        return
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            yield str(path), path.stat().st_size


def is_folder(path: str) -> bool:
    """Whether there is a folder; on an object store, whether anything lies below the path."""
    return Path(path).is_dir() if not is_uri(path) else any(True for _ in walk(path))


def _on_beam(path: str, do: Callable[[type["FileSystems"], str], Any]) -> Any:
    """Calls Beam's file systems with (FileSystems, the compression type that leaves bytes alone)."""
    from imagepipe.ingest.beam import CompressionTypes, FileSystems

    try:
        FileSystems.get_filesystem(path)
    except ValueError as error:
        scheme = path.partition("://")[0]
        raise OSError(
            errno.EPROTONOSUPPORT, f"Beam knows no file system {scheme}://; is apache-beam's extra for it installed?"
        ) from error
    try:
        return do(FileSystems, CompressionTypes.UNCOMPRESSED)
    except OSError:
        raise
    except Exception as error:  # cloud clients raise exceptions of their own, whose classes may not be installed
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", path) from error
