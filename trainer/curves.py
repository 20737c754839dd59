"""Training curves: for a program (JSON) and for a person (PNG)."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")  # a trainer has no display

import itertools

import matplotlib.pyplot as plt

from trainer.fit import History


def write(history: History, folder: Path, metric_name: str) -> None:
    """Writes ``history.json`` and ``curves.png``, of a metric and the loss, into ``folder``, which exists."""
    (folder / "history.json").write_text(json.dumps(history, indent=1) + "\n")

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axis, metric in zip(axes, (metric_name, "loss"), strict=True):
        axis.plot(epochs, [row[metric] for row in history], marker=".", label="train")
        axis.plot(epochs, [row[f"val_{metric}"] for row in history], marker=".", label="eval")
        for before, row in itertools.pairwise(history):
            if before["phase"] != row["phase"]:
                axis.axvline(row["epoch"] - 0.5, color="gray", linestyle=":")
                axis.text(row["epoch"] - 0.4, axis.get_ylim()[1], row["phase"], va="top", color="gray")
        axis.set_xlabel("epoch")
        axis.set_title(metric)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    best = min(history, key=lambda row: row["val_loss"])
    axes[1].plot(best["epoch"], best["val_loss"], "o", mfc="none", ms=12, label="kept")
    for axis in axes:
        axis.legend()
    figure.savefig(folder / "curves.png", dpi=120)
    plt.close(figure)
