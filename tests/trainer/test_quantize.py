"""Networks in int8: what NNCF is asked for, on weights that somebody has trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.features import IMAGE
from tests.trainer.test_weights_given import FOLDER, WHOLE
from trainer.config import TrainerConfig
from trainer.export.openvino import convert_network
from trainer.export.quantize import quantize_network
from trainer.export.recipes import wrap_network
from trainer.network import build_network
from trainer.tasks import make_classification
from transform.images import decode_and_resize

PHOTOS = FOLDER.parent / "flowers" / "val"


def compute(network, precision: str, images: np.ndarray, output: str) -> np.ndarray:
    return np.asarray(wrap_network(network, precision)({IMAGE: tf.constant(images)})[output])


@pytest.mark.slow  # to import NNCF takes seconds
def test_a_network_whose_activations_hardly_differ_is_quantized_all_the_same():
    image = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE)
    x = keras.layers.Rescaling(1 / 255)(image)
    # Differences of a few steps of float32 around 1, of which no histogram can be made.
    x = keras.layers.Conv2D(4, 3, kernel_initializer=keras.initializers.Constant(1e-8), bias_initializer="ones")(x)
    x = keras.layers.Conv2D(2, 1, kernel_initializer="ones")(x)
    network = convert_network(keras.Model({IMAGE: image}, {"logits": keras.layers.GlobalAveragePooling2D()(x)}))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    quantized = quantize_network(network, [{IMAGE: pixels[i : i + 1]} for i in range(20)])
    assert any(op.get_type_name() == "FakeQuantize" for op in quantized.get_ordered_ops())
    expected = compute(network, "float32", pixels, "logits")
    np.testing.assert_allclose(compute(quantized, "int8", pixels, "logits"), expected, rtol=0.02)


@pytest.mark.long
@pytest.mark.skipif(not (WHOLE.is_file() and PHOTOS.is_dir()), reason=f"there is no {WHOLE}, or no {PHOTOS}")
def test_a_trained_network_with_depthwise_convolutions_loses_less_than_by_nncfs_defaults():
    import nncf

    size = (160, 160)
    config = TrainerConfig(backbone="mobilenet_v2", weights=str(WHOLE))
    network = convert_network(build_network(size, make_classification(5), {}, config).served)
    encoded = tf.constant([file.read_bytes() for file in sorted(PHOTOS.glob("*/*.jpg"))])
    asked, others = decode_and_resize(encoded[::2], size).numpy(), decode_and_resize(encoded[1::2], size).numpy()
    inputs = [{IMAGE: row[None]} for row in asked]
    expected = compute(network, "float32", others, "embedding")

    def measure_error(quantized) -> float:
        return float(np.square(compute(quantized, "int8", others, "embedding") - expected).mean())

    by_default = nncf.quantize(network, nncf.Dataset(inputs), subset_size=len(inputs))
    assert measure_error(quantize_network(network, inputs)) < 0.6 * measure_error(by_default)
