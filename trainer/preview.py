"""What augmentation does to some images, for a person to look at."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")  # a trainer has no display

import matplotlib.pyplot as plt
import numpy as np


def write(images: np.ndarray, augmented: np.ndarray, path: Path) -> None:
    """Draws a row for each image: the original, then what training may see instead.

    Args:
        images: uint8 ``[n, height, width, 3]``.
        augmented: uint8 ``[n, m, height, width, 3]``, m variants of each image.
        path: of the PNG, in a folder that exists.
    """
    rows, columns = len(images), 1 + augmented.shape[1]
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 * columns, 1.6 * rows + 0.5), layout="constrained", squeeze=False
    )
    figure.suptitle("Augmentation: each image, and what training may see instead")
    for row, original, variants in zip(axes, images, augmented, strict=True):
        for axis, pixels in zip(row, (original, *variants), strict=True):
            axis.imshow(pixels)
            axis.set_axis_off()
    axes[0, 0].set_title("original")
    for number, axis in enumerate(axes[0, 1:], 1):
        axis.set_title(f"{number}")
    figure.savefig(path, dpi=120)
    plt.close(figure)
