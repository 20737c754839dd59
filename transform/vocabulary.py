"""A sorted vocabulary.

``tft.vocabulary`` orders by frequency, so a nightly retraining could permute the classes and break clients that read
``classes`` by position. Alphabetical order changes only when a class is added or removed.
"""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam.experimental as tft_beam

from imagepipe.base import filesystem
from imagepipe.base.labels import encode_names


class _WriteSorted(tft_beam.PTransformAnalyzer):
    """Writes the distinct strings of all batches to a text file, sorted, one per line, and returns the file's path."""

    def __init__(self, filename: str):
        super().__init__()
        self._filename = filename

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Returns a PCollection of one element, the path."""
        return (
            batches
            | "Flatten" >> beam.FlatMap(_list_distinct)
            | "Distinct" >> beam.Distinct()
            | "ToList" >> beam.combiners.ToList()
            | "Write" >> beam.Map(_write_sorted, self.base_temp_dir, self._filename)
        )


def _list_distinct(batch: tuple[np.ndarray]) -> Iterable[bytes]:
    return set(batch[0].ravel().tolist()) - {b""}


def _write_sorted(values: list[bytes], folder: str, filename: str) -> Any:
    path = f"{folder}/{filename}"
    names = [value.decode(errors="surrogateescape") for value in sorted(values)]  # what isn't UTF-8 is refused by name
    filesystem.write_whole(path, encode_names(names))
    return np.array(path.encode())


def compute_and_apply_sorted_vocabulary(x: tf.Tensor | tf.SparseTensor, filename: str) -> tf.Tensor | tf.SparseTensor:
    """Works like ``tft.compute_and_apply_vocabulary``, with the values in byte order.

    Args:
        x: string, dense ``[n]`` or sparse ``[n, ?]``.
        filename: name of the vocabulary's asset, as for ``tft.TFTransformOutput.vocabulary_by_name``.

    Returns:
        int64, dense or sparse like ``x``: 0 for the first value in order; -1 for a value that the analysis did not see.
    """
    (path,) = tft.experimental.ptransform_analyzer(
        inputs=[x.values if isinstance(x, tf.SparseTensor) else x],
        ptransform=_WriteSorted(filename),
        output_dtypes=[tf.string],
        output_shapes=[[]],
        output_asset_default_values=[b"placeholder"],
    )
    return tft.apply_vocabulary(x, path)
