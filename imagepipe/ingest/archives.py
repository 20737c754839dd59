"""Archives: tar, gzip'd tar and ZIP, as lists of their members.

A stranger made them, so all that they say of themselves is bounded: a member's path can't leave the archive, links and
devices are passed over, no header is read into memory at its word, and what unpacks to many times its size is refused.
Formats: POSIX.1-2017 pax, "ustar" and GNU's, as Python's tarfile reads them; PKWARE's APPNOTE 6.3, as zipfile does.
"""

import contextlib
import errno
import gzip
import os
import shlex
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, Self, cast

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.folders import SPECIAL, check_name, explain_passing_over
from imagepipe.base.images import MAX_BYTES
from imagepipe.base.progress import print_note, show_progress
from imagepipe.ingest.parts import ARCHIVES, Part, name_file

_MAX_RATIO, _FREE_BYTES = 200, 2**30
"""Images hardly shrink. Once more than the free bytes are unpacked, more than the ratio is a bomb."""

# Bytes of a tar's header: extended ones hold a path, times and attributes. For a long one tarfile may take time that
# grows with its square (CVE-2024-6232): 10 s for 60 kB.
_IS_UTF8 = 0x800  # flag of a name, APPNOTE.TXT 4.4.4
_MAX_HEADER = 2**13
_MAX_DIRECTORY = 2**27  # of a ZIP's directory: over a million members, in about a gigabyte of memory
_LINKS = "links in archives"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # APPNOTE 4.3.7: signature; lengths of name and extra field
_DEFLATED = 8
_TAR_HEADER = struct.Struct("100s24x12s12x8sc188x155s12x")  # POSIX.1-2017 pax, "ustar Interchange Format"


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        path: its path in the archive.
        part: where its bytes lie; None if it can't be read.
        reason: why it can't be read, or None.
    """

    path: str
    part: Part | None
    reason: str | None


def is_archive(path: str) -> bool:
    """Returns whether a file is an archive, judged by its name."""
    return path.lower().endswith(ARCHIVES)


def list_members(path: str, staging: str, passed_over: Counter[str]) -> Iterator[Member]:
    """Lists the files in an archive in their order, which is told by its content whatever its name says.

    An archive on an object store is copied into the staging folder, and a gzip'd one unpacked into it.

    Args:
        path: an absolute path or URI.
        staging: folder that is written to.
        passed_over: is added to: links, devices and what is passed over in folders too.

    Raises:
        IngestError: it is damaged, is none, or unpacks to far more than it is.
    """
    with filesystem.open_read(path) as file:
        start = file.read(2)
    is_zipped = start == b"\x1f\x8b"
    local = _copy(path, staging, is_zipped) if is_zipped or filesystem.is_uri(path) else path
    members = _list_zip(path, local, passed_over) if start == b"PK" else _list_tar(path, local, passed_over)
    for name, part, reason in members:
        steps = [step for step in name.split("/") if step not in ("", ".")]
        problem = None
        if name.startswith("/") or ".." in steps:
            problem = "its path leaves the archive"
        elif not steps:
            problem = "it has no name"
        if not problem and (kind := explain_passing_over("/".join(steps))):
            passed_over[kind] += 1
        elif refusal := problem or check_name(name) or reason:
            yield Member(name, None, refusal)
        else:
            yield Member("/".join(steps), part, None)


class _Damaged(Exception):  # noqa: N818 (a state of the archive)
    """An archive says of itself what can't be."""


class _Header(tarfile.TarInfo):
    """A tar's header, of which only name, size and kind are read: times and owners take half of tarfile's time.

    That is for files, and for the attributes that stand before one. Anything else, or wrong, is for tarfile itself.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) == _TAR_HEADER.size and buf[156] in b"0x":
            with contextlib.suppress(ValueError):  # a number in base 256
                name, size, checksum, kind, prefix = _TAR_HEADER.unpack(buf)
                if _sum_bytes(buf) - sum(checksum) + len(checksum) * ord(" ") == _read_octal(checksum):
                    path = _cut(prefix) + b"/" + _cut(name) if prefix[0] else _cut(name)
                    header = cls(path.decode(encoding, errors))
                    header.size, header.type = _read_octal(size), kind
                    return header
        return super().frombuf(buf, encoding, errors)


def _sum_bytes(header: bytes | bytearray) -> int:
    # Adler-32's lower half adds bytes, from 1 and modulo 65521, which 256 bytes don't reach: six times as fast as sum.
    return (zlib.adler32(header[:256]) & 0xFFFF) + (zlib.adler32(header[256:]) & 0xFFFF) - 2


def _cut(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _read_octal(field: bytes) -> int:
    return int(_cut(field), 8)


class _Bounded:
    """A file of which only so much is read at once: a header that claims to be longer is an accident or an attack."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit
        self.tell, self.seekable = file.tell, file.seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise _Damaged("a size that no file can have") from error
            raise

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._limit + 1) if size >= 0 else self._limit + 1)
        if len(data) > self._limit:
            raise _Damaged(f"a header of more than {self._limit:,} bytes")
        return data


def _copy(path: str, staging: str, is_zipped: bool) -> str:
    """Copies an archive into the staging folder, unpacked if it is gzip'd, and returns the path of the copy."""
    target, size, done = name_file(staging), 0, 0
    total = filesystem.size(path) or 0
    with (
        filesystem.open_read(path) as packed,
        filesystem.create(target) as copy,
        show_progress(total >> 20, "MiB", lambda: {"unpacked" if is_zipped else "copied": done >> 20}),
    ):
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=packed)) if is_zipped else packed
        try:
            while block := stream.read(2**20):
                size, done = size + len(block), packed.tell()
                check_ratio(path, size, done)
                copy.write(block)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _explain(path, error) from error
    return target


def check_ratio(path: str, unpacked: int, packed: int) -> None:
    """Refuses what unpacks to so many bytes that it is no container of images.

    Raises:
        IngestError: it is refused.
    """
    if unpacked > max(_FREE_BYTES, _MAX_RATIO * packed):
        raise IngestError(
            f"{path} unpacks to more than {_MAX_RATIO} times its size ({unpacked >> 20:,} MiB of {packed:,} bytes), "
            "as no archive of images does: it was not read. If it is sound, unpack it, and give the folder."
        )


def _explain(path: str, error: Exception) -> IngestError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return IngestError(f"{path} is damaged, or no archive ({reason}): nothing was ingested. Download or pack it again.")


# --- tar


def _list_tar(path: str, local: str, passed_over: Counter[str]) -> Iterator[Member]:
    with filesystem.open_read(local) as file:
        try:
            for info in _read_headers(file):
                if info.issym() or info.islnk():
                    passed_over[_LINKS] += 1
                elif info.issparse():
                    yield Member(info.name, None, "stored with its holes left out (sparse), which is not read")
                elif info.isreg():
                    yield Member(info.name, (local, info.offset_data, info.size, None), None)
                elif not info.isdir():
                    passed_over[SPECIAL] += 1
        except (tarfile.TarError, _Damaged, ValueError, OverflowError, RecursionError, EOFError) as error:
            raise _explain(path, error) from error


def _read_headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of a tar, all of which are read; Python's tarfile takes a damaged one for the end."""
    with tarfile.open(fileobj=cast(BinaryIO, _Bounded(file, _MAX_HEADER)), mode="r:", tarinfo=_Header) as tar:
        end = 0
        while (info := tar.next()) is not None:
            if tar.offset <= end:  # by a negative size, with which tarfile would go round for ever
                raise _Damaged("a member ends before it begins")
            end = tar.offset
            cast(Any, tar).members.clear()  # else all are kept until the end
            yield info
        file.seek(tar.offset)
        if file.read(2 * tarfile.RECORDSIZE).strip(b"\0"):  # beyond the zeros that fill up its last record
            raise _Damaged(f"no header of a member at byte {tar.offset:,}")


# --- ZIP


def _list_zip(path: str, local: str, passed_over: Counter[str]) -> Iterator[Member]:
    size = filesystem.size(local) or 0
    with filesystem.open_read(local) as file:
        try:
            with zipfile.ZipFile(cast(BinaryIO, _Bounded(file, _MAX_DIRECTORY))) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, _Damaged, ValueError, OverflowError, NotImplementedError, struct.error) as error:
            raise _explain(path, error) from error
        if sum(info.compress_size for info in members) > size:
            raise _explain(path, _Damaged("its members overlap"))
        check_ratio(path, sum(info.file_size for info in members), size)
        if guessed := sorted(name for name, is_guess in map(_read_name, members) if is_guess):
            print_note(
                f"{path} does not say in which letters names such as {guessed[0]} are: they were read as those of the "
                "IBM PC (CP437), as a ZIP has it. If they look wrong, unpack it by the right ones, such as those of "
                f"Japanese Windows: python -m zipfile --metadata-encoding cp932 -e {shlex.quote(path)} FOLDER"
            )
        for info in members:
            if stat.S_ISLNK(info.external_attr >> 16):
                passed_over[_LINKS] += 1
            elif not info.filename.endswith("/"):  # is_dir() fails without a name
                yield _find_packed(local, file, info, size)


def _read_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """Returns a member's name, and whether its letters are a guess: neither marked as UTF-8, nor such all the same."""
    name, is_guess = info.filename, False
    if not info.flag_bits & _IS_UTF8 and not name.isascii():
        with contextlib.suppress(UnicodeEncodeError):  # else read from a field of its own
            encoded = name.encode("cp437")  # the IBM PC's code page, in which zipfile reads it
            try:
                name = encoded.decode()  # as macOS writes it
            except UnicodeDecodeError:
                is_guess = True
    return name.replace("\\", "/"), is_guess  # a backslash is of Windows' own packers


def _find_packed(local: str, file: BinaryIO, info: zipfile.ZipInfo, size: int) -> Member:
    """Returns a member with the place of its bytes, which is after its own header; the directory says of that where."""
    name, _ = _read_name(info)
    if info.flag_bits & 1:
        return Member(name, None, "encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, _DEFLATED):
        return Member(name, None, "packed by a method that is not read: pack it again, with Deflate")
    if info.file_size > MAX_BYTES:
        return Member(name, None, f"file of more than {MAX_BYTES >> 20} MiB")
    is_deflated = info.compress_type == _DEFLATED
    file.seek(info.header_offset if 0 <= info.header_offset < size else size)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        return Member(name, None, "broken in its archive: no header")
    if not is_deflated and info.compress_size != info.file_size:
        return Member(name, None, "broken in its archive: two sizes")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    unpacked = info.file_size if is_deflated else None
    return Member(name, (local, offset, info.compress_size, unpacked), None)
