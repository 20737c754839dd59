"""The ``preprocessing_fn`` that TFX's Transform runs; its graph is part of every model that is served."""

from typing import Any, TypeAlias

import tensorflow as tf
import tensorflow_transform as tft

from transform import features as f
from transform.images import decode_and_resize
from transform.vocabulary import compute_and_apply_sorted_vocabulary

Tensor: TypeAlias = tf.Tensor | tf.SparseTensor


def preprocessing_fn(inputs: dict[str, Tensor], custom_config: dict[str, Any]) -> dict[str, tf.Tensor]:
    """Makes from raw features what the model eats.

    Args:
        inputs: by feature name, dense ``[n]`` or ``[n, 1]``, or sparse ``[n, ?]`` where the schema says that a value
            may be missing.
        custom_config: ``features`` (a ``transform.features.Features`` as dict) and ``image_size`` (height, width).

    Returns:
        ``image`` float32 ``[n, height, width, 3]``, whole numbers in 0..255; each numeric side feature float32 ``[n]``
        with zero mean and unit variance over the training split (a missing value becomes the mean); each categorical
        one int64 ``[n]`` (an unseen value gets the last index, a missing one counts as the value ''); ``target``
        int64 ``[n]``.
    """
    features = f.from_json(custom_config["features"])
    pixels = decode_and_resize(_dense(inputs[features.input]), tuple(custom_config["image_size"]))
    outputs = {f.IMAGE: tf.cast(pixels, tf.float32)}  # Transform takes no uint8; transform.graph casts back
    for name in features.numeric:
        outputs[name] = _dense(tft.scale_to_z_score(tf.cast(inputs[name], tf.float32)))
    for name in features.categorical:
        outputs[name] = tft.compute_and_apply_vocabulary(
            _strings(inputs[name]), num_oov_buckets=1, vocab_filename=features.vocabulary(name)
        )
    outputs[f.TARGET] = compute_and_apply_sorted_vocabulary(_strings(inputs[features.label]), f.LABELS_VOCABULARY)
    return outputs


def _dense(x: Tensor) -> tf.Tensor:
    """One value an example, ``[n]``: the first where there are several, the type's zero where there is none."""
    if isinstance(x, tf.SparseTensor):
        first = tf.sparse.slice(x, [0, 0], [x.dense_shape[0], 1])
        x = tf.sparse.to_dense(tf.SparseTensor(first.indices, first.values, [x.dense_shape[0], 1]))
    return tf.reshape(x, [-1])


def _strings(x: Tensor) -> tf.Tensor:
    x = _dense(x)
    return x if x.dtype == tf.string else tf.strings.as_string(x)
