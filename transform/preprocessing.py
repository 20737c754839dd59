"""The ``preprocessing_fn`` that TFX's Transform runs; its graph is part of every served model."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base import features as f
from transform.images import decode_and_resize
from transform.vocabulary import compute_and_apply_sorted_vocabulary

Tensor: TypeAlias = tf.Tensor | tf.SparseTensor


def preprocessing_fn(inputs: dict[str, Tensor], custom_config: dict[str, Any]) -> dict[str, Tensor]:
    """Turns raw features into the inputs of the model and the target.

    Args:
        inputs: by feature name, dense ``[n]`` or ``[n, 1]``, or sparse ``[n, ?]`` if the schema says that a value may
            be missing; the label of a multilabel task dense ``[n, m]`` if every Example has the same number of labels.
        custom_config: ``features`` (an ``imagepipe.base.features.Features`` as dict), ``image_size`` (height, width)
            and ``task`` (classification, multilabel or regression).

    Returns:
        ``image`` float32 ``[n, height, width, 3]``, whole numbers in 0..255; under ``transformed_<name>`` each numeric
        side feature, float32 ``[n]``, with zero mean and unit variance over the training split (a missing value becomes
        the mean, as do NaN and infinity), and each categorical one, int64 ``[n]`` (an unseen value gets the last index,
        and so does a missing one); under ``missing_value_of_<name>`` the flag of each numeric one that may be missing
        by the schema, see ``imagepipe.base.features.MISSING_FLAG``; ``target`` as described in
        ``imagepipe.base.features.TARGET``; a missing class counts as unseen.
    """
    features = f.parse_features(custom_config["features"])
    pixels = decode_and_resize(_densify(inputs[features.input]), tuple(custom_config["image_size"]))
    # Transform takes no uint8; transform.examples casts back.
    outputs: dict[str, Tensor] = {f.IMAGE: tf.cast(pixels, tf.float32)}
    for name in features.numeric:
        value = _densify(tf.cast(inputs[name], tf.float32), missing=float("nan"))
        scaled = tft.scale_to_z_score(value)  # from finite values
        is_missing = ~tf.math.is_finite(value)
        outputs[f.TRANSFORMED + name] = tf.where(is_missing, 0.0, scaled)
        if isinstance(inputs[name], tf.SparseTensor):
            outputs[f.MISSING_FLAG + name] = tf.cast(is_missing, tf.float32)
    for name in features.categorical:
        outputs[f.TRANSFORMED + name] = tft.compute_and_apply_vocabulary(
            _densify(_convert_to_strings(inputs[name])), num_oov_buckets=1, vocab_filename=features.vocabulary(name)
        )
    outputs[f.TARGET] = _TARGET_ENCODERS[custom_config["task"]](inputs[features.label])
    return outputs


def _encode_class(label: Tensor) -> tf.Tensor:
    return compute_and_apply_sorted_vocabulary(_densify(_convert_to_strings(label)), f.LABELS_VOCABULARY)


def _encode_labels(label: Tensor) -> tf.SparseTensor:
    """Returns sparse indices: Transform takes no dense output whose width, the number of labels, is not yet known."""
    if not isinstance(label, tf.SparseTensor):
        label = tf.sparse.from_dense(tf.reshape(_convert_to_strings(label), [-1, label.shape[1:].num_elements()]))
    return compute_and_apply_sorted_vocabulary(_convert_to_strings(label), f.LABELS_VOCABULARY)


def _encode_value(label: Tensor) -> tf.Tensor:
    return _densify(tf.cast(label, tf.float32), missing=float("nan"))  # a zero would be a target like any other


_TARGET_ENCODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "classification": _encode_class,
    "multilabel": _encode_labels,
    "regression": _encode_value,
}


def _densify(x: Tensor, missing: float | None = None) -> tf.Tensor:
    """Returns one value per example, ``[n]``: the first if there are several.

    An example without a value gets ``missing``, by default the type's zero.
    """
    if isinstance(x, tf.SparseTensor):
        first = tf.sparse.slice(x, [0, 0], [x.dense_shape[0], 1])
        x = tf.sparse.to_dense(tf.SparseTensor(first.indices, first.values, [x.dense_shape[0], 1]), missing)
    return tf.reshape(x, [-1])


def _convert_to_strings(x: Tensor) -> Tensor:
    """Returns numbers as text. It goes before ``_densify``: among whole numbers none stands for a missing one."""
    if isinstance(x, tf.SparseTensor):
        return tf.SparseTensor(x.indices, _convert_to_strings(x.values), x.dense_shape)
    return x if x.dtype == tf.string else tf.strings.as_string(x)
