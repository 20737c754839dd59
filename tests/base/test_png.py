"""PNGs that Pillow decodes and libpng, which is TensorFlow's decoder, does not."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.images import BadImage, normalize, prepare_for_decoder

ROWS = b"".join(bytes((filter_,)) + bytes(range(3, 15)) for filter_ in range(5))  # 4 x 5 pixels
SHAPE = (4, 5)


def make_chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def make_header(width, height):
    return make_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def make_png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


HEADER, END = make_header(*SHAPE), make_chunk(b"IEND", b"")
PIXELS = make_chunk(b"IDAT", zlib.compress(ROWS))


def is_decoded(data):
    try:
        return bool(tf.io.decode_image(data).shape)
    except tf.errors.InvalidArgumentError:
        return False


@pytest.mark.parametrize(
    "chunks",
    [
        (HEADER, PIXELS, END),
        (HEADER, make_chunk(b"tEXt", b"Title\0a"), PIXELS, make_chunk(b"prVt", b"own"), END),
        (HEADER, make_chunk(b"PLTE", bytes(6)), PIXELS, END),
        (HEADER, make_chunk(b"IDAT", b""), *(make_chunk(b"IDAT", bytes((b,))) for b in zlib.compress(ROWS)), END),
    ],
    ids=["plain", "others", "palette", "byte by byte"],
)
def test_what_every_decoder_takes_is_kept_byte_for_byte(chunks):
    data = make_png(*chunks)
    assert is_decoded(data)
    assert normalize(data).data is data


@pytest.mark.parametrize(
    "chunks",
    [
        (HEADER, make_chunk(b"ABCD", b""), PIXELS, END),
        (HEADER, HEADER, PIXELS, END),
        (make_chunk(b"tEXt", b"Title\0a"), HEADER, PIXELS, END),
    ],
    ids=["unknown critical chunk", "two headers", "header not first"],
)
def test_what_libpng_refuses_is_converted_if_pillow_decodes_it(chunks):
    data = make_png(*chunks)
    assert not is_decoded(data)
    (prepared, *size), plain = prepare_for_decoder(data), make_png(HEADER, PIXELS, END)
    assert tuple(size) == SHAPE
    assert np.array_equal(tf.io.decode_image(prepared), tf.io.decode_image(plain))
    assert normalize(data).data == prepared


@pytest.mark.parametrize("row", [0, 2, 4])
def test_a_filter_that_there_is_not_is_found_in_any_row(row):
    rows = bytearray(ROWS)
    rows[row * len(ROWS) // 5] = 5
    data = make_png(HEADER, make_chunk(b"IDAT", zlib.compress(rows)), END)
    assert not is_decoded(data)
    with pytest.raises(BadImage, match="broken image"):
        prepare_for_decoder(data)


def test_filters_are_found_behind_the_first_megabyte():
    width, height = 1000, 1000
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    header = make_header(width, height)
    assert normalize(data := make_png(header, make_chunk(b"IDAT", zlib.compress(rows)), END)).data is data
    rows[[500, 999], 0] = 4, 9
    with pytest.raises(BadImage, match="broken image"):
        prepare_for_decoder(make_png(header, make_chunk(b"IDAT", zlib.compress(rows)), END))


@pytest.mark.parametrize("shape", [(1_000_001, 1), (1, 1_000_001)])
def test_a_side_that_libpng_refuses_is_refused_unless_it_is_shrunk(shape):
    width, height = shape
    pixels = make_chunk(b"IDAT", zlib.compress(bytes((1 + 3 * width) * height)))
    data = make_png(make_header(*shape), pixels, END)
    assert not is_decoded(data)
    with pytest.raises(BadImage, match="a side of 1,000,001 pixels"):
        prepare_for_decoder(data)
    assert is_decoded(normalize(data, max_side=1000).data)
