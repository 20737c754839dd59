"""Checks that libpng, and so every decoder, surely decodes a PNG: Pillow takes more than it does."""

import contextlib
import re
import zlib
from collections.abc import Iterable, Iterator

PNG_MAX_SIDE = 1_000_000
"""Largest width and height, in pixels, that libpng takes by default: PNG_USER_WIDTH_MAX and PNG_USER_HEIGHT_MAX."""

_PLAIN = bytes((8, 2, 0, 0, 0))  # end of IHDR: 8 bits, RGB, deflate, filters of one kind, not interlaced
_HEADER_SIZE = 13
_FILTERS = bytes(range(5))  # PNG, 9.2: None, Sub, Up, Average, Paeth

# PNG, 5.6: the order of the chunks; the small letter at the start tells that an image can be decoded without the chunk.
_OTHERS = rb"(?:[a-z][A-Za-z][A-Z][A-Za-z])*"
_ORDER = re.compile(rb"IHDR%b(?:PLTE%b)?(?:IDAT)+%bIEND" % (_OTHERS, _OTHERS, _OTHERS))


def is_plain_png(data: bytes) -> bool:
    """Returns whether a PNG is RGB in 8 bits, not interlaced, and has nothing that libpng refuses.

    Transparency is the caller's to look for. Its pixels are unpacked to the end, a megabyte at a time.

    Raises:
        ValueError: with the reason, if the PNG is cut off, or a checksum that matters is wrong.
    """
    chunks = list(_read_chunks(data))
    header = chunks[0][1]
    if not _ORDER.fullmatch(b"".join(name for name, _ in chunks)) or len(header) != _HEADER_SIZE:
        return False
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    return (
        header[8:] == _PLAIN
        and 0 < width <= PNG_MAX_SIDE
        and 0 < height <= PNG_MAX_SIDE
        and _has_rows((content for name, content in chunks if name == b"IDAT"), 1 + 3 * width, height)
    )


def _read_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields name and content of a PNG's chunks, to the end; Pillow doesn't check the checksums of pixel data."""
    view, at = memoryview(data), len(b"\x89PNG\r\n\x1a\n")
    while at + 12 <= len(data):
        length = int.from_bytes(view[at : at + 4], "big")
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            break
        # The case of the first letter tells whether an image can be decoded without the chunk.
        if name[:1].isupper() and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError("a checksum is wrong")
        yield name, view[at + 8 : end - 4]
        if name == b"IEND":
            return
        at = end
    raise ValueError("truncated")


def _has_rows(chunks: Iterable[memoryview], row: int, count: int) -> bool:
    """Returns whether compressed chunks give exactly the rows, each with a filter, and the right checksum.

    Args:
        chunks: contents of IDAT.
        row: bytes of a row, of which the first is its filter.
        count: of rows.
    """
    # 0: the window is as large as the data says, as libpng has it, and not the largest that there is.
    unzip, total, size = zlib.decompressobj(0), 0, row * count
    with contextlib.suppress(zlib.error):
        for chunk in chunks:
            rest: bytes | memoryview = chunk
            while rest and total <= size:
                pixels = unzip.decompress(rest, 2**20)
                if pixels[-total % row :: row].translate(None, _FILTERS):
                    return False
                total += len(pixels)
                rest = unzip.unconsumed_tail
        return unzip.eof and total == size
    return False
