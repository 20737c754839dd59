"""The part of a split's Examples that DataCheck keeps in memory."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

ImageRef: TypeAlias = tuple[str, int]
"""An image: the name of its split, and its index in the split."""

ColumnValue: TypeAlias = str | int | float | None
"""A value of a side feature; None if it is missing."""


@dataclass
class Split:
    """The properties of a split's Examples that the checks need, one entry per Example in the order of the files.

    Attributes:
        ids: the metadata feature, else ``<split>/<index>``.
        sha256: hash of the original file, None if unknown.
        labels: as text; any number per Example.
        groups: by index, of those Examples that have one.
        hashes: difference hashes, 64 bits.
        plain: whether an image is too plain to be compared.
        unreadable: indices of the images that can't be decoded or are missing.
        descriptors: of some images, by index: ``label_errors.compute_descriptors``.
        slices: by columns, the combinations of values that they have, as text; at most one more than
            ``columns.MAX_SLICES``.
        columns: by side feature, its values in every n-th Example.
        faulty: by categorical column, the values that no vocabulary can hold, with the number of their images.
    """

    ids: list[str] = field(default_factory=list)
    sha256: list[str | None] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    groups: dict[int, str] = field(default_factory=dict)
    hashes: list[int] = field(default_factory=list)
    plain: list[bool] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    descriptors: dict[int, np.ndarray] = field(default_factory=dict)
    slices: dict[tuple[str, ...], set[tuple[str, ...]]] = field(default_factory=dict)
    columns: dict[str, list[ColumnValue]] = field(default_factory=lambda: defaultdict(list))
    faulty: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def identify_image(splits: Mapping[str, Split], image: ImageRef) -> dict[str, Any]:
    """Returns an image's split, id and hash, for JSON."""
    name, index = image
    return {"split": name, "id": splits[name].ids[index], "sha256": splits[name].sha256[index]}
