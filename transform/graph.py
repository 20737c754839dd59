"""The transform graph as a function, for whoever runs it: the Trainer's input and the serving signatures."""

from collections.abc import Callable

import tensorflow as tf
import tensorflow_transform as tft

from transform import features as f


def load(output: tft.TFTransformOutput) -> tuple[tf.Module, Callable[[dict], dict[str, tf.Tensor]]]:
    """Loads the graph that Transform wrote.

    Args:
        output: what the Transform component wrote.

    Returns:
        The object that owns the graph's vocabularies (whoever exports a function that calls the graph has to keep it as
        an attribute), and the function from raw features (some may be absent: what depends on them is then absent too)
        to transformed ones. Shapes and types are those of ``transform.preprocessing``, the image being uint8.
    """
    layer = output.transform_features_layer()

    def transform(raw: dict) -> dict[str, tf.Tensor]:
        transformed = dict(layer(raw))
        transformed[f.IMAGE] = tf.cast(transformed[f.IMAGE], tf.uint8)
        return transformed

    return layer, transform
