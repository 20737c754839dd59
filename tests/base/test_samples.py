"""Gray of other than 8 bits, and transparent colors, as libpng and libtiff give them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagepipe.base.images import BadImage, normalize

WIDTH, BITS, PHOTOMETRIC, FORMAT = 256, 258, 262, 339


def decode(data: bytes) -> np.ndarray:
    """Returns the first row of an image as ingest keeps it, gray of RGB."""
    pixels = np.asarray(Image.open(io.BytesIO(normalize(data).data)))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0]


def make_tiff(samples: np.ndarray, tags: dict[int, int]) -> bytes:
    """Writes bytes or uint16 ``[h, w]`` as an uncompressed TIFF, then sets tags, which Pillow would not write so."""
    file = io.BytesIO()
    Image.fromarray(samples).save(file, "TIFF", tiffinfo={FORMAT: 1})
    data = bytearray(file.getvalue())
    for tag, value in tags.items():
        at = next(at for kind in (3, 4) if (at := data.find(struct.pack("<HHI", tag, kind, 1))) >= 0)
        data[at + 8 : at + 12] = struct.pack("<I", value)
    return bytes(data)


def make_png(rows: list[bytes], width: int, bits: int, color: int, transparent: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def test_gray_of_12_bits_has_its_upper_8():
    pairs = np.array([[0x00, 0x0F, 0xFF], [0x80, 0x08, 0x00]], np.uint8)  # 000 FFF, 800 800
    data = make_tiff(np.repeat(pairs[:, None], 4, 1).reshape(2, 12), {BITS: 12, WIDTH: 8})
    assert decode(data).tolist() == [0, 255] * 4


def test_a_tiff_whose_white_is_zero_is_no_negative_in_16_bits_either():
    samples = np.array([[0, 0x1234, 0xFFFF]], np.uint16)
    assert decode(make_tiff(samples, {})).tolist() == [0, 0x12, 255]
    assert decode(make_tiff(samples, {PHOTOMETRIC: 0})).tolist() == [255, 255 - 0x12, 0]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_samples_with_a_sign_or_of_32_bits_are_refused_whatever_they_hold(kind):
    with pytest.raises(BadImage, match="pixels of 32 bits, or with a sign, whose range is not known"):
        normalize(make_tiff(np.full((2, 2), 100, kind), {FORMAT: 2}))


@pytest.mark.parametrize(
    ("row", "bits", "color", "transparent", "expected"),
    [
        (bytes([0b00_01_10_11]), 2, 0, (2,), [0, 85, 255, 255]),
        (bytes([0x09, 0x9F]), 4, 0, (9,), [0, 255, 255, 255]),
        (bytes([0, 9, 9, 7]), 8, 0, (9,), [0, 255, 255, 7]),
        (struct.pack(">4H", 0, 5000, 5001, 0xFFFF), 16, 0, (5000,), [0, 255, 19, 255]),
        (struct.pack(">12H", *[0] * 3, *[5000] * 3, *[9000] * 3, *[0xFFFF] * 3), 16, 2, [5000] * 3, [0, 255, 35, 255]),
    ],
)
def test_the_transparent_color_of_a_png_is_laid_on_white_at_any_depth(row, bits, color, transparent, expected):
    data = make_png([row], 4, bits, color, struct.pack(f">{len(transparent)}H", *transparent))
    assert decode(data).tolist() == expected
