"""Checks that bytes are an image, and converts it to a form that every decoder downstream takes.

Pure functions of bytes, on Pillow alone, so that serving takes images in the same way as training did.
"""

import contextlib
import io
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from imagepipe.base.appearance import THUMBNAIL_SIDE, make_thumbnail
from imagepipe.base.kinds import RAW, describe_other, find_format
from imagepipe.base.png import PNG_MAX_SIDE, is_plain_png
from imagepipe.base.samples import has_unknown_range, open_png, reduce_to_8_bits

MAX_PIXELS = 100_000_000
"""Default limit on an image's width x height: 300 MB as RGB. More than cameras have, less than a decompression bomb."""

MAX_BYTES = 256 * 2**20
"""Largest image file: keeps a record far below protobuf's limit of 2 GiB, and the memory of a worker bounded."""

_LOSSY = frozenset({"jpeg", "avif", "heif"})

# Cameras' RAW formats that are TIFFs: DNG has its version, and of Nikon's, Sony's and others the first picture is a
# preview (bit 0 of NewSubfileType) beside the photo (in SubIFDs). Adobe's DNG 1.7, TIFF 6.0 and its supplement 1.
_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706

_ORIENTATION = 0x0112  # EXIF 2.32, tag "Orientation"; 1 is upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# ITU-T T.81, table B.1: the frame headers, of which libjpeg builds all decode the first three (baseline, extended,
# progressive; Huffman), while lossless and arithmetic coding depend on how it was built.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_JPEG_END = 0xD9
# A marker with a segment: neither padding, nor a byte of 0xFF in the data, nor one of those that stand alone.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


class BadImage(ValueError):  # noqa: N818 (the reason why an image is bad, also as a value)
    """The bytes can't be used as an image; the message is the reason."""


class TooManyPixels(BadImage):
    """The image has more pixels than the limit."""


@dataclass(frozen=True, slots=True)
class NormalizedImage:
    """An image that ``tf.io.decode_image`` takes, upright, in gray or RGB of 8 bits.

    Attributes:
        data: the encoded image, JPEG or PNG.
        width: of ``data``, in pixels.
        height: of ``data``, in pixels.
        format: of the original bytes: jpeg, mpo, png, webp, gif, tiff, bmp, avif or heif.
        thumbnail: a gray thumbnail, see ``imagepipe.base.appearance``.
    """

    data: bytes
    width: int
    height: int
    format: str
    thumbnail: bytes


def check_kind(data: bytes) -> str:
    """Returns the format of an image, by its first bytes; refuses what ``normalize`` would refuse without decoding.

    Raises:
        BadImage: empty, larger than MAX_BYTES, or of an unsupported kind.
    """
    if not data:
        raise BadImage("empty file")
    if len(data) > MAX_BYTES:
        raise BadImage(f"file of more than {MAX_BYTES >> 20} MiB")
    name = find_format(data)
    if name is None:
        raise BadImage(describe_other(data))
    return name


def count_pixels(data: bytes) -> int:
    """Returns width x height of an image, which is not decoded.

    Raises:
        BadImage: with the reason, if its header can't be read.
    """
    with _open(data) as (_, image):
        return image.width * image.height


def normalize(data: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int | None = None) -> NormalizedImage:
    """Decodes an image once, to the end, and returns it in a form that TensorFlow's decoder takes.

    A JPEG that is gray or RGB, upright and small enough is returned byte for byte, and so is an opaque 8-bit RGB PNG.
    Everything else becomes RGB: JPEG (quality 95, no chroma subsampling) if the pixels come from a lossy format, else
    PNG. Orientation is applied to the pixels, transparency is laid on white, 16 bits keep their upper 8, and of several
    frames or pages the first is taken.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height, 1 or more; checked before anything is decoded.
        max_side: shrinks, with antialiasing, so that neither side is longer; None keeps the size.

    Raises:
        BadImage: with the reason, whatever is wrong with the bytes.
    """
    with _open(data) as (name, image):
        return _keep(data, name, image, max_pixels, max_side) or _convert(data, name, image, max_side)


def keep_unchanged(data: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int | None = None) -> NormalizedImage | None:
    """Does the first half of ``normalize``: decodes images that it would keep byte for byte, and no others.

    Returns:
        The result of ``normalize``, or None if it would convert the image.

    Raises:
        BadImage: with the reason, as far as the image had to be read to know it.
    """
    with _open(data) as (name, image):
        return _keep(data, name, image, max_pixels, max_side)


def prepare_for_decoder(
    data: bytes, *, max_pixels: int = MAX_PIXELS, decoder_turns: bool = False
) -> tuple[bytes, int, int]:
    """Does as ``normalize`` for a caller who decodes the image next: what is kept byte for byte is not decoded here.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height, 1 or more.
        decoder_turns: whether the decoder turns JPEGs upright. Then these are kept too, and so is CMYK: encoded anew
            they would be other pixels than those that the same decoder makes of the file.

    Returns:
        The encoded image, whose pixels can be broken if these are the original bytes, and its width and height.

    Raises:
        BadImage: with the reason, as far as the image had to be read to know it.
    """
    with _open(data) as (name, image):
        if _can_keep(data, name, image, max_pixels, None) or (
            decoder_turns and name == "jpeg" and _read_jpeg_frame(data) in _COMMON_FRAMES
        ):
            return data, *image.size
        converted = _convert(data, name, image, None)
        return converted.data, converted.width, converted.height


def read_pixels(data: bytes, side: int, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image at one small size, to be looked at or compared rather than kept.

    Args:
        data: the file's bytes.
        side: width and height of the result, in pixels; the aspect ratio is not kept.
        max_pixels: largest width x height; checked before anything is decoded.

    Returns:
        uint8 ``[side, side, 3]``, RGB. A JPEG is decoded at a fraction of its size.

    Raises:
        BadImage: with the reason, whatever is wrong with the bytes.
    """
    with _open(data) as (_, image):
        if image.width * image.height > max_pixels:
            raise TooManyPixels(f"more than {max_pixels / 1e6:,g} megapixels")
        image.draft("RGB", (2 * side, 2 * side))
        image.load()
        return np.asarray(_convert_to_rgb(image).resize((side, side), Image.Resampling.BOX))


def _open_heif(file: io.BytesIO) -> ImageFile.ImageFile:
    try:
        from pi_heif.as_plugin import HeifImageFile  # not above: an extra, which most do without
    except ImportError as error:
        raise BadImage("HEIC needs a package that is not installed: pip install 'imagepipe-tfx[heic]'") from error
    return HeifImageFile(file)


def _open_tiff(file: io.BytesIO) -> ImageFile.ImageFile:
    image = TiffImagePlugin.TiffImageFile(file)
    tags = image.tag_v2
    if _DNG_VERSION in tags or (_SUB_IFDS in tags and int(tags.get(_SUBFILE_TYPE, 0)) & 1):
        raise BadImage(RAW)
    return image


# The plugins are opened directly: Image.open would check images against Pillow's process-wide pixel limit instead of
# ours, and would try every format that Pillow knows, some of which run other programs (EPS).
_OPENERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.jpeg_factory,
    "png": open_png,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "tiff": _open_tiff,
    "bmp": BmpImagePlugin.BmpImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "heif": _open_heif,
}


@contextlib.contextmanager
def _open(data: bytes) -> Iterator[tuple[str, ImageFile.ImageFile]]:
    """Opens an image by its kind, and turns everything that can go wrong with its bytes into a BadImage."""
    name = check_kind(data)
    try:
        with _OPENERS[name](io.BytesIO(data)) as image:
            yield name, image
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage("decoding it takes more memory than there is") from error
    except Exception as error:  # Pillow's plugins raise a dozen classes, from struct.error to ZeroDivisionError
        raise BadImage(_explain(error)) from error


def _keep(
    data: bytes, name: str, image: ImageFile.ImageFile, max_pixels: int, max_side: int | None
) -> NormalizedImage | None:
    if not _can_keep(data, name, image, max_pixels, max_side):
        return None
    width, height = image.size
    # Decoding small, and in gray, reads the file to its end all the same: what can be wrong with a JPEG is in its
    # markers and entropy-coded data; the arithmetic that is skipped can't fail. No-op for PNG.
    image.draft("L", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    image.load()
    return NormalizedImage(data, width, height, _name_format(name, image), make_thumbnail(image))


def _can_keep(data: bytes, name: str, image: ImageFile.ImageFile, max_pixels: int, max_side: int | None) -> bool:
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixels(f"over the limit of {max_pixels / 1e6:,g} megapixels: it has {width * height / 1e6:,.1f}")
    return (
        _is_common(data, name, image) and not _is_too_long(image, max_side) and _read_orientation(image) not in _UPRIGHT
    )


def _convert(data: bytes, name: str, image: ImageFile.ImageFile, max_side: int | None) -> NormalizedImage:
    width, height = image.size
    shrink = _is_too_long(image, max_side)
    if shrink and max_side:
        scale = max_side / max(width, height)
        image.draft(image.mode, (ceil(2 * width * scale), ceil(2 * height * scale)))  # a JPEG of 20 MP decodes as 5
    image.load()
    rgb = _convert_to_rgb(image)
    turn = _UPRIGHT.get(_read_orientation(image))  # after load: the TIFF plugin has turned the pixels itself by then
    if turn is not None:
        rgb = rgb.transpose(turn)
    if shrink and max_side:
        rgb.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    # In lossy WebP the word is there by chance only: then it becomes PNG, which is harmless.
    if name in _LOSSY or (name == "webp" and b"VP8L" not in data):
        rgb.save(encoded, "JPEG", quality=95, subsampling=0)
    elif max(rgb.size) > PNG_MAX_SIDE:
        raise BadImage(f"a side of {max(rgb.size):,} pixels, and decoders take {PNG_MAX_SIDE:,}")
    else:
        rgb.save(encoded, "PNG")
    return NormalizedImage(encoded.getvalue(), *rgb.size, _name_format(name, image), make_thumbnail(rgb))


def _is_too_long(image: ImageFile.ImageFile, max_side: int | None) -> bool:
    return max_side is not None and max(image.size) > max_side


def _name_format(name: str, image: ImageFile.ImageFile) -> str:
    return (image.format or name).lower()


def _is_common(data: bytes, name: str, image: ImageFile.ImageFile) -> bool:
    """Returns whether every decoder gives the same pixels for these bytes."""
    if name == "jpeg":
        return _read_jpeg_frame(data) in _COMMON_FRAMES and image.mode in ("L", "RGB")
    if name == "png":
        return not (image.has_transparency_data or getattr(image, "is_animated", False)) and is_plain_png(data)
    return False


def _read_jpeg_frame(data: bytes) -> int | None:
    """Returns the marker of a JPEG's first frame header; walks over all segments to the end marker, as decoders do.

    Pillow decodes past the end of cut data if enough of the last rows is there; TensorFlow refuses it.
    """
    frame, at = None, 2
    while match := _MARKER.search(data, at):
        marker, at = data[match.end() - 1], match.end()
        if marker == _JPEG_END:
            return frame
        if marker in _FRAMES and frame is None:
            frame = marker
        at += int.from_bytes(data[at : at + 2], "big")
    raise BadImage("truncated image")


def _read_orientation(image: Image.Image) -> int:
    with contextlib.suppress(Exception):  # broken EXIF says nothing about the pixels
        return int(image.getexif().get(_ORIENTATION, 1))
    return 1


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    if has_unknown_range(image):
        reason = (
            "pixels of 32 bits, or with a sign, whose range is not known: convert it to 8 or 16 bits without a sign"
        )
        raise BadImage(reason)
    if image.mode.startswith("I;16"):
        image = reduce_to_8_bits(image)
    if image.mode == "CMYK" and isinstance(image, JpegImagePlugin.JpegImageFile) and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes the ink of every JPEG for inverted, as Adobe writes it
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, struct.error | EOFError) or "truncated" in text.lower():
        return "truncated image"
    return f"broken image: {text[:200] or type(error).__name__}"
