"""Networks for devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from trainer.export.lite import convert_to_tflite


def test_a_network_with_side_features_is_refused_by_their_names(tmp_path):
    image, weight = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE), keras.Input((1,), name="weight")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(image))
    joined = keras.layers.Concatenate()([pooled, weight])
    keras.Model({IMAGE: image, "weight": weight}, joined).save(tmp_path / "model.keras")
    with pytest.raises(TrainingError, match="needs side features next to an image: weight"):
        convert_to_tflite(tmp_path / "model.keras")


def test_outputs_on_devices_are_those_of_the_trained_network_within_float16(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE)
    x = keras.layers.Conv2D(8, 3, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    norm = keras.layers.BatchNormalization()
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation("relu")(norm(x)))
    norm.moving_variance.assign(np.linspace(0.3, 2, 8))
    network = keras.Model({IMAGE: image}, keras.layers.Dense(3, activation="softmax")(x))
    network.save(tmp_path / "model.keras")
    run = tf.lite.Interpreter(model_content=convert_to_tflite(tmp_path / "model.keras")).get_signature_runner()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    by_device = np.concatenate([run(image=one[None])["classes"] for one in pixels])
    np.testing.assert_allclose(by_device, network.predict({IMAGE: pixels}, verbose=0), atol=1e-3)
