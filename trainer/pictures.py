"""Pictures of a training: its curves, and the augmented images."""

import itertools
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # a trainer has no display

import matplotlib.pyplot as plt
import numpy as np

from trainer.schedule import History, find_best


def draw_curves(history: History, metric_name: str, path: Path) -> None:
    """Draws a metric and the loss over the epochs into a PNG, in a folder that exists."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, metric in zip(axes, (metric_name, "loss"), strict=True):
        axis.plot(epochs, [row[metric] for row in history], marker=".", label="train")
        axis.plot(epochs, [row[f"val_{metric}"] for row in history], marker=".", label="validation")
        for previous, row in itertools.pairwise(history):
            if previous["phase"] != row["phase"]:
                axis.axvline(row["epoch"] - 0.5, color="gray", linestyle=":")
                axis.text(row["epoch"] - 0.4, axis.get_ylim()[1], row["phase"], va="top", color="gray")
        axis.set_xlabel("epoch")
        axis.set_title(metric)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    best = find_best(history)
    axes[1].plot(best["epoch"], best["val_loss"], "o", mfc="none", ms=12, label="kept")
    for axis in axes:
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_preview(images: np.ndarray, augmented: np.ndarray, path: Path) -> None:
    """Draws one row per image: the original, then augmented variants as training sees them.

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
