"""Examples on their way in: read from TFRecords, parsed into raw features, and run through the transform graph.

Training, the exported signatures and the components all read Examples through this file.
"""

from collections.abc import Callable, Sequence

import joblib
import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base import features as f
from imagepipe.base import filesystem
from imagepipe.base.labels import decode_names
from imagepipe.base.names import TaskName

CORES = joblib.cpu_count()
"""Number of elements of a dataset that are processed in parallel where the work is done by the CPU."""

_BUCKETS = 2**30  # of hashes

Raw = dict[str, tf.Tensor]
Transformed = dict[str, tf.Tensor]
FeatureSpec = dict[str, tf.io.FixedLenFeature | tf.io.VarLenFeature]


def disable_tuner(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the same elements without tf.data's tuner; datasets derived from the result have none either.

    Dropping an iterator that has a tuner waits, about every other time, for the tuner's next turn, and these turns are
    10 ms, 20 ms and so on, up to a minute apart (``Model::OptimizeLoop`` in tensorflow/core/framework/model.cc),
    whether or not anything is set to ``AUTOTUNE``. Measured with TensorFlow 2.21 after 4, 7 and 11 s of work: 1.5, 3
    and 9 s of nothing. Training would wait like this after each evaluation.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def read_serialized(folder: str) -> tf.data.Dataset:
    """Returns the serialized Examples of a split, string, one file after the other in the order of their names.

    Args:
        folder: the split's folder with gzipped TFRecords, as TFX writes them; without any there are no Examples.
    """
    files = tf.constant(filesystem.glob(f"{folder}/*.gz"), tf.string)
    return disable_tuner(tf.data.TFRecordDataset(files, "GZIP"))


def read_shards(patterns: Sequence[str]) -> tf.data.Dataset:
    """Returns serialized Examples for training, string, read from several files at once in a fixed order.

    Args:
        patterns: of TFRecord files; gzipped if their names end in .gz.
    """
    files = sorted(file for pattern in patterns for file in filesystem.glob(pattern))
    compression = "GZIP" if files and files[0].endswith(".gz") else ""
    readers = min(len(files), 8) or None
    return disable_tuner(tf.data.TFRecordDataset(files, compression, num_parallel_reads=readers))


def make_sampler(maximum: int, total: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the test, of a serialized Example, for a sample by hash: always the same Examples, whatever the others.

    Args:
        maximum: number of Examples in the sample, about.
        total: number of all; if they are no more, all are in it.
    """
    bound = min(_BUCKETS, int(_BUCKETS * maximum / max(total, 1)))
    return lambda record: tf.strings.to_hash_bucket_fast(record, _BUCKETS) < bound


def make_parser(
    transform_output: tft.TFTransformOutput, features: f.Features, with_label: bool
) -> Callable[[tf.Tensor], Raw]:
    """Returns the function that parses serialized Examples, string ``[n]``, into the transform graph's raw features."""
    spec: FeatureSpec = transform_output.raw_feature_spec()
    names = [features.input, *features.side, *([features.label] if with_label else [])]
    spec = {name: spec[name] for name in names}

    def parse(serialized: tf.Tensor) -> Raw:
        return tf.io.parse_example(serialized, spec)

    return parse


def load_graph(transform_output: tft.TFTransformOutput) -> tuple[tf.Module, Callable[[Raw], Transformed]]:
    """Loads the graph that Transform wrote.

    Args:
        transform_output: output of the Transform component.

    Returns:
        The object that owns the graph's vocabularies (an exported function that calls the graph must keep it as an
        attribute), and the function from raw features to transformed ones. Raw features may be absent; what depends on
        them is then absent too. Shapes and types are those of ``transform.preprocessing``, except that the image is
        uint8, and the labels of a multilabel task are multi-hot float32 ``[n, k]``.
    """
    layer = transform_output.transform_features_layer()

    # AutoGraph would rewrite all of TFT's and Keras's Python code: 0.4 of 0.6 s here, and none of it needs that.
    @tf.autograph.experimental.do_not_convert
    def transform(raw: Raw) -> Transformed:
        transformed = dict(layer(raw))
        transformed[f.IMAGE] = tf.cast(transformed[f.IMAGE], tf.uint8)
        target = transformed.get(f.TARGET)
        if isinstance(target, tf.SparseTensor):
            transformed[f.TARGET] = _encode_multi_hot(
                target, transform_output.vocabulary_size_by_name(f.LABELS_VOCABULARY)
            )
        return transformed

    return layer, transform


def _encode_multi_hot(indices: tf.SparseTensor, size: int) -> tf.Tensor:
    """Returns float32 ``[n, size]``; the index -1, of a label unseen in training, is ignored."""
    one_hot = tf.one_hot(tf.sparse.to_dense(indices, -1), size)
    return tf.minimum(tf.reduce_sum(one_hot, axis=1), 1.0)  # an Example may name a label twice


def read_output_names(task: TaskName, transform_output: tft.TFTransformOutput, features: f.Features) -> list[str]:
    """Returns the names of the model's outputs in their order: classes or labels; for regression the label feature."""
    if task == "regression":
        return [features.label]
    return decode_names(filesystem.read_bytes(transform_output.vocabulary_file_by_name(f.LABELS_VOCABULARY)))
