import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, PngImagePlugin

from imagepipe.base.images import normalize
from tests.conftest import encode_image
from transform.headers import Headers, read_headers

EXIF = b"Exif\0\0"


def read(*encoded: bytes) -> Headers:
    return Headers(*(tensor.numpy().tolist() for tensor in read_headers(tf.constant(encoded))))


def make_exif(*entries: tuple[int, int, int, bytes], order: str = "<", at: int = 8) -> bytes:
    """A TIFF file of one directory, of (tag, type, count, value) each."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", at)
    directory = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return start.ljust(at, b"\0") + struct.pack(f"{order}H", len(entries)) + directory + bytes(4)


def make_orientation(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack(f"{order}H", value)


def make_segment(kind: int, content: bytes) -> bytes:
    return bytes((0xFF, kind)) + struct.pack(">H", len(content) + 2) + content


def put(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


@pytest.fixture(scope="module")
def jpeg(photo) -> bytes:
    return encode_image(photo.resize((60, 40)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_read_in_both_byte_orders(jpeg, value, order):
    exif = make_exif(make_orientation(value, order), order=order)
    assert read(put(jpeg, make_segment(0xE1, EXIF + exif))).orientation == [value]


def test_exif_is_found_wherever_it_stands_before_the_pixels(jpeg):
    exif = make_segment(0xE1, EXIF + make_exif(make_orientation(6)))
    jfif, tables = jpeg[2:20], jpeg[20 : jpeg.index(b"\xff\xc0")]
    assert jfif[:4] == b"\xff\xe0\0\x10"
    others = {
        "after JFIF": jpeg[:20] + exif + jpeg[20:],
        "after the tables": jpeg[:20] + tables + exif + jpeg[20 + len(tables) :],
        "after XMP, a profile and a comment": put(
            jpeg,
            make_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
            *[make_segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 9]) + bytes(65_000)) for i in range(1, 10)],
            make_segment(0xFE, b"Exif, says a comment: \xff\xe1"),
            exif,
        ),
        "after padding": put(jpeg, b"\xff\xff\xff" + exif),
        "with its directory at the end": put(
            jpeg, make_segment(0xE1, EXIF + make_exif(make_orientation(6), at=60_000))
        ),
        "after other entries": put(
            jpeg,
            make_segment(
                0xE1,
                EXIF
                + make_exif((0x010E, 2, 4, b"abc"), (0x0110, 2, 2, b"x"), make_orientation(6), (0x011A, 5, 1, b"")),
            ),
        ),
        "as a long number": put(jpeg, make_segment(0xE1, EXIF + make_exif((0x0112, 4, 1, struct.pack("<I", 6))))),
    }
    assert dict(zip(others, read(*others.values()).orientation, strict=True)) == dict.fromkeys(others, 6)
    for encoded in others.values():
        assert normalize(encoded).data != encoded  # ingest sees it too


XMP = b"http://ns.adobe.com/xap/1.0/\0"
XMP_OF_6 = {
    "attribute": b'\xef\xbb\xbf<?xpacket?><rdf:Description tiff:Orientation="6" x="\xff\n"/>' + b" \n" * 2000,
    "element": b"<x/><tiff:Orientation>6</tiff:Orientation><tiff:Orientation>8</tiff:Orientation>",
}


def turns(encoded: bytes) -> bool:
    """Whether Pillow, and so ingest, turns an image that lies."""
    upright = Image.open(io.BytesIO(normalize(encoded).data))
    return upright.size != Image.open(io.BytesIO(encoded)).size


def test_exif_and_xmp_count_wherever_pillow_finds_them(jpeg):
    def xmp(content: bytes) -> bytes:
        return make_segment(0xE1, XMP + content)

    frame, huffman, scan = (jpeg.index(marker) for marker in (b"\xff\xc0", b"\xff\xc4", b"\xff\xda"))
    six, eight, none, nine = (
        make_segment(0xE1, EXIF + make_exif(*entries))
        for entries in ([make_orientation(6)], [make_orientation(8)], [], [make_orientation(9)])
    )
    attribute, element = map(xmp, XMP_OF_6.values())
    turned = {
        "behind the tables of Huffman": jpeg[:scan] + six + jpeg[scan:],
        "behind the frame": jpeg[:huffman] + six + jpeg[huffman:],
        "behind junk": jpeg[:20] + b"\0\xff\0\xff\xd0" + six + jpeg[20:],
        "behind XMP": put(jpeg, xmp(XMP_OF_6["element"].replace(b"6", b"3")), six),
        "in the first of two": put(jpeg, six, eight),
        "by XMP": put(jpeg, attribute),
        "by XMP, in an element": put(jpeg, element),
        "by XMP behind EXIF that says nothing": put(jpeg, none, make_segment(0xFE, b"x"), attribute),
        "by XMP behind the frame": jpeg[:frame] + attribute + jpeg[frame:],
        "by the last XMP": put(jpeg, xmp(b"<x/>"), element),
    }
    upright = {
        "by EXIF that says 9, whatever XMP says": put(jpeg, nine, attribute),
        "by XMP of 0": put(jpeg, xmp(b'tiff:Orientation="0"')),
        "by XMP with more between": put(jpeg, xmp(b'tiff:Orientation = "6"')),
        "with XMP in another segment": put(jpeg, make_segment(0xE2, XMP + XMP_OF_6["element"])),
    }
    assert dict(zip(turned, read(*turned.values()).orientation, strict=True)) == dict.fromkeys(turned, 6)
    assert dict(zip(upright, read(*upright.values()).orientation, strict=True)) == dict.fromkeys(upright, 1)
    assert {name for name, encoded in (turned | upright).items() if turns(encoded)} == turned.keys()
    for encoded in (turned | upright).values():
        assert tf.io.decode_jpeg(encoded).shape == (40, 60, 3)


@pytest.mark.parametrize("xmp", XMP_OF_6.values(), ids=XMP_OF_6)
def test_a_png_is_turned_by_its_xmp(photo, xmp):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode(errors="ignore"))
    encoded = encode_image(photo.resize((6, 4)), "PNG", pnginfo=text)
    assert read(encoded).orientation == [6]
    assert turns(encoded)


def test_malformed_exif_is_upright_and_no_error(jpeg):
    six = make_orientation(6)
    broken = {
        "of no byte order": b"XX*\0" + make_exif(six)[4:],
        "with a directory behind its end": make_exif(six)[:4] + b"\xff\xff\xff\xff" + make_exif(six)[8:],
        "with a directory before its start": make_exif(six)[:4] + b"\xff\xff\xff\x7f" + make_exif(six)[8:],
        "cut in the header": make_exif(six)[:6],
        "cut in the entry": make_exif(six)[:14],
        "without entries": make_exif(),
        "with an entry behind the last": make_exif()[:8] + b"\0\0" + make_exif(six)[10:],
        "with a 9": make_exif(make_orientation(9)),
        "with a 0": make_exif(make_orientation(0)),
        "with two numbers": make_exif((0x0112, 3, 2, b"\6\0\6\0")),
        "with text": make_exif((0x0112, 2, 2, b"6")),
        "empty": b"",
    }
    encoded = {name: put(jpeg, make_segment(0xE1, EXIF + exif)) for name, exif in broken.items()}
    encoded |= {
        "with a segment longer than the file": put(jpeg, b"\xff\xe1\xff\xff" + EXIF + make_exif()),
        "with a segment shorter than its length": put(jpeg, b"\xff\xe1\0\0"),
        "in a comment": put(jpeg, make_segment(0xFE, EXIF + make_exif(six))),
        "in the pixels": jpeg + make_segment(0xE1, EXIF + make_exif(six)),
        "cut after the first bytes": b"\xff\xd8\xff\xe1",
        "text": b"Exif",
        "nothing": b"",
    }
    assert dict(zip(encoded, read(*encoded.values()).orientation, strict=True)) == dict.fromkeys(encoded, 1)


def test_whatever_the_bytes_are_no_header_is_an_error(jpeg, photo):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    png = encode_image(photo.resize((6, 4)).convert("RGBA"), "PNG", exif=exif)
    sound = [put(jpeg, make_segment(0xE1, EXIF + make_exif(make_orientation(6))))[:150], png[:150]]
    random = np.random.default_rng(0)
    broken = []
    for encoded in sound * 500:
        damaged = bytearray(encoded)
        for _ in range(3):
            damaged[random.integers(2, len(damaged))] = random.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
        broken.append(bytes(damaged[: random.integers(3, len(damaged))]))
    assert set(read(*broken).orientation) <= set(range(1, 9))


def test_a_header_of_endless_parts_is_left_in_the_end(jpeg, photo):
    exif = make_segment(0xE1, EXIF + make_exif(make_orientation(6)))
    assert read(put(jpeg, *[make_segment(0xFE, b"")] * 100_000, exif)).orientation == [1]


def test_a_png_has_its_exif_and_its_alpha_before_the_pixels(photo):
    small = photo.resize((6, 4))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    turned, clear, palette = (
        encode_image(small, "PNG", exif=exif),
        encode_image(small.convert("RGBA"), "PNG"),
        encode_image(small.convert("P"), "PNG", transparency=0, exif=exif),
    )
    headers = read(turned, clear, palette, encode_image(small, "PNG"))
    assert headers.orientation == [8, 1, 8, 1]
    assert headers.has_alpha == [False, True, True, False]
