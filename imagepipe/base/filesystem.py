"""File operations on local paths and on URIs of object stores and Hadoop, such as ``gs://bucket/folder``.

Local paths go to the operating system directly; URIs go to fsspec, which is imported then and not before, as the
stores' clients take long to import. fsspec takes credentials and endpoints from the environment (``AWS_*``,
``GOOGLE_APPLICATION_CREDENTIALS``, ``FSSPEC_*``). Every failure is an ``OSError`` with a plain message.
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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# fsspec knows web servers, archives and caches too. A manifest must not make the machine that reads it call addresses
# inside its own network, so only stores are taken.
_SCHEMES = ("gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "hdfs", "oss", "memory")
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # by scheme: the extra of this project that installs its client

PARTIAL = ".partial-"
"""Start of the names of files and folders that are not complete yet."""

_MAGIC = re.compile(r"[\[*?]")
_SECRETS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+@|(?<=\?)[^\s'\"]+=[^\s'\"]+")  # user:password@, and signed queries


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


def join(folder: str, path: str) -> str:
    """Returns ``path`` as seen from ``folder``; an absolute path or a URI stays unchanged."""
    if is_uri(path):
        return absolute(path)
    if is_uri(folder):
        return path if path.startswith("/") else f"{folder}/{path}"
    return absolute(f"{folder}/{path}") if not path.startswith("/") else absolute(path)


# --- reading and writing


def read(path: str, limit: int) -> bytes:
    """Returns up to ``limit + 1`` bytes of a file, so that more than ``limit`` tells that the file is larger.

    Raises:
        OSError: it is missing, not an ordinary file (a pipe would block for ever), or can't be read.
    """
    if is_uri(path):
        with _plain_errors(path), _connect(path).open(path, "rb") as file:
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


def read_bytes(path: str) -> bytes:
    """Returns the whole content of a file."""
    if is_uri(path):
        with _plain_errors(path):
            return bytes(_connect(path).cat_file(path))
    with open_read(path) as file:
        return file.read()


def read_text(path: str) -> str:
    """Returns the whole content of a UTF-8 file; line ends stay as they are stored."""
    return read_bytes(path).decode()


def open_read(path: str) -> BinaryIO:
    """Opens a file as a stream of the bytes that are stored: nothing is decompressed."""
    if not is_uri(path):
        return Path(path).open("rb")
    with _plain_errors(path):
        return io.BufferedReader(_Stream(_connect(path).open(path, "rb"), path), 2**20)


def create(path: str) -> BinaryIO:
    """Opens a stream to write a new file through; the folder need not exist."""
    if not is_uri(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path).open("wb")
    with _plain_errors(path):
        return cast(BinaryIO, _Stream(_connect(path).open(path, "wb"), path))


def write_whole(path: str, data: bytes) -> None:
    """Writes a file that is seen either whole or not at all, also after a power cut; the folder need not exist."""
    if is_uri(path):  # an object store shows an object when it is complete
        with _plain_errors(path):
            _connect(path).pipe_file(path, data)
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
        _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flushes a folder to the disk: without it, a file that was renamed may be gone after a power cut."""
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
    with _plain_errors(source):  # not by mv, which takes names with brackets for patterns
        system = _connect(source)
        system.cp_file(source, target)
        system.rm_file(source)


def copy(source: str, target: str) -> None:
    """Copies a file, also from one file system to another; a file at the target is replaced."""
    if is_uri(source) and is_uri(target) and _root(source) == _root(target):
        with _plain_errors(source):
            _connect(source).cp_file(source, target)  # the store does it; the bytes don't pass through here
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
    with contextlib.suppress(FileNotFoundError), _plain_errors(path):
        _connect(path).rm_file(path)


def delete_folder(folder: str) -> None:
    """Deletes a folder and everything in it; one that does not exist is deleted already."""
    if not is_uri(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    paths = [path for path, _ in walk(folder)]
    with _plain_errors(folder):
        system = _connect(folder)
        if plain := [path for path in paths if not _MAGIC.search(path)]:
            system.rm(plain)  # hundreds in one request; but what looks like a pattern would delete all that it matches
        for path in paths:
            if _MAGIC.search(path):
                system.rm_file(path)


# --- existence, sizes, listings


def exists(path: str) -> bool:
    """Returns whether there is a file or a folder."""
    return _describe(path) is not None if is_uri(path) else Path(path).exists()


def is_folder(path: str) -> bool:
    """Returns whether there is a folder; on an object store, whether anything lies below the path."""
    if not is_uri(path):
        return Path(path).is_dir()
    entry = _describe(path)
    return entry is not None and entry["type"] == "directory"


def size(path: str) -> int | None:
    """Returns the file's size in bytes, or None if there is no such file."""
    if not is_uri(path):
        file = Path(path)
        return file.stat().st_size if file.is_file() else None
    entry = _describe(path)
    return int(entry["size"]) if entry is not None and entry["type"] == "file" else None


def modified(path: str) -> float:
    """Returns when a file was last written, in seconds since 1970."""
    if not is_uri(path):
        return Path(path).stat().st_mtime
    with _plain_errors(path):
        return float(_connect(path).modified(path).timestamp())


def list_folder(folder: str) -> list[str]:
    """Returns the names of the files and folders in a folder, sorted; none if it does not exist."""
    if not is_uri(folder):
        return sorted(os.listdir(folder)) if Path(folder).is_dir() else []  # noqa: PTH208 (names, not paths)
    try:
        with _plain_errors(folder):
            entries = _connect(folder).ls(folder, detail=False)
    except FileNotFoundError:
        return []
    root = _key(folder)
    return sorted(entry.rstrip("/")[len(root) + 1 :] for entry in entries if entry.rstrip("/") != root)


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
    try:
        with _plain_errors(folder):
            entries = _connect(folder).find(folder, detail=True)
    except FileNotFoundError:
        return
    root = _key(folder)
    yield from sorted(
        (folder.rstrip("/") + name[len(root) :], int(entry["size"] or 0))
        for name, entry in entries.items()
        if name.startswith(f"{root}/") and not name.endswith("/")  # consoles make such objects stand for folders
    )


def glob(pattern: str) -> list[str]:
    """Returns the paths of the files and folders that match a pattern with ``*``, ``?``, ``[]`` or ``**``, sorted."""
    if not is_uri(pattern):
        return sorted(local_glob.glob(pattern, recursive=True))  # noqa: PTH207 (a pattern may be absolute)
    with _plain_errors(pattern):
        keys = _connect(pattern).glob(pattern)
    start = pattern[: len(pattern) - len(_key(pattern))]
    return sorted(start + key for key in keys)


# --- fsspec


class _Stream(io.RawIOBase):
    """A file of fsspec's, whose failures are OSErrors also while it is read, written or closed."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def readable(self) -> bool:
        return bool(self._file.readable())

    def writable(self) -> bool:
        return bool(self._file.writable())

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _plain_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        with _plain_errors(self._path):
            return bytes(self._file.read())

    def write(self, data: Any) -> int:
        with _plain_errors(self._path):
            return int(self._file.write(data))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _plain_errors(self._path):
            return int(self._file.seek(offset, whence))

    def close(self) -> None:
        if not self.closed:
            super().close()
            with _plain_errors(self._path):
                self._file.close()


def _connect(path: str) -> "AbstractFileSystem":
    """Returns fsspec's file system of a URI."""
    import fsspec

    scheme = path.partition("://")[0]
    if scheme not in _SCHEMES:
        raise OSError(
            errno.EPROTONOSUPPORT,
            f"{scheme}:// is not supported: give a local path, or a URI that begins with "
            f"{', '.join(f'{name}://' for name in _SCHEMES[:-1])}",
        )
    # Else gcsfs asks another service, by gRPC, for the kind of each bucket, and waits a minute if it can't be reached.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'imagepipe-tfx[{extra}]'" if extra else str(error)
        raise OSError(errno.EPROTONOSUPPORT, f"{scheme}:// needs a package that is not installed: {hint}") from error
    # Of the URI only its start, as fsspec reads "::" in a name as a chain of file systems. Listings are not cached, as
    # other processes and machines write too.
    system, _ = fsspec.core.url_to_fs(_root(path), use_listings_cache=False)
    return system


def _root(path: str) -> str:
    return re.sub(r"(://[^/]*).*", r"\1", path, flags=re.DOTALL)


def _key(path: str) -> str:
    """Returns the path as fsspec's listings spell it, without the scheme and without a slash at its end."""
    return str(type(_connect(path))._strip_protocol(path)).rstrip("/")


def _describe(path: str) -> dict[str, Any] | None:
    """Returns fsspec's entry (``type``, ``size``) of a URI, or None if there is nothing."""
    try:
        with _plain_errors(path):
            return dict(_connect(path).info(path))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _plain_errors(path: str) -> Iterator[None]:
    """Turns every error of a store's client into an OSError with a plain message, without credentials.

    Clients raise exceptions of their own, whose classes may not be installed, and OSErrors without number and message.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _SECRETS.sub("…", path)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPROTONOSUPPORT:
            raise
        number = getattr(error, "errno", None) or (errno.EACCES if isinstance(error, PermissionError) else errno.EIO)
        text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise OSError(number, _SECRETS.sub("…", text), _SECRETS.sub("…", path)) from error
