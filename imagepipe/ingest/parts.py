"""Images that are a part of a larger file: a member of an archive, or bytes that were taken out of one.

Such a part is read as a file is, twice and by worker processes. So it lies in a file of its own kind: the archive where
that is read in place, else a file in the staging folder. Nothing is ever written under a name that an archive gives.
"""

import contextlib
import uuid
import zlib
from collections.abc import Callable, Iterator

from imagepipe.base import filesystem
from imagepipe.base.images import MAX_BYTES, BadImage

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip")
"""The ends of archives' names, in small letters."""

Part = tuple[str, int, int, int | None]
"""File, offset, number of bytes there, and if these are deflated, how many they unpack to. A list, if it went through
JSON."""


def read_part(part: Part) -> bytes:
    """Returns the bytes of a part, unpacked, and at most MAX_BYTES + 1 of them.

    Raises:
        BadImage: they don't unpack.
        OSError: the file can't be read.
    """
    path, offset, packed, size = part
    data = filesystem.read_part(path, offset, min(packed, MAX_BYTES + 1))
    if size is None:
        return data
    unzip = zlib.decompressobj(-zlib.MAX_WBITS)  # as in a ZIP: without a header of zlib's
    try:
        unpacked = unzip.decompress(data, min(size, MAX_BYTES) + 1)
    except zlib.error as error:
        raise BadImage(f"broken in its archive: {error}") from error
    if len(unpacked) != size and size <= MAX_BYTES:
        raise BadImage("broken in its archive: it unpacks to another size than the archive says")
    return unpacked


def name_file(staging: str) -> str:
    """Returns the path of a new file for parts in the staging folder."""
    return f"{staging}/parts/{uuid.uuid4().hex}"


@contextlib.contextmanager
def open_parts(staging: str) -> Iterator[Callable[[bytes], Part]]:
    """Gives a function that appends bytes to one file in the staging folder, and returns where they are."""
    path, end = name_file(staging), 0
    with filesystem.create(path) as file:

        def add(data: bytes) -> Part:
            nonlocal end
            file.write(data)
            end += len(data)
            return path, end - len(data), len(data), None

        yield add
