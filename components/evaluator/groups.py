"""Groups of images (of a patient, a burst, a product): what intervals and paired tests count where there are any.

Images of a group are alike: a model tends to be right about all of them or about none, so that a hundred photos of one
patient say hardly more than one. Taken as independent, they make intervals too narrow, and chance significant.
"""

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from imagepipe.base.features import read_group

RECORD_HASH = "_record_hash"
"""Feature that the Evaluator adds to each Example: a hash of its bytes, as from ``hash_record``."""

MAX_GROUPS = 1_000
"""More groups are put together by their hash into so many: what is left is as independent, and memory is bounded."""


def extract_group(element: Any, feature: str) -> int | None:
    """Returns a hash of an example's group from TFMA's ``StandardMetricInputs``; None if it has no group.

    The hash has 63 bits: Beam's integers have a sign.
    """
    values = (element.features or {}).get(feature)
    group = read_group(None if values is None else np.ravel(values).tolist())
    return hash_record(repr(group).encode()) if group else None


def extract_unit(element: Any, feature: str) -> int:
    """Returns the hash of an example's group; of one without a group its own, which is the same in each evaluation."""
    group = extract_group(element, feature)
    return int(np.ravel(element.features[RECORD_HASH])[0]) if group is None else group


def hash_record(record: bytes) -> int:
    """Returns a hash of 63 bits."""
    return int.from_bytes(hashlib.blake2b(record, digest_size=8).digest(), "big") >> 1


class GroupSums:
    """Sums of named numbers by group; more than ``MAX_GROUPS`` groups are put together."""

    def __init__(self) -> None:
        self._by_key: dict[int, dict[Hashable, float]] = {}
        self._is_folded = False

    def add(self, group: int, numbers: Mapping[Any, float]) -> None:
        """Adds an image's numbers to those of its group."""
        sums = self._by_key.setdefault(group % MAX_GROUPS if self._is_folded else group, {})
        for name, number in numbers.items():
            sums[name] = sums.get(name, 0) + number
        if len(self._by_key) > MAX_GROUPS:
            self._fold()

    def merge(self, other: "GroupSums") -> None:
        """Adds other sums, which stay unchanged."""
        if other._is_folded and not self._is_folded:
            self._fold()
        for group, numbers in other._by_key.items():
            self.add(group, numbers)

    def list_sums(self) -> list[dict[Any, float]]:
        """Returns the sums of each group, in an order that doesn't depend on that in which they were added."""
        return [self._by_key[key] for key in sorted(self._by_key)]

    def _fold(self) -> None:
        groups, self._by_key, self._is_folded = self._by_key, {}, True
        for group, numbers in groups.items():
            self.add(group, numbers)


def merge_groups(sums: Iterable[GroupSums]) -> GroupSums:
    """Returns the sums of all; none of them is changed."""
    merged = GroupSums()
    for sums_by_group in sums:
        merged.merge(sums_by_group)
    return merged
