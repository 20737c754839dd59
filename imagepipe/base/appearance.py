"""An image's appearance in a few numbers: for statistics, and to find near-duplicates."""

from math import sqrt
from typing import NamedTuple

import numpy as np
from PIL import Image

THUMBNAIL_SIDE = 32
"""Side of the gray thumbnail that everything here is measured on, in pixels, whatever the image's shape."""

HASH_BITS = 64
_HASH_SIZE = (9, 8)


class Appearance(NamedTuple):
    """Measures of an image, which ingest writes beside it.

    Attributes:
        brightness: mean luma, 0 (black) to 1 (white).
        contrast: standard deviation of luma, 0 (plain) to 0.5.
        dhash: difference hash, 16 hexadecimal digits: one bit for each of 8 x 8 places, set if luma rises to the
            right (N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013). Copies in another size, quality or
            brightness differ in few bits.
    """

    brightness: float
    contrast: float
    dhash: str


def make_thumbnail(image: Image.Image) -> bytes:
    """Returns the gray thumbnail of a gray or RGB image, by the mean of areas: THUMBNAIL_SIDE rows of as many bytes."""
    return image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).convert("L").tobytes()


def measure_appearance(thumbnail: bytes) -> Appearance:
    """Measures a thumbnail from ``make_thumbnail``."""
    small = Image.frombytes("L", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), thumbnail)
    pixels = np.frombuffer(thumbnail, np.uint8).astype(np.int64)
    # Of whole numbers these are exact, and NumPy's own mean and std take five times as long.
    count, total, squares = len(pixels), int(pixels.sum()), int(pixels @ pixels)
    places = np.frombuffer(small.resize(_HASH_SIZE, Image.Resampling.BOX).tobytes(), np.uint8).reshape(_HASH_SIZE[::-1])
    rises = places[:, 1:] > places[:, :-1]
    return Appearance(
        round(total / count / 255, 4),
        round(sqrt(count * squares - total**2) / count / 255, 4),
        np.packbits(rises).tobytes().hex(),
    )
