"""Images on whose present label a person has decided: they are not asked about again."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from components.data_check.split import ImageRef, Split, take
from imagepipe.base.decisions import Label


def find_decided(splits: Mapping[str, Split], given: Mapping[str, Label]) -> set[ImageRef]:
    """Returns the images that have the label that a person gave them.

    Args:
        splits: by name.
        given: by the image's hash the label, see ``imagepipe.base.decisions.read_given_labels``.
    """
    decided: set[ImageRef] = set()
    for name, split in splits.items() if given else ():
        hashes = {index: sha256 for index, sha256 in enumerate(split.sha256) if sha256 in given}
        for index, labels in take(split.labels, hashes).items():
            if _is_same(given[hashes[index] or ""], labels):
                decided.add((name, index))
    return decided


def list_undecided(groups: Sequence[Sequence[ImageRef]], decided: Collection[ImageRef]) -> list[Sequence[ImageRef]]:
    """Returns the groups with an image that nobody has decided on: who kept all of a group wants all of it."""
    return [group for group in groups if not all(image in decided for image in group)]


def _is_same(given: Label, labels: Sequence[str]) -> bool:
    if isinstance(given, int | float):  # a record has numbers in 32 bits
        return len(labels) == 1 and _to_float32(labels[0]) == np.float32(given)
    return sorted(labels) == sorted(given if isinstance(given, list) else [str(given)])


def _to_float32(text: str) -> np.float32 | None:
    try:
        return np.float32(text)
    except ValueError:
        return None
