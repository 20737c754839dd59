"""The ``preprocessing_fn`` that TFX's Transform runs; its graph is part of every model that is served."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base import features as f
from transform.images import decode_and_resize
from transform.vocabulary import compute_and_apply_sorted_vocabulary

Tensor: TypeAlias = tf.Tensor | tf.SparseTensor


def preprocessing_fn(inputs: dict[str, Tensor], custom_config: dict[str, Any]) -> dict[str, Tensor]:
    """Makes from raw features what the model eats.

    Args:
        inputs: by feature name, dense ``[n]`` or ``[n, 1]``, or sparse ``[n, ?]`` where the schema says that a value
            may be missing; the label of a multilabel task dense ``[n, m]`` if all have as many.
        custom_config: ``features`` (a ``imagepipe.base.features.Features`` as dict), ``image_size`` (height, width) and
            ``task`` (classification, multilabel or regression).

    Returns:
        ``image`` float32 ``[n, height, width, 3]``, whole numbers in 0..255; each numeric side feature float32 ``[n]``
        with zero mean and unit variance over the training split (a missing value becomes the mean); each categorical
        one int64 ``[n]`` (an unseen value gets the last index, a missing one counts as the value ''); ``target``
        as ``imagepipe.base.features.TARGET`` says.
    """
    features = f.parse_features(custom_config["features"])
    pixels = decode_and_resize(_dense(inputs[features.input]), tuple(custom_config["image_size"]))
    # Transform takes no uint8; transform.graph casts back.
    outputs: dict[str, Tensor] = {f.IMAGE: tf.cast(pixels, tf.float32)}
    for name in features.numeric:
        outputs[name] = _dense(tft.scale_to_z_score(tf.cast(inputs[name], tf.float32)))
    for name in features.categorical:
        outputs[name] = tft.compute_and_apply_vocabulary(
            _strings(inputs[name]), num_oov_buckets=1, vocab_filename=features.vocabulary(name)
        )
    outputs[f.TARGET] = _TARGETS[custom_config["task"]](inputs[features.label])
    return outputs


def _class(label: Tensor) -> tf.Tensor:
    return compute_and_apply_sorted_vocabulary(_strings(label), f.LABELS_VOCABULARY)


def _labels(label: Tensor) -> tf.SparseTensor:
    """Sparse, since Transform takes no dense output whose width, the number of labels, the analysis has yet to find."""
    if isinstance(label, tf.SparseTensor):
        label = tf.SparseTensor(label.indices, _as_strings(label.values), label.dense_shape)
    else:
        label = tf.sparse.from_dense(tf.reshape(_as_strings(label), [-1, label.shape[1:].num_elements()]))
    return compute_and_apply_sorted_vocabulary(label, f.LABELS_VOCABULARY)


def _value(label: Tensor) -> tf.Tensor:
    return _dense(tf.cast(label, tf.float32), missing=float("nan"))  # a zero would be a target like any other


_TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "classification": _class,
    "multilabel": _labels,
    "regression": _value,
}


def _dense(x: Tensor, missing: float | None = None) -> tf.Tensor:
    """One value an example, ``[n]``: the first where there are several.

    ``missing``, or else the type's zero, where there is none.
    """
    if isinstance(x, tf.SparseTensor):
        first = tf.sparse.slice(x, [0, 0], [x.dense_shape[0], 1])
        x = tf.sparse.to_dense(tf.SparseTensor(first.indices, first.values, [x.dense_shape[0], 1]), missing)
    return tf.reshape(x, [-1])


def _strings(x: Tensor) -> tf.Tensor:
    return _as_strings(_dense(x))


def _as_strings(x: tf.Tensor) -> tf.Tensor:
    return x if x.dtype == tf.string else tf.strings.as_string(x)
