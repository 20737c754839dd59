"""Images whose samples don't have 8 bits, in what Pillow gives of them otherwise than libpng and libtiff do."""

import io

import numpy as np
from PIL import Image, PngImagePlugin

# TIFF 6.0
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

_BIT_DEPTH = 24  # place of the byte in a PNG


def open_png(file: io.BytesIO) -> PngImagePlugin.PngImageFile:
    """Opens a PNG, its transparent color (tRNS) on the scale of 8 bits, to which Pillow brings the pixels alone.

    Of RGB in 16 bits, colors that differ in their lower bits alone are transparent together. Gray in 16 bits keeps its
    scale, see ``reduce_to_8_bits``.
    """
    image = PngImagePlugin.PngImageFile(file)
    bits, color = file.getbuffer()[_BIT_DEPTH], image.info.get("transparency")
    if image.mode == "L" and isinstance(color, int) and bits < 8:
        image.info["transparency"] = color * 255 // (2**bits - 1)
    if image.mode == "RGB" and isinstance(color, tuple) and bits > 8:
        image.info["transparency"] = tuple(value >> 8 for value in color)
    return image


def has_unknown_range(image: Image.Image) -> bool:
    """Returns whether nobody knows which samples of an image are black and white: those of 32 bits, or with a sign."""
    return image.mode in ("F", "I") or _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ())


def reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """Returns the upper 8 bits of gray in 12 or 16, as libpng does, with transparency if it has any."""
    samples, tags = np.asarray(image), getattr(image, "tag_v2", {})
    gray = (samples >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
    reduced = Image.fromarray(255 - gray if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else gray)
    if (color := image.info.get("transparency")) is not None:
        reduced.putalpha(Image.fromarray(np.where(samples == color, 0, 255).astype(np.uint8)))
    return reduced
