"""From transformed Examples to batches for training.

Each image is decoded and resized once, by the Transform graph inside tf.data, and kept as uint8 pixels at model size in
a file on the local disk: the operating system keeps it in memory if it fits, and the process itself stays small
whatever the size of the data. A later training on the same data uses the file again. Passing pixels through
Transform's materialized output instead is 35 to 53 times slower and takes five times the space.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from imagepipe.base.features import IMAGE, TARGET
from imagepipe.base.full_disk import measure_full_disk
from trainer.tasks import Task
from transform.examples import CORES, disable_tuner

# Examples decoded together: enough to make the graph's per-call cost vanish, few enough that all cores share a small
# split.
_TRANSFORM_BATCH = 8

# TensorFlow takes an array over without a copy if it starts at a multiple of this (EIGEN_MAX_ALIGN_BYTES): two to three
# times as fast here.
_ALIGNMENT = 64
_READERS = 2

_SIDE = "side/"  # prefix of the side features' names in the file of a split's arrays

_log = logging.getLogger("trainer")

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class ArrayFile:
    """Arrays of one shape and type in a file, one after the other.

    Attributes:
        path: of the file.
        shape: of one array.
        dtype: of its numbers.
        rows: positions in the file of the arrays that count, int ``[n]``; None for all of them.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    rows: np.ndarray | None = None

    @property
    def row_bytes(self) -> int:
        """Size of one array."""
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns arrays ``[n, *shape]`` by their indices, int ``[n]``."""
        size = self.row_bytes
        indices = indices if self.rows is None else self.rows[indices]
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
class LoadedSplit:
    """One split, ready to be batched.

    Attributes:
        images: uint8 pixels ``[height, width, 3]``, or what frozen layers make of them, float16.
        side: the side features by name, ``[count]``.
        targets: compact, see ``Task.compact``; batches have them encoded.
        task: of the targets.
        groups: number of each example's group, int64 ``[count]``, see ``data.hash_groups``; None if none are known.
    """

    images: ArrayFile
    side: dict[str, np.ndarray]
    targets: np.ndarray
    task: Task
    groups: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def select(self, chosen: np.ndarray) -> "LoadedSplit":
        """Returns a part of the split, in the order of the indices, int ``[n]``; the file is the same."""
        images = self.images
        rows = chosen if images.rows is None else images.rows[chosen]
        side = {name: values[chosen] for name, values in self.side.items()}
        groups = None if self.groups is None else self.groups[chosen]
        return LoadedSplit(replace(images, rows=rows), side, self.targets[chosen], self.task, groups)

    def join(self, other: "LoadedSplit") -> "LoadedSplit":
        """Returns this part of a split and another one of the same split together."""
        rows = np.concatenate([part.images.rows for part in (self, other)])
        side = {name: np.concatenate([values, other.side[name]]) for name, values in self.side.items()}
        targets = np.concatenate([self.targets, other.targets])
        is_known = self.groups is not None and other.groups is not None
        groups = np.concatenate([self.groups, other.groups]) if is_known else None
        return LoadedSplit(replace(self.images, rows=rows), side, targets, self.task, groups)


def load_split(
    serialized: tf.data.Dataset, transform: Callable[[tf.Tensor], Tensors], task: Task, path: Path
) -> LoadedSplit:
    """Transforms a split once and keeps the result.

    Args:
        serialized: Examples, see ``transform.examples.read_shards``.
        transform: from serialized Examples, string ``[n]``, to transformed features; what is neither image nor target
            becomes a side feature.
        task: of the targets.
        path: file for the pixels, on a local disk, beside which a file of the other arrays is written. If both are
            there and whole they are used: the folder has to be named by the data.

    Returns:
        The split, in the order of the Examples.

    Raises:
        OSError: if the disk is full; it says how much is needed.
    """

    def transform_batch(batch: tf.Tensor) -> tuple[Tensors, tf.Tensor]:
        transformed = transform(batch)
        return transformed, task.compact(transformed.pop(TARGET))

    transformed = serialized.batch(_TRANSFORM_BATCH).map(transform_batch, num_parallel_calls=CORES)
    inputs_spec, targets_spec = transformed.element_spec
    image_spec = inputs_spec[IMAGE]
    images = ArrayFile(path, tuple(image_spec.shape[1:]), np.dtype(image_spec.dtype.as_numpy_dtype))
    specs = {TARGET: targets_spec} | {f"{_SIDE}{name}": inputs_spec[name] for name in inputs_spec if name != IMAGE}
    arrays = _read_arrays(path, specs, images)
    if arrays is None:
        chunks: dict[str, list[np.ndarray]] = {key: [] for key in specs}
        _arrays_file(path).unlink(missing_ok=True)
        with (
            measure_full_disk(path, "the pixels", lambda: images.row_bytes * sum(1 for _ in serialized)),
            path.open("wb") as file,
        ):
            for inputs, target in transformed.prefetch(2).as_numpy_iterator():
                file.write(np.ascontiguousarray(inputs[IMAGE]).data)
                for key, values in chunks.items():
                    values.append(target if key == TARGET else inputs[key.removeprefix(_SIDE)])
            file.flush()
            os.fsync(file.fileno())
        arrays = {
            key: np.concatenate([np.empty((0, *specs[key].shape[1:]), specs[key].dtype.as_numpy_dtype), *values])
            for key, values in chunks.items()
        }
        _write_arrays(path, arrays)
    targets = arrays.pop(TARGET)
    return LoadedSplit(images, {key.removeprefix(_SIDE): array for key, array in arrays.items()}, targets, task)


def _arrays_file(path: Path) -> Path:
    """Returns the file of a split's arrays. It is written last: where it is, the pixels are whole."""
    return path.with_name(f"{path.name}.npz")


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = _arrays_file(path).with_suffix(".partial")
    size = sum(array.nbytes for array in arrays.values())
    with measure_full_disk(partial, "targets and side features", lambda: size), partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(_arrays_file(path))


def _read_arrays(path: Path, specs: Mapping[str, tf.TensorSpec], images: ArrayFile) -> dict[str, np.ndarray] | None:
    """Reads what ``_write_arrays`` wrote; returns None if there is nothing, or nothing that fits."""
    if not path.is_file() or not _arrays_file(path).is_file():
        return None
    try:
        with np.load(_arrays_file(path), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in specs}
    except Exception as error:  # half a file, another program's, a damaged one: NumPy raises a dozen kinds
        _log.warning("%s can't be used (%s: %s): reading the images again", path, type(error).__name__, error)
        return None
    counts = {len(array) for array in arrays.values()} | {path.stat().st_size / images.row_bytes}
    is_fitting = all(
        array.dtype == specs[key].dtype.as_numpy_dtype and specs[key].shape.is_compatible_with(array.shape)
        for key, array in arrays.items()
    )
    if len(counts) > 1 or not is_fitting:
        _log.warning("%s doesn't fit the data: reading the images again", path)
        return None
    _log.info("using the %d images of %s again", len(arrays[TARGET]), path.name)
    return arrays


def make_batches(split: LoadedSplit, batch_size: int) -> tf.data.Dataset:
    """Returns batches of (inputs, targets) with all examples in their order; the last batch may be smaller."""
    return read_batches(split, tf.data.Dataset.range(split.count).batch(batch_size))


def read_batches(split: LoadedSplit, indices: tf.data.Dataset) -> tf.data.Dataset:
    """Returns batches of (inputs, targets), given a dataset with the indices of each batch, int64 ``[n]``."""
    images = split.images
    specs = [
        tf.TensorSpec([None, *images.shape], images.dtype),
        *(tf.TensorSpec([None, *values.shape[1:]], values.dtype) for values in split.side.values()),
        tf.TensorSpec([None, *split.targets.shape[1:]], split.targets.dtype),
    ]

    def read_arrays(chosen: np.ndarray) -> list[np.ndarray]:
        return [images.read(chosen), *(values[chosen] for values in split.side.values()), split.targets[chosen]]

    def read_batch(chosen: tf.Tensor) -> tuple[Tensors, tf.Tensor]:
        tensors = tf.numpy_function(read_arrays, [chosen], [spec.dtype for spec in specs], stateful=False)
        *inputs, targets = (tf.ensure_shape(tensor, spec.shape) for tensor, spec in zip(tensors, specs, strict=True))
        return dict(zip([IMAGE, *split.side], inputs, strict=True)), split.task.encode(targets)

    return disable_tuner(indices).map(read_batch, num_parallel_calls=_READERS, deterministic=True)


def shuffle_epochs(
    count: int, examples: int, batch_size: int, seed: int, first: int, views: int = 1
) -> tf.data.Dataset:
    """Returns an endless dataset of batches of indices: each epoch in a new order, the same for the same seed.

    Args:
        count: number of examples in the split; of one view, if there are several.
        examples: number of examples per epoch; none is repeated before all others were read.
        batch_size: of all batches but the last of an epoch.
        seed: 0 or more.
        first: number of the first epoch, 0 or more.
        views: number of views that the split has of each example, one view of all examples after the other; epochs
            take them in turn.

    Returns:
        Indices, int64 ``[n]`` per batch.
    """

    def draw_order(epoch: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([seed, int(epoch)])
        order = np.concatenate([rng.permutation(count) for _ in range(-(-examples // count))])[:examples]
        return order + count * (int(epoch) % views)

    def batch_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        indices = tf.ensure_shape(tf.numpy_function(draw_order, [epoch], tf.int64, stateful=False), [examples])
        return tf.data.Dataset.from_tensor_slices(indices).batch(batch_size)

    return tf.data.Dataset.counter(first).flat_map(batch_epoch)
