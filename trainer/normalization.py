"""What pixels are like over a whole split."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_LEVELS = np.arange(256)  # of uint8 pixels


class Statistics(NamedTuple):
    """Of pixels 0 to 255, for red, green and blue each."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]


def channel_statistics(images: Iterable[np.ndarray]) -> Statistics:
    """Computes the mean and the variance of each channel, over all pixels of all images.

    Pixels are counted by level, so that nothing is rounded before the end and the order of the images does not matter.

    Args:
        images: batches of pixels, uint8 ``[n, height, width, 3]``: arrays, or a ``tf.data.Dataset`` of tensors.

    Raises:
        ValueError: if there are no pixels.
    """
    counts = np.zeros((3, len(_LEVELS)), np.int64)
    for batch in images:
        pixels = np.asarray(batch)
        for channel in range(3):
            counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=len(_LEVELS))
    n = int(counts[0].sum())
    if n == 0:
        raise ValueError("there are no images to compute the mean and the variance of")
    sums = [int(total) for total in counts @ _LEVELS]
    squares = [int(total) for total in counts @ _LEVELS**2]
    # Integers without bounds, and one division: exact to the last bit of a float.
    return Statistics(
        tuple(a / n for a in sums), tuple((n * b - a * a) / (n * n) for a, b in zip(sums, squares, strict=True))
    )
