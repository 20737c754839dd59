"""Combining elements with parts of them left out, for a jackknife."""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import apache_beam as beam

_MAX_GROUPS = 64
_PARTS = 20


class Part(NamedTuple):
    """Number of elements of a part; their accumulator, another CombineFn's."""

    size: int
    accumulator: Any


class Parts(NamedTuple):
    """Parts by the hash of their group; if ``is_folded``, of many groups each, by number."""

    by_key: dict[int, Part]
    is_folded: bool


class Combined(NamedTuple):
    """Outputs of a CombineFn.

    Attributes:
        total: of all elements.
        sizes: number of elements of each part; none if there is only one part.
        without: of the elements without that part, for each.
    """

    total: Any
    sizes: list[int]
    without: list[Any]


class LeaveOneOutFn(beam.CombineFn):
    """Combines all elements by another CombineFn, and for each part of them all but those of the part.

    A part is a group, so that no group is torn apart. More than ``_MAX_GROUPS`` groups are put together by their hash,
    as good as at random, into ``_PARTS`` parts: Kott, P. S. (2001): The delete-a-group jackknife. Journal of Official
    Statistics 17 (4), 521-526.

    Elements are pairs (hash of the group, input of the other CombineFn). The output is ``Combined``.
    """

    def __init__(self, combine_fn: beam.CombineFn):
        self._combine_fn = combine_fn

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Sets up the other CombineFn."""
        self._combine_fn.setup(*args, **kwargs)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Tears down the other CombineFn."""
        self._combine_fn.teardown(*args, **kwargs)

    def create_accumulator(self) -> Parts:
        """Returns no part."""
        return Parts({}, False)

    def add_input(self, accumulator: Parts, element: tuple[int, Any]) -> Parts:
        """Adds an element to the part of its group."""
        group, value = element
        by_key, key = accumulator.by_key, group % _PARTS if accumulator.is_folded else group
        size, part = by_key.get(key) or Part(0, self._combine_fn.create_accumulator())
        by_key[key] = Part(size + 1, self._combine_fn.add_input(part, value))
        return self._fold(accumulator) if len(by_key) > _MAX_GROUPS else accumulator

    def merge_accumulators(self, accumulators: Iterable[Parts]) -> Parts:
        """Merges part by part."""
        several = list(accumulators)
        is_folded = any(parts.is_folded for parts in several)
        if is_folded:
            several = [self._fold(parts) for parts in several]
        merged = Parts(self._merge_by_key(item for parts in several for item in parts.by_key.items()), is_folded)
        return self._fold(merged) if len(merged.by_key) > _MAX_GROUPS else merged

    def compact(self, accumulator: Parts) -> Parts:
        """Compacts each part."""
        by_key = {key: Part(size, self._combine_fn.compact(part)) for key, (size, part) in accumulator.by_key.items()}
        return accumulator._replace(by_key=by_key)

    def extract_output(self, accumulator: Parts) -> Combined:
        """Returns the outputs: of all, and without each part."""
        parts = [accumulator.by_key[key] for key in sorted(accumulator.by_key)]
        nothing = Part(0, self._combine_fn.create_accumulator())
        starts = list(itertools.accumulate(parts, self._merge, initial=nothing))
        ends = list(itertools.accumulate(reversed(parts), self._merge, initial=nothing))[::-1]
        rest = [self._merge(*pair) for pair in zip(starts[:-1], ends[1:], strict=True)] if len(parts) > 1 else []
        total, *without = (self._combine_fn.extract_output(part.accumulator) for part in (starts[-1], *rest))
        return Combined(total, [part.size for part in parts] if rest else [], without)

    def _fold(self, parts: Parts) -> Parts:
        if parts.is_folded:
            return parts
        return Parts(self._merge_by_key((group % _PARTS, part) for group, part in parts.by_key.items()), True)

    def _merge_by_key(self, items: Iterable[tuple[int, Part]]) -> dict[int, Part]:
        merged: dict[int, Part] = {}
        for key, part in items:
            merged[key] = self._merge(merged.get(key) or Part(0, self._combine_fn.create_accumulator()), part)
        return merged

    def _merge(self, one: Part, other: Part) -> Part:
        # Merging may change the first accumulator.
        fresh = self._combine_fn.create_accumulator()
        accumulator = self._combine_fn.merge_accumulators([fresh, one.accumulator, other.accumulator])
        return Part(one.size + other.size, accumulator)
