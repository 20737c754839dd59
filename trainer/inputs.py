"""Raw Examples to training-ready batches.

Each image is decoded and resized once, by the Transform graph inside tf.data, and kept as uint8 pixels at model size.
Letting pixels pass through Transform's materialized output instead is some 80 times slower and five times larger.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import tensorflow as tf

from transform.features import IMAGE, TARGET

# Decoded together; enough to make the graph's per-call cost vanish, few enough that all cores share a small split.
_TRANSFORM_BATCH = 16
_CACHE_SHARE_OF_MEMORY = 0.4
_SHUFFLE_BYTES = 512 * 1024**2

Raw = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Split:
    """One split, ready to be batched.

    Attributes:
        examples: of (inputs, target): what the model takes, without a batch dimension, and int64 ``[]``.
        count: number of examples.
        image_bytes: size of one image's pixels.
    """

    examples: tf.data.Dataset
    count: int
    image_bytes: int


def records(patterns: Sequence[str]) -> tf.data.Dataset:
    """Serialized Examples of the TFRecord files that match, in a fixed order; gzip'd if their names end in .gz."""
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    compression = "GZIP" if files and files[0].endswith(".gz") else ""
    return tf.data.TFRecordDataset(files, compression_type=compression, num_parallel_reads=min(len(files), 8) or None)


def load(
    patterns: Sequence[str],
    transform: Callable[[tf.Tensor], Raw],
    cache_dir: str,
    known: Callable[[tf.Tensor], tf.Tensor],
) -> Split:
    """Reads a split, transforms it and keeps the result for later passes: in memory if it fits, else on disk.

    Args:
        patterns: of the TFRecord files.
        transform: from serialized Examples, string ``[n]``, to transformed features.
        cache_dir: an existing local folder for what does not fit into memory.
        known: says of a target whether there is something to learn from it, see ``trainer.tasks.Task.known``.

    Returns:
        The split. Its first pass decodes; later ones read pixels.
    """
    serialized = records(patterns)
    count = int(serialized.reduce(tf.constant(0, tf.int64), lambda n, _: n + 1))
    examples = (
        serialized.batch(_TRANSFORM_BATCH)
        .map(lambda batch: _inputs_and_target(transform(batch)), num_parallel_calls=tf.data.AUTOTUNE)
        .unbatch()
        # A label that training has not seen has no place in the loss. The Evaluator counts it, as wrong.
        .filter(lambda _, target: known(target))
    )
    image_bytes = examples.element_spec[0][IMAGE].shape.num_elements()
    fits = count * image_bytes < _CACHE_SHARE_OF_MEMORY * psutil.virtual_memory().available
    examples = examples.cache("" if fits else str(Path(tempfile.mkdtemp(dir=cache_dir)) / "pixels"))
    return Split(examples, count, image_bytes)


def _inputs_and_target(transformed: Raw) -> tuple[Raw, tf.Tensor]:
    target = transformed.pop(TARGET)
    return transformed, target


def training_batches(split: Split, batch_size: int, seed: int) -> tf.data.Dataset:
    """Batches of (inputs, target), in another order each epoch; the shuffle buffer holds 512 MB of pixels at most."""
    buffer = max(1, min(split.count, _SHUFFLE_BYTES // split.image_bytes))
    return split.examples.shuffle(buffer, seed=seed).batch(batch_size).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(split: Split, batch_size: int) -> tf.data.Dataset:
    """Batches of (inputs, target), in a fixed order."""
    return split.examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)
