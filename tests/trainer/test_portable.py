"""Networks for other programs, each opened by the runtime of its format."""

import keras
import numpy as np
import pytest

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from trainer.export.portable import (
    load_network,
    open_onnx,
    open_openvino,
    open_tflite,
    write_onnx,
    write_openvino,
    write_tflite,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network as a training writes it, and its answers."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE)
    x = keras.layers.Conv2D(8, 3, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    norm = keras.layers.BatchNormalization()
    x = keras.layers.DepthwiseConv2D(3)(keras.layers.Activation("relu")(norm(x)))
    norm.moving_variance.assign(np.linspace(0.3, 2, 8))
    model = keras.Model({IMAGE: image}, keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(x)))
    file = tmp_path_factory.mktemp("network") / "model.keras"
    model.save(file)
    return load_network(file), model.predict({IMAGE: PIXELS}, verbose=0)


def test_a_network_with_side_features_is_refused_by_their_names(tmp_path):
    image, weight = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE), keras.Input((1,), name="weight")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(image))
    joined = keras.layers.Concatenate()([pooled, weight])
    keras.Model({IMAGE: image, "weight": weight}, joined).save(tmp_path / "model.keras")
    with pytest.raises(TrainingError, match=r"needs side features next to an image: weight\..*--format saved_model"):
        load_network(tmp_path / "model.keras")


# A step of int8 is a hundredth of these activations; random probabilities are near a third.
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("float32", 1e-5), ("float16", 1e-3), pytest.param("int8", 0.03, marks=pytest.mark.slow)],
)
def test_on_devices_the_answers_are_those_of_the_network(network, tmp_path, precision, tolerance):
    from ai_edge_litert.interpreter import Interpreter

    model, expected = network
    file = tmp_path / "network.tflite"
    write_tflite(model, precision, PIXELS, file)
    np.testing.assert_allclose(open_tflite(file)(PIXELS), expected, atol=tolerance)
    ask = Interpreter(str(file)).get_signature_runner()
    alone = np.concatenate([ask(image=one[None])["classes"] for one in PIXELS])
    np.testing.assert_allclose(alone, expected, atol=tolerance)


@pytest.mark.slow  # imports and conversions of some seconds
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("int8", 0.03)])
def test_in_onnx_runtime_the_answers_are_those_of_the_network(network, tmp_path, precision, tolerance):
    model, expected = network
    file = tmp_path / "network.onnx"
    write_onnx(model, precision, PIXELS, file)
    ask = open_onnx(file)
    np.testing.assert_allclose(ask(PIXELS), expected, atol=tolerance)
    np.testing.assert_allclose(ask(PIXELS[:1]), expected[:1], atol=tolerance)  # any number of images


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 1e-3), ("int8", 0.03)])
def test_in_openvino_the_answers_are_those_of_the_network(network, tmp_path, precision, tolerance):
    model, expected = network
    file = tmp_path / "network.xml"
    write_openvino(model, precision, PIXELS, file)
    ask = open_openvino(file)
    np.testing.assert_allclose(ask(PIXELS), expected, atol=tolerance)
    np.testing.assert_allclose(ask(PIXELS[:1]), expected[:1], atol=tolerance)
