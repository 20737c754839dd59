"""Raw Examples to training-ready batches.

Each image is decoded and resized once, by the Transform graph inside tf.data, and kept as uint8 pixels at model size in
a file of the local disk: what fits into memory the operating system keeps there anyway, and the process itself stays
small whatever the size of the data. Letting pixels pass through Transform's materialized output instead is 35 to
53 times slower and five times larger.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from imagepipe.base.features import IMAGE, TARGET
from transform import datasets

# Decoded together; enough to make the graph's per-call cost vanish, few enough that all cores share a small split.
_TRANSFORM_BATCH = 8

# TensorFlow takes an array over without a copy if it begins at a multiple of this (EIGEN_MAX_ALIGN_BYTES): two to three
# times as fast here.
_ALIGNMENT = 64
_READERS = 2

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Rows:
    """Arrays of one shape and type in a file, one after the other.

    Attributes:
        path: of the file.
        shape: of one array.
        dtype: of its numbers.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Arrays ``[n, *shape]``, those of some indices, int ``[n]``."""
        size = self.dtype.itemsize * math.prod(self.shape)
        memory = np.empty(len(indices) * size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        batch = memory[start : start + len(indices) * size].view(self.dtype).reshape(-1, *self.shape)
        with self.path.open("rb", buffering=0) as file:
            for row, index in zip(batch, indices, strict=True):
                # Not a memory map: its pages would count as the process's own.
                if os.preadv(file.fileno(), [row.data], int(index) * size) != size:
                    raise OSError(f"{self.path} ends before row {index}: it was changed while it was read")
        return batch


@dataclass(frozen=True)
class Split:
    """One split, ready to be batched.

    Attributes:
        images: uint8 pixels ``[height, width, 3]``, or float32 ``[d]``, what a frozen base makes of them.
        side: the side features by name, ``[count]``.
        targets: float32 ``[count, outputs]``.
    """

    images: Rows
    side: dict[str, np.ndarray]
    targets: np.ndarray

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.targets)


def records(patterns: Sequence[str], worker: int = 0, workers: int = 1) -> tf.data.Dataset:
    """Serialized Examples of the TFRecord files that match, in a fixed order; gzip'd if their names end in .gz.

    Of several workers each gets whole files, or where there are fewer files than workers, every so many-th record.
    """
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    compression = "GZIP" if files and files[0].endswith(".gz") else ""
    by_file = len(files) >= workers
    mine = files[worker::workers] if by_file else files
    found = datasets.untuned(
        tf.data.TFRecordDataset(mine, compression_type=compression, num_parallel_reads=min(len(mine), 8) or None)
    )
    return found if by_file else found.shard(workers, worker)


def load(
    serialized: tf.data.Dataset,
    transform: Callable[[tf.Tensor], Tensors],
    encode: Callable[[tf.Tensor], tf.Tensor],
    path: Path,
) -> Split:
    """Transforms a split and keeps the result.

    Args:
        serialized: Examples, see ``records``.
        transform: from serialized Examples, string ``[n]``, to transformed features.
        encode: from the transformed target to float32 ``[n, outputs]``.
        path: the file to make for the pixels, on a local disk.

    Returns:
        The split, in the order of the Examples.
    """

    def one_batch(batch: tf.Tensor) -> tuple[Tensors, tf.Tensor]:
        transformed = transform(batch)
        return transformed, encode(transformed.pop(TARGET))

    transformed = serialized.batch(_TRANSFORM_BATCH).map(one_batch, num_parallel_calls=datasets.CORES)
    inputs_spec, targets_spec = transformed.element_spec
    side: dict[str, list[np.ndarray]] = {name: [] for name in inputs_spec if name != IMAGE}
    targets: list[np.ndarray] = []
    with path.open("wb") as file:
        for inputs, target in transformed.prefetch(2).as_numpy_iterator():
            file.write(np.ascontiguousarray(inputs[IMAGE]).data)
            targets.append(target)
            for name, values in side.items():
                values.append(inputs[name])

    def joined(arrays: list[np.ndarray], spec: tf.TensorSpec) -> np.ndarray:
        return np.concatenate([np.empty((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype), *arrays])

    spec = inputs_spec[IMAGE]
    return Split(
        Rows(path, tuple(spec.shape[1:]), np.dtype(spec.dtype.as_numpy_dtype)),
        {name: joined(values, inputs_spec[name]) for name, values in side.items()},
        joined(targets, targets_spec),
    )


def batches(split: Split, batch_size: int) -> tf.data.Dataset:
    """Batches of (inputs, targets), all examples in their order; the last batch may be smaller."""
    return read(split, tf.data.Dataset.range(split.count).batch(batch_size))


def read(split: Split, indices: tf.data.Dataset) -> tf.data.Dataset:
    """Batches of (inputs, targets), for a dataset of batches of indices, int64 ``[n]``."""
    rows = split.images
    specs = [
        tf.TensorSpec([None, *rows.shape], rows.dtype),
        *(tf.TensorSpec([None, *values.shape[1:]], values.dtype) for values in split.side.values()),
        tf.TensorSpec([None, *split.targets.shape[1:]], split.targets.dtype),
    ]

    def of_indices(chosen: np.ndarray) -> list[np.ndarray]:
        return [rows.read(chosen), *(values[chosen] for values in split.side.values()), split.targets[chosen]]

    def one_batch(chosen: tf.Tensor) -> tuple[Tensors, tf.Tensor]:
        tensors = tf.numpy_function(of_indices, [chosen], [spec.dtype for spec in specs], stateful=False)
        *inputs, targets = (tf.ensure_shape(tensor, spec.shape) for tensor, spec in zip(tensors, specs, strict=True))
        return dict(zip([IMAGE, *split.side], inputs, strict=True)), targets

    return datasets.untuned(indices).map(one_batch, num_parallel_calls=_READERS, deterministic=True)


def epochs(count: int, examples: int, batch_size: int, seed: int, first: int) -> tf.data.Dataset:
    """Batches of indices without end: in each epoch another order, the same one for the same seed.

    Args:
        count: number of examples there are.
        examples: how many an epoch takes; none a second time before all had their turn.
        batch_size: of all batches but an epoch's last.
        seed: 0 or more.
        first: number of the first epoch, 0 or more.

    Returns:
        Of indices, int64 ``[n]``.
    """

    def order(epoch: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([seed, int(epoch)])
        return np.concatenate([rng.permutation(count) for _ in range(-(-examples // count))])[:examples]

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        indices = tf.ensure_shape(tf.numpy_function(order, [epoch], tf.int64, stateful=False), [examples])
        return tf.data.Dataset.from_tensor_slices(indices).batch(batch_size)

    return tf.data.Dataset.counter(first).flat_map(one_epoch)
