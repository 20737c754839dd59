"""Reads images' headers, as TensorFlow graph ops on a whole batch.

They tell which way is up, whether any pixel is transparent, and whether TensorFlow decodes them as Pillow does. Only
the start of each part of a header is read: the cost depends neither on the images' sizes nor, much, on their number.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

_JPEG, _PNG, _GIF, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM"

_MAX_PARTS = 64  # segments of a JPEG or chunks of a PNG; of cameras and programs some ten come before the pixels
_MAX_METADATA = 2**16  # bytes of EXIF or XMP, as JPEG bounds them
_SEARCHED = 2**16  # bytes of a JPEG, up to which it is searched for metadata before it is walked through
_MAX_ENTRIES = 64  # of EXIF's first directory, which is sorted by tag: the orientation is among the first ten

# ITU-T T.81, table B.1: the first marker; the first kind of segment; the first and the last of the kinds that are a
# marker alone, the last being the end of the image; the start of the pixels.
_SOI, _FIRST_KIND, _MARKERS_ALONE, _EOI, _SOS = b"\xff\xd8", 0xC0, 0xD0, 0xD9, 0xDA
_APP1, _EXIF_NAME = 0xE1, b"Exif\0\0"  # EXIF 2.32, 4.7.2
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"  # XMP specification, part 3, 1.1.3
_METADATA = rb"\C*(?:%s|%s)\C*" % (re.escape(_EXIF_NAME), re.escape(_XMP_NAME))  # \C is any byte
# PNG 3, 11.2 and 11.3: place and values of the color types with alpha; names of chunks.
_COLOR_TYPE, _ALPHA_TYPES = 25, (b"\4", b"\6")
_TRANSPARENT_COLORS, _EXIF_CHUNK, _PIXELS = b"tRNS", b"eXIf", b"IDAT"
_XMP_CHUNK = b"iTXtXML:com.adobe.xmp\0"  # XMP specification, part 3, 1.1.5
# Windows' BITMAPV4HEADER: masks of blue, green and red; of alpha.
_BGR_MASKS, _ALPHA_MASK = b"\0\0\xff\0\0\xff\0\0\xff\0\0\0", b"\0\0\0\xff"
# TIFF 6.0: starts; the orientation's tag; the types of whole numbers.
_LITTLE, _BIG = b"II*\0", b"MM\0*"
_ORIENTATION, _SHORT, _LONG = 0x0112, 3, 4
_XMP_ORIENTATION = r'\A\C*?tiff:Orientation(?:="|>)([0-9])\C*\z'  # as Pillow looks for it


class Headers(NamedTuple):
    """Facts that the header of an image, or of each image of a batch, gives about its pixels.

    Attributes:
        orientation: int32, 1..8 as EXIF 2.32 defines them: of a JPEG or PNG the one in its EXIF, else in its XMP; 1,
            upright, if none is there and sound.
        has_alpha: bool, whether it is a PNG or BMP that may have transparent pixels.
        is_jpeg: bool.
        is_decodable: bool, whether it is a JPEG, a PNG, a GIF or a BMP of a kind that TensorFlow decodes as Pillow
            does. (Of a BMP with a palette it would take the indices for grays.)
    """

    orientation: tf.Tensor
    has_alpha: tf.Tensor
    is_jpeg: tf.Tensor
    is_decodable: tf.Tensor


class _Walk(NamedTuple):
    """A walk over the parts of each image's header.

    Attributes:
        at: int32 ``[n]``, where the next part starts; the image's size if the walk has ended.
        exif_at: int32 ``[n]``, where the EXIF starts.
        exif_size: int32 ``[n]``, its length; 0 as long as none was seen.
        xmp_at: int32 ``[n]``, where the XMP starts.
        xmp_size: int32 ``[n]``, its length; 0 as long as none was seen.
        has_transparent_colors: bool ``[n]``, of a PNG.
    """

    at: tf.Tensor
    exif_at: tf.Tensor
    exif_size: tf.Tensor
    xmp_at: tf.Tensor
    xmp_size: tf.Tensor
    has_transparent_colors: tf.Tensor


def read_headers(encoded: tf.Tensor) -> Headers:
    """Reads the headers of images, up to the pixels.

    Args:
        encoded: string ``[n]``, images of any kind, or other bytes.

    Returns:
        The headers, ``[n]`` each. Nothing in them is an error: what can't be read says nothing.
    """
    size = tf.strings.length(encoded)
    is_jpeg, is_png, is_gif = (_has(encoded, tf.zeros_like(size), magic) for magic in (_JPEG, _PNG, _GIF))
    nothing = tf.zeros_like(size)
    # Most small JPEGs have neither EXIF nor XMP: to search all their bytes takes less time than a walk.
    is_large = size > _SEARCHED
    has_metadata = tf.strings.regex_full_match(tf.where(is_jpeg & ~is_large, encoded, ""), _METADATA)
    start = tf.where(is_jpeg & (is_large | has_metadata), len(_SOI), size)
    walk = _Walk(start, nothing, nothing, nothing, nothing, tf.zeros_like(is_png))
    walk = _walk(encoded, size, walk, _read_segment)
    walk = _walk(encoded, size, walk._replace(at=tf.where(~is_png, size, len(_PNG))), _read_chunk)
    exif = tf.strings.substr(encoded, walk.exif_at, tf.clip_by_value(walk.exif_size, 0, _MAX_METADATA))
    orientation = tf.cond(tf.reduce_any(walk.exif_size > 0), lambda: _read_exif(exif), lambda: nothing)
    xmp_size = tf.where(orientation == 0, tf.clip_by_value(walk.xmp_size, 0, _MAX_METADATA), 0)
    xmp = tf.strings.substr(encoded, walk.xmp_at, xmp_size)
    orientation = tf.cond(
        tf.reduce_any(xmp_size > 0), lambda: tf.maximum(orientation, _read_xmp(xmp)), lambda: orientation
    )
    is_bmp, is_transparent_bmp = _read_bmp(encoded)
    color_type = _read(encoded, tf.fill(tf.shape(size), _COLOR_TYPE), 1)
    is_transparent_png = is_png & ((color_type == _ALPHA_TYPES[0]) | (color_type == _ALPHA_TYPES[1]))
    has_alpha = is_transparent_png | walk.has_transparent_colors | is_transparent_bmp
    return Headers(tf.maximum(orientation, 1), has_alpha, is_jpeg, is_jpeg | is_png | is_gif | is_bmp)


def _walk(
    encoded: tf.Tensor, size: tf.Tensor, walk: _Walk, read_part: Callable[[tf.Tensor, _Walk], tuple[_Walk, tf.Tensor]]
) -> _Walk:
    """Reads part after part; ``read_part`` returns the walk behind the part, and whether it was the last."""

    def go_on(walk: _Walk) -> list[_Walk]:
        after, is_last = read_part(encoded, walk)
        return [after._replace(at=tf.where(is_last, size, tf.minimum(tf.maximum(after.at, walk.at + 1), size)))]

    (walk,) = tf.while_loop(lambda walk: tf.reduce_any(walk.at < size), go_on, [walk], maximum_iterations=_MAX_PARTS)
    return walk


def _read_segment(encoded: tf.Tensor, walk: _Walk) -> tuple[_Walk, tf.Tensor]:
    """Reads a JPEG's segment: 0xFF, its kind, its length, which counts itself too, and the name of its content.

    What is none, such as padding, is passed over byte by byte.
    """
    head = _decode(_read(encoded, walk.at, 4), 4)
    is_marker, kind, length = head[:, 0] == 0xFF, head[:, 1], _join(head[:, 2:])
    is_segment = is_marker & (kind >= _FIRST_KIND) & ~((kind >= _MARKERS_ALONE) & (kind <= _EOI)) & (kind < 0xFF)
    is_app1 = is_segment & (kind == _APP1)
    is_exif = is_app1 & (walk.exif_size == 0) & _has(encoded, walk.at + 4, _EXIF_NAME)
    is_xmp = is_app1 & _has(encoded, walk.at + 4, _XMP_NAME)
    return _Walk(
        tf.where(is_segment, walk.at + 2 + length, walk.at + 1),
        tf.where(is_exif, walk.at + 4 + len(_EXIF_NAME), walk.exif_at),
        tf.where(is_exif, length - 2 - len(_EXIF_NAME), walk.exif_size),
        tf.where(is_xmp, walk.at + 4 + len(_XMP_NAME), walk.xmp_at),
        tf.where(is_xmp, length - 2 - len(_XMP_NAME), walk.xmp_size),
        walk.has_transparent_colors,
    ), is_marker & ((kind == _EOI) | (kind == _SOS))


def _read_chunk(encoded: tf.Tensor, walk: _Walk) -> tuple[_Walk, tf.Tensor]:
    """Reads a PNG's chunk: the length of its content, its name, its content, a checksum."""
    length, name = _join(_decode(_read(encoded, walk.at, 4), 4)), _read(encoded, walk.at + 4, 4)
    is_exif, is_xmp = name == _EXIF_CHUNK, _has(encoded, walk.at + 4, _XMP_CHUNK)
    return _Walk(
        walk.at + 12 + length,
        tf.where(is_exif, walk.at + 8, walk.exif_at),
        tf.where(is_exif, length, walk.exif_size),
        tf.where(is_xmp, walk.at + 8, walk.xmp_at),
        tf.where(is_xmp, length, walk.xmp_size),
        walk.has_transparent_colors | (name == _TRANSPARENT_COLORS),
    ), name == _PIXELS


def _read_exif(exif: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in each EXIF, a TIFF file, as int32 ``[n]``: 1 if it is unsound, 0 if there is none."""
    start = tf.zeros_like(tf.strings.length(exif))
    is_little, is_big = _has(exif, start, _LITTLE), _has(exif, start, _BIG)

    def join(numbers: tf.Tensor) -> tf.Tensor:
        return tf.where(is_little[:, None], _join(tf.reverse(numbers, [-1])), _join(numbers))

    directory_at = join(_decode(_read(exif, start + 4, 4), 4)[:, None])[:, 0]
    directory = _decode(_read(exif, directory_at, 2 + 12 * _MAX_ENTRIES), 2 + 12 * _MAX_ENTRIES)
    entries = tf.reshape(directory[:, 2:], [-1, _MAX_ENTRIES, 12])  # a tag, a type, a count and a value
    kind = join(entries[..., 2:4])
    value = tf.where(kind == _SHORT, join(entries[..., 8:10]), join(entries[..., 8:12]))
    is_orientation = (
        (is_little | is_big)[:, None]
        & (tf.range(_MAX_ENTRIES) < join(directory[:, None, :2]))
        & (join(entries[..., :2]) == _ORIENTATION)
    )
    is_number = ((kind == _SHORT) | (kind == _LONG)) & (join(entries[..., 4:8]) == 1)
    value = tf.where(is_number & (value >= 1) & (value <= 8), value, 1)
    return tf.reduce_max(tf.where(is_orientation, value, 0), axis=1)


def _read_xmp(xmp: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in each XMP, as int32 ``[n]``; 0 if there is none, or an unsound one."""
    digit = tf.strings.regex_replace(xmp, _XMP_ORIENTATION, r"\1")
    is_orientation = tf.strings.regex_full_match(digit, "[1-8]")
    return tf.strings.to_number(tf.where(is_orientation, digit, "0"), tf.int32)


def _read_bmp(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether it is a BMP of 24 or 32 bits in the order blue, green, red; and whether one with alpha."""
    start = _decode(tf.strings.substr(encoded, 0, 34), 34)
    header_size, bits, compression = (_join(tf.reverse(start[:, a:b], [-1])) for a, b in ((14, 18), (28, 30), (30, 34)))
    masks = tf.fill(tf.shape(bits), 54)
    is_masked = (bits == 32) & (compression == 3) & _has(encoded, masks, _BGR_MASKS)
    is_plain = ((bits == 24) | (bits == 32)) & (compression == 0)
    is_bmp = (tf.strings.substr(encoded, 0, 2) == _BMP) & (header_size >= 40) & (is_plain | is_masked)
    has_alpha_mask = (header_size >= 56) & _has(encoded, masks + len(_BGR_MASKS), _ALPHA_MASK)
    return is_bmp, is_bmp & is_masked & has_alpha_mask


def _read(strings: tf.Tensor, at: tf.Tensor, count: int) -> tf.Tensor:
    """Returns ``count`` bytes from ``at`` on, int32 ``[n]``, fewer or none where the string ends before; string."""
    at = tf.clip_by_value(at, 0, tf.strings.length(strings))
    return tf.strings.substr(strings, at, tf.fill(tf.shape(at), count))


def _has(strings: tf.Tensor, at: tf.Tensor, text: bytes) -> tf.Tensor:
    return _read(strings, at, len(text)) == text


def _decode(strings: tf.Tensor, count: int) -> tf.Tensor:
    """Returns bytes as int32 ``[n, count]``; zeros beyond the end of a string."""
    return tf.cast(tf.io.decode_raw(strings, tf.uint8, fixed_length=count), tf.int32)


def _join(numbers: tf.Tensor) -> tf.Tensor:
    """Returns 2 or 4 bytes ``[..., k]``, the highest first, as int32 ``[...]``; negative from 2**31 on."""
    weights = [2**24, 2**16, 2**8, 1][-numbers.shape[-1] :]
    return tf.reduce_sum(numbers * weights, axis=-1)
