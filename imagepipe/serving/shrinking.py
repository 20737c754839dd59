"""Photos for services that take small requests only: shrunk, but never below what the model sees."""

import io
from math import ceil, sqrt

from PIL import Image

from imagepipe.base.images import normalize

_STEP = 0.8  # of the sides, while the encoded image is still too large
_QUALITY = 95  # of JPEG, as in imagepipe.base.images


def shrink_image(data: bytes, max_bytes: int, least: tuple[int, int]) -> bytes | None:
    """Returns an image as a JPEG of at most ``max_bytes``, upright, with its aspect ratio.

    Args:
        data: an encoded image, of any format that ``imagepipe ingest`` takes.
        max_bytes: the limit.
        least: height and width that the model sees: neither side becomes shorter, so that the model loses nothing.

    Returns:
        The JPEG; None if there is none that is small enough.

    Raises:
        BadImage: if it can't be decoded.
    """
    upright = normalize(data).data
    with Image.open(io.BytesIO(upright), formats=("JPEG", "PNG")) as opened:
        is_lossless = opened.format == "PNG"
        image = opened.convert("RGB")
    smallest = min(1.0, max(least[0] / image.height, least[1] / image.width))
    scale = 1.0 if is_lossless else sqrt(max_bytes / len(upright))
    while True:
        scale = min(1.0, max(scale, smallest))
        encoded = _encode(image, scale)
        if len(encoded) <= max_bytes:
            return encoded
        if scale == smallest:
            return None
        scale *= _STEP


def _encode(image: Image.Image, scale: float) -> bytes:
    if scale < 1:
        size = (ceil(image.width * scale), ceil(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue()
