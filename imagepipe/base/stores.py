"""Object stores and Hadoop, for ``filesystem``: fsspec's file systems, with plain errors.

fsspec is imported at the first use of a URI and not before, as the stores' clients take long to import. It takes
credentials and endpoints from the environment (``AWS_*``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``FSSPEC_*``).
"""

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# fsspec knows web servers, archives and caches too. A manifest must not make the machine that reads it call addresses
# inside its own network, so only stores are taken.
_SCHEMES = ("gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "hdfs", "oss", "memory")
_EXTRAS = {"s3": "s3", "s3a": "s3"}  # by scheme: the extra of this project that installs its client
_SECRETS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+@|(?<=\?)[^\s'\"]+=[^\s'\"]+")  # user:password@, and signed queries


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
        with plain_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        with plain_errors(self._path):
            return bytes(self._file.read())

    def write(self, data: Any) -> int:
        with plain_errors(self._path):
            return int(self._file.write(data))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with plain_errors(self._path):
            return int(self._file.seek(offset, whence))

    def close(self) -> None:
        if not self.closed:
            super().close()
            with plain_errors(self._path):
                self._file.close()


def open_stream(path: str, mode: Literal["rb", "wb"]) -> io.RawIOBase:
    """Opens an object to be read or written through."""
    with plain_errors(path):
        return _Stream(connect(path).open(path, mode), path)


def connect(path: str) -> "AbstractFileSystem":
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
    system, _ = fsspec.core.url_to_fs(find_root(path), use_listings_cache=False)
    return system


def find_root(path: str) -> str:
    """Returns the scheme and the bucket of a URI."""
    return re.sub(r"(://[^/]*).*", r"\1", path, flags=re.DOTALL)


def find_key(path: str) -> str:
    """Returns the path as fsspec's listings spell it, without the scheme and without a slash at its end."""
    return str(type(connect(path))._strip_protocol(path)).rstrip("/")


def describe(path: str) -> dict[str, Any] | None:
    """Returns fsspec's entry (``type``, ``size``) of a URI, or None if there is nothing."""
    try:
        with plain_errors(path):
            return dict(connect(path).info(path))
    except FileNotFoundError:
        return None


def list_objects(folder: str) -> Iterator[tuple[str, int]]:
    """Yields path and size in bytes of every object below a folder, in order of the paths; none if it does not exist.

    S3 and Google Cloud Storage list page by page, in this order, so that memory does not grow with the number. fsspec
    collects all pages, as a dict of some 2 kB per object; the other stores leave no choice.
    """
    system, root = connect(folder), find_key(folder)
    start = folder.rstrip("/")
    pages = {"s3": _page_s3, "s3a": _page_s3, "gs": _page_gcs, "gcs": _page_gcs}
    page = pages.get(folder.partition("://")[0])
    with contextlib.suppress(FileNotFoundError), plain_errors(folder):
        for name, size in page(system, *root.partition("/")[::2]) if page else _find_all(system, root):
            if not name.endswith("/"):  # consoles make such objects stand for folders
                yield start + name[len(root) :], size


def _page_s3(system: Any, bucket: str, key: str) -> Iterator[tuple[str, int]]:
    request = {"Bucket": bucket, "Prefix": key and f"{key}/", **system.req_kw}
    while True:
        page = system.call_s3("list_objects_v2", **request)
        for entry in page.get("Contents", ()):
            yield f"{bucket}/{entry['Key']}", int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _page_gcs(system: Any, bucket: str, key: str) -> Iterator[tuple[str, int]]:
    request = {"prefix": key and f"{key}/", "fields": "nextPageToken,items(name,size)"}
    while True:
        page = system.call("GET", "b/{}/o", bucket, json_out=True, **request)
        for entry in page.get("items", ()):
            yield f"{bucket}/{entry['name']}", int(entry["size"])
        if "nextPageToken" not in page:
            return
        request["pageToken"] = page["nextPageToken"]


def _find_all(system: Any, root: str) -> Iterator[tuple[str, int]]:
    entries = system.find(root, detail=True)
    yield from sorted((name, int(entry["size"] or 0)) for name, entry in entries.items() if name.startswith(f"{root}/"))


@contextlib.contextmanager
def plain_errors(path: str) -> Iterator[None]:
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
