"""The training images that are most like an image, by what a frozen backbone sees (the component Features)."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from imagepipe.base.tfrecord import read_artifact, read_bytes_feature
from trainer.feature_file import read_features

_SHOWN = 4
_AT_ONCE = 256


def find_neighbours(features: Path, examples: Path, wanted: set[str]) -> dict[str, list[str]]:
    """Finds the nearest training images of some images, by cosine.

    Args:
        features: the file of the component Features.
        examples: the folder of the Examples that it is about.
        wanted: hashes of images.

    Returns:
        By hash, those of up to four training images, the nearest first, the image itself left out.
    """
    images, rows = read_features(features)
    hashes = {split: list(_read_hashes(examples / f"Split-{split}")) for split in {split for split, _ in images}}
    names = [hashes[split][index] for split, index in images]
    vectors = rows.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6
    train = [place for place, (split, _) in enumerate(images) if split == "train"]
    asked = [place for place, name in enumerate(names) if name in wanted]
    neighbours: dict[str, list[str]] = {}
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        nearest = np.argsort(-(vectors[some] @ vectors[train].T), axis=1)[:, : _SHOWN + 1]
        for place, row in zip(some, nearest, strict=True):
            others = [names[train[one]] for one in row if names[train[one]] != names[place]]
            neighbours[names[place]] = others[:_SHOWN]
    return neighbours


def _read_hashes(split: Path) -> Iterator[str]:
    for record in chain.from_iterable(read_artifact(str(split))):
        values = read_bytes_feature(record, "sha256")
        yield values[0].decode() if values else ""
