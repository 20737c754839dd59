"""tf.data as every part of the pipeline uses it."""

import os

import tensorflow as tf

CORES = len(os.sched_getaffinity(0))
"""How many elements of a dataset are worked on at once, where that is work for the processor."""


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same elements, without tf.data's tuner; whatever is made of the dataset has none either.

    Who drops an iterator that has a tuner waits, about every other time, for the tuner's next turn, and its turns come
    at 10 ms, 20 ms and so on, up to a minute apart (``Model::OptimizeLoop`` in tensorflow/core/framework/model.cc). It
    does so whether or not anything is set to ``AUTOTUNE``. Measured with TensorFlow 2.21 after 4, 7 and 11 s of
    work: 1.5, 3 and 9 s of nothing. A training would wait so after each evaluation.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def examples(split: str) -> tf.data.Dataset:
    """Serialized Examples of a split, string, in a fixed order.

    Args:
        split: a folder with gzip'd TFRecords, as TFX writes them; a folder without any has no Examples.
    """
    files = tf.constant(sorted(tf.io.gfile.glob(f"{split}/*.gz")), tf.string)
    return untuned(tf.data.TFRecordDataset(files, "GZIP"))
