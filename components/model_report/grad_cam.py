"""Heat maps of the parts of an image that speak for an output of the network (Grad-CAM)."""

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from imagepipe.base.features import IMAGE
from imagepipe.base.filesystem import link_plainly
from trainer.trained import load_trained

_OPACITY = 0.6  # of a heat map where it is hottest


def compute_heat_maps(
    trained: Path, served: Path, records: Mapping[int, bytes], outputs: Mapping[int, int]
) -> dict[int, np.ndarray]:
    """Computes Grad-CAM for the backbone's last features.

    Selvaraju, R. R., Cogswell, M., Das, A., Vedantam, R., Parikh, D., Batra, D. (2017): Grad-CAM: visual explanations
    from deep networks via gradient-based localization. ICCV, section 3, equations 1 and 2. The score is the output
    before its activation.

    Args:
        trained: the Keras model, ``model.keras``.
        served: the SavedModel's folder, whose signature ``transform_features`` gives the network's inputs.
        records: serialized Examples.
        outputs: index of the output to explain, by the same keys.

    Returns:
        Float32 ``[h, w]``, in 0..1, of the size of the backbone's features, by the same keys. Empty if those are no
        map, as of some backbones of one's own, or have one position only, as for small images.

    Raises:
        TrainingError: if the Keras model can't be loaded.
    """
    network = load_trained(trained)
    pool, head = network.get_layer("pool"), network.get_layer("head")
    if len(pool.input.shape) < 4 or pool.input.shape[1:3] == (1, 1):
        return {}
    compute_features = tf.function(keras.Model(network.inputs, pool.input))  # eagerly it takes four times as long
    compute_scores = keras.Model(head.inputs, head.get_layer("logits").output)
    with link_plainly(served) as files:
        served_model = tf.saved_model.load(str(files))  # it owns what the signature uses
    transform = served_model.signatures["transform_features"]
    heat_maps = {}
    for key, record in records.items():  # one by one: a batch takes as long per image, and 70 MiB more for each
        transformed = transform(examples=tf.constant([record]))
        inputs = {tensor.name: transformed[tensor.name] for tensor in network.inputs}
        features = tf.cast(compute_features([inputs[tensor.name] for tensor in network.inputs]), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = inputs | {IMAGE: pool(features)}
            score = compute_scores([pooled[tensor.name] for tensor in head.inputs])[:, outputs[key]]
        weights = tf.reduce_mean(tape.gradient(score, features), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))[0].numpy()
        heat_maps[key] = heat / heat.max() if heat.max() > 0 else heat
    return heat_maps


def overlay_heat_map(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """Draws a heat map, ``[h, w]`` in 0..1, over a picture: opaque where it is hot."""
    levels = Image.fromarray((255 * heat).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    hot = np.asarray(levels, np.float32) / 255
    colors = np.clip(3 * hot[..., None] - np.arange(3), 0, 1) * 255  # black, red, yellow, white
    share = _OPACITY * hot[..., None]
    mixed = np.asarray(picture, np.float32) * (1 - share) + colors * share
    return Image.fromarray(mixed.round().astype(np.uint8))
