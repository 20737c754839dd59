"""Features of images by a frozen, pretrained backbone: pooled, in 16 bits.

They are what a network knows of images before it is trained on them. Each image goes through the Transform graph and
the backbone once; ``feature_file`` keeps the result.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base.features import IMAGE, Features
from trainer.config import TrainerConfig
from trainer.network import build_network
from trainer.tasks import make_classification
from transform.examples import CORES, disable_tuner, load_graph

_BATCH = 32
_MAX_HALF = float(np.finfo(np.float16).max)


def load_backbone(config: TrainerConfig, image_size: tuple[int, int]) -> keras.Model:
    """Loads a pretrained backbone.

    Args:
        config: the backbone and its weights; images are scaled as the weights are used to.
        image_size: (height, width) in pixels.

    Returns:
        A model from images, uint8 ``[n, height, width, 3]``, to their averaged features, float32 ``[n, d]``.

    Raises:
        WeightsError: if the weights are not available or don't fit.
    """
    frozen = config.model_copy(update={"normalization": "backbone", "unfreeze_after": None})
    return build_network(image_size, make_classification(2), {}, frozen).pooled


def round_to_half(features: np.ndarray) -> np.ndarray:
    """Returns features in 16 bits; those that are too large become the largest that there are, and not infinite."""
    return np.clip(features, -_MAX_HALF, _MAX_HALF).astype(np.float16)


def compute_features(
    serialized: tf.data.Dataset, transform_output: tft.TFTransformOutput, names: Features, backbone: keras.Model
) -> Iterator[np.ndarray]:
    """Yields the features of each Example's image, float16 ``[d]``; NaN if the image can't be decoded.

    Args:
        serialized: Examples, see ``transform.examples``.
        transform_output: output of the Transform component.
        names: names of an Example's features.
        backbone: see ``load_backbone``.
    """
    spec = {names.input: transform_output.raw_feature_spec()[names.input]}
    _owner, transform = load_graph(transform_output)
    forward = tf.function(lambda images: backbone(images, training=False), reduce_retracing=True)

    @tf.function(reduce_retracing=True)
    def decode(records: tf.Tensor) -> tf.Tensor:
        return transform(tf.io.parse_example(records, spec))[IMAGE]

    def embed(images: tf.Tensor) -> np.ndarray:
        return round_to_half(forward(images).numpy())

    width = backbone.output_shape[-1]
    batches = disable_tuner(serialized.batch(_BATCH))
    decoded = iter(batches.map(decode, num_parallel_calls=CORES, deterministic=True).prefetch(2))
    for records in batches:
        try:
            yield from embed(next(decoded))
        except tf.errors.InvalidArgumentError:  # one of the images; the iterator goes on behind this batch
            for record in records:
                try:
                    yield from embed(decode(record[None]))
                except tf.errors.InvalidArgumentError:
                    yield np.full(width, np.nan, np.float16)
