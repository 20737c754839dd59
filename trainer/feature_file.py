"""The file of features: one row per image, in 16 bits. Reading it needs neither TensorFlow nor the network."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAX_IMAGES = 200_000
"""Maximum number of images whose features a pipeline computes; of more, those of a sample by hash."""

_ROW_GROUP = 4096  # images

_log = logging.getLogger("trainer")


def write_features(rows: Iterator[tuple[str, int, np.ndarray]], width: int, path: Path) -> int:
    """Writes features to a Parquet file, one row per image; in memory are some thousands.

    Args:
        rows: split, index in the split, and features, float16 ``[width]``.
        width: number of features.
        path: the file, with columns ``split``, ``index`` (int64) and ``features`` (float16, a list of fixed size).

    Returns:
        The number of rows.
    """
    vectors = pa.list_(pa.float16(), width)
    schema = pa.schema({"split": pa.string(), "index": pa.int64(), "features": vectors}.items())
    count = 0
    with pq.ParquetWriter(path, schema, compression="NONE") as writer:
        while group := list(itertools.islice(rows, _ROW_GROUP)):
            splits, indices, features = zip(*group, strict=True)
            flat = pa.array(np.concatenate(features))
            columns = [pa.array(splits), pa.array(indices, pa.int64()), pa.FixedSizeListArray.from_arrays(flat, width)]
            writer.write_table(pa.table(columns, schema))
            count += len(group)
            _log.info("%d images", count)
    return count


def read_features(path: Path) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Reads what ``write_features`` wrote.

    Returns:
        The images, as split and index, and their features, float16 ``[n, d]``; without those that could not be decoded.
    """
    table = pq.read_table(path)
    width = table.schema.field("features").type.list_size
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["features"].chunks]
    features = np.concatenate([np.empty(0, np.float16), *flat]).reshape(-1, width)
    usable = ~np.isnan(features).any(axis=1)
    images = list(zip(table["split"].to_pylist(), table["index"].to_pylist(), strict=True))
    return [image for image, is_usable in zip(images, usable, strict=True) if is_usable], features[usable]
