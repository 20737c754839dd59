"""A split's Examples as the checks need them: a row for each, whose columns stay in files."""

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import pyarrow.parquet as pq

ImageRef: TypeAlias = tuple[str, int]
"""An image: the name of its split, and its index in the split."""

ColumnValue: TypeAlias = str | int | float | None
"""A value of a side feature; None if it is missing."""

MAX_SLICES = 200
"""Maximum number of a column's values that the evaluation slices by: each costs the Evaluator time and memory."""

T = TypeVar("T")


class RowColumn(Sequence[T]):
    """A column of Parquet files, of which memory holds the values of one row group.

    Reading it from the start to the end, or at ascending indices, reads each row group once.

    Args:
        files: in the order of the rows.
        name: of the column.
        make_default: from the index of a row to the value that stands for null.
    """

    def __init__(self, files: Sequence[str], name: str, make_default: Callable[[int], T] | None = None):
        self._name, self._make_default = name, make_default
        self._groups: list[tuple[str, int]] = []
        self._starts = [0]
        for file in files:
            metadata = pq.read_metadata(file)
            for number in range(metadata.num_row_groups):
                self._groups.append((file, number))
                self._starts.append(self._starts[-1] + metadata.row_group(number).num_rows)
        self._cached: tuple[int, list[T]] = (-1, [])

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._starts, index) - 1
        if self._cached[0] != number:
            self._cached = (number, self._read(number))
        return self._cached[1][index - self._starts[number]]

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._groups)):
            yield from self._read(number)

    def _read(self, number: int) -> list[T]:
        file, group = self._groups[number]
        with pq.ParquetFile(file) as parquet:
            values: list[T] = parquet.read_row_group(group, [self._name])[self._name].to_pylist()
        if self._make_default:
            start = self._starts[number]
            return [self._make_default(start + i) if value is None else value for i, value in enumerate(values)]
        return values


@dataclass
class Split:
    """The properties of a split's Examples that the checks need, in the order of the files.

    Those with a value per Example that is no number are read from files when they are asked for.

    Attributes:
        ids: the metadata feature, else ``<split>/<index>``.
        sha256: hash of the original file, None if unknown.
        labels: as text; any number per Example.
        groups: None of an Example that has none; empty if no Example has one.
        hashes: difference hashes, uint64 ``[n]``.
        plain: whether an image is too plain to be compared, bool ``[n]``.
        unreadable: indices of the images that can't be decoded or are missing.
        descriptors: of some images, by index: ``label_errors.compute_descriptors``.
        slices: by columns, the combinations of values that they have, as text; at most one more than
            MAX_SLICES.
        columns: by side feature, its values in every n-th Example.
        column_labels: labels of these Examples.
        faulty: by categorical column, the values that no vocabulary can hold, with the number of their images.
        files: of the Examples, with the index of the first Example in each.
    """

    ids: Sequence[str] = field(default_factory=list)
    sha256: Sequence[str | None] = field(default_factory=list)
    labels: Sequence[Sequence[str]] = field(default_factory=list)
    groups: Sequence[str | None] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    plain: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    unreadable: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    descriptors: dict[int, np.ndarray] = field(default_factory=dict)
    slices: dict[tuple[str, ...], set[tuple[str, ...]]] = field(default_factory=dict)
    columns: dict[str, list[ColumnValue]] = field(default_factory=lambda: defaultdict(list))
    column_labels: list[Sequence[str]] = field(default_factory=list)
    faulty: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    files: list[tuple[str, int]] = field(default_factory=list)

    @cached_property
    def label_counts(self) -> Counter[str]:
        """Number of images of each label; one that an image has twice counts once."""
        return Counter(label for labels in self.labels for label in dict.fromkeys(labels))


def take(values: Sequence[T], indices: Iterable[int]) -> dict[int, T]:
    """Returns some values of a column by their indices, with each part of its files read once."""
    return {index: values[index] for index in sorted(indices)}


def identify_images(splits: Mapping[str, Split], images: Iterable[ImageRef]) -> dict[ImageRef, dict[str, Any]]:
    """Returns split, id and hash of images, for JSON."""
    indices: dict[str, set[int]] = defaultdict(set)
    for name, index in images:
        indices[name].add(index)
    identified: dict[ImageRef, dict[str, Any]] = {}
    for name, wanted in indices.items():
        ids, hashes = take(splits[name].ids, wanted), take(splits[name].sha256, wanted)
        identified |= {(name, i): {"split": name, "id": ids[i], "sha256": hashes[i]} for i in wanted}
    return identified
