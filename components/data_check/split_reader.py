"""Reads splits: their ids, labels, hashes, what the images look like, and thumbnails of some."""

import bisect
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from components.data_check.row_writer import FAULTY, SLICES, THUMBNAIL, Reading, write_rows, write_thumbnails
from components.data_check.split import ImageRef, RowColumn, Split
from components.data_check.steps import Place, run_steps
from imagepipe.base import filesystem


def read_splits(readings: Mapping[str, Reading], place: Place) -> dict[str, Split]:
    """Reads the Examples of splits once.

    Args:
        readings: by name of the split.
        place: where it is done; the splits need the files there as long as they are used.
    """
    sources = {name: sorted(filesystem.glob(f"{reading.folder}/*.gz")) for name, reading in readings.items()}
    tasks = [
        (f"{name}-{number:05}.parquet", source, number, readings[name])
        for name, paths in sources.items()
        for number, source in enumerate(paths)
    ]
    files = iter(run_steps(write_rows, tasks, place))
    return {name: _load_split(name, [(source, next(files)) for source in paths]) for name, paths in sources.items()}


def _load_split(name: str, files: Sequence[tuple[str, str]]) -> Split:
    """Returns a split, given pairs of a file of Examples and the file of its rows."""
    rows = [file for _, file in files]
    split = Split(
        ids=RowColumn(rows, "id", lambda index: f"{name}/{index}"),
        sha256=RowColumn(rows, "sha256"),
        labels=RowColumn(rows, "labels"),
        groups=RowColumn(rows, "group"),
    )
    hashes, plain, unreadable = [split.hashes], [split.plain], [split.plain]
    start = 0
    for source, file in files:
        split.files.append((source, start))
        with pq.ParquetFile(file) as parquet:
            metadata = parquet.metadata.metadata
            for columns, values in json.loads(metadata[SLICES.encode()]):
                split.slices.setdefault(tuple(columns), set()).update(map(tuple, values))
            for column, counts in json.loads(metadata[FAULTY.encode()]).items():
                split.faulty[column].update(Counter(counts))
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, ["hash", "plain", "unreadable", "descriptors", "side"])
                for parts, column in ((hashes, "hash"), (plain, "plain"), (unreadable, "unreadable")):
                    parts.append(table[column].to_numpy())
                for place in np.flatnonzero(table["descriptors"].is_valid()).tolist():
                    descriptors = np.frombuffer(table["descriptors"][place].as_py(), np.float32)
                    split.descriptors[start + place] = descriptors
                for place in np.flatnonzero(table["side"].is_valid()).tolist():
                    for column, value in json.loads(table["side"][place].as_py()).items():
                        split.columns[column].append(value)
                    split.column_labels.append(split.labels[start + place])
                start += len(table)
    split.hashes, split.plain = np.concatenate(hashes), np.concatenate(plain)
    split.unreadable = np.flatnonzero(np.concatenate(unreadable))
    return split


def read_thumbnails(
    splits: Mapping[str, Split], feature: str, wanted: Mapping[str, Collection[int]], place: Place
) -> Callable[[ImageRef], np.ndarray | None]:
    """Reads gray thumbnails of some images into files.

    Args:
        splits: by name, from ``read_splits``.
        feature: name of the image's feature.
        wanted: indices of the images by split.
        place: where it is done; the files have to stay there.

    Returns:
        The function from one of these images to its thumbnail, uint8 ``[pixels]``, None if the image is broken.
    """
    tasks, parts = [], []
    for name, indices in wanted.items():
        ascending = np.sort(np.fromiter(indices, np.int64))
        chosen = np.split(ascending, np.searchsorted(ascending, [start for _, start in splits[name].files[1:]]))
        for number, ((source, start), part) in enumerate(zip(splits[name].files, chosen, strict=True)):
            if len(part):
                tasks.append((f"{name}-{number:05}.thumbnails", source, feature, part - start))
                parts.append((name, part))
    files: dict[str, list[tuple[np.ndarray, str]]] = defaultdict(list)
    for (name, part), file in zip(parts, run_steps(write_thumbnails, tasks, place), strict=True):
        files[name].append((part, file))

    def find(image: ImageRef) -> np.ndarray | None:
        name, index = image
        part, file = files[name][bisect.bisect_right(files[name], index, key=lambda item: item[0][0]) - 1]
        row = int(np.searchsorted(part, index))
        data = filesystem.read_part(file, row * THUMBNAIL.itemsize, THUMBNAIL.itemsize)
        (thumbnail,) = np.frombuffer(data, THUMBNAIL)
        return thumbnail["pixels"] if thumbnail["readable"] else None

    return find
