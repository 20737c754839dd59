"""The transform graph as a function, for whoever runs it: the Trainer's input and the serving signatures."""

from collections.abc import Callable

import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base import features as f


def load(output: tft.TFTransformOutput) -> tuple[tf.Module, Callable[[dict], dict[str, tf.Tensor]]]:
    """Loads the graph that Transform wrote.

    Args:
        output: what the Transform component wrote.

    Returns:
        The object that owns the graph's vocabularies (whoever exports a function that calls the graph has to keep it as
        an attribute), and the function from raw features (some may be absent: what depends on them is then absent too)
        to transformed ones. Shapes and types are those of ``transform.preprocessing``, but the image is uint8, and the
        labels of a multilabel task are multi-hot float32 ``[n, k]``.
    """
    layer = output.transform_features_layer()

    # AutoGraph would rewrite all of TFT's and Keras's Python code: 0.4 of 0.6 s here, and nothing of it needs that.
    @tf.autograph.experimental.do_not_convert
    def transform(raw: dict) -> dict[str, tf.Tensor]:
        transformed = dict(layer(raw))
        transformed[f.IMAGE] = tf.cast(transformed[f.IMAGE], tf.uint8)
        target = transformed.get(f.TARGET)
        if isinstance(target, tf.SparseTensor):
            transformed[f.TARGET] = _multi_hot(target, output.vocabulary_size_by_name(f.LABELS_VOCABULARY))
        return transformed

    return layer, transform


def _multi_hot(indices: tf.SparseTensor, size: int) -> tf.Tensor:
    """Float32 ``[n, size]``; the index -1, of a label that training has not seen, counts as none."""
    one_hot = tf.one_hot(tf.sparse.to_dense(indices, -1), size)
    return tf.minimum(tf.reduce_sum(one_hot, axis=1), 1.0)  # an Example may name a label twice
