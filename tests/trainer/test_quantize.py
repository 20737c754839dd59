"""Networks in int8: what NNCF is asked for, on weights that somebody has trained."""

import keras
import numpy as np
import openvino
import pytest
import tensorflow as tf

from imagepipe.base.features import IMAGE
from tests.trainer.test_weights_given import FOLDER, WHOLE
from trainer.config import TrainerConfig
from trainer.export.openvino import convert_network
from trainer.export.quantize import list_layers, quantize_network, restore_layers
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


@pytest.fixture(scope="module")
def converted():
    """A network in which operations stand between a rounding and a layer, or an output; one layer has no bias."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), dtype="uint8", name=IMAGE)
    x = keras.layers.Conv2D(8, 3, activation="hard_silu", use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.DepthwiseConv2D(3, strides=2, activation="relu6")(keras.layers.ZeroPadding2D(1)(x))
    x = keras.layers.Add()([x, keras.layers.Conv2D(8, 1, activation="relu")(x)])
    branches = [keras.layers.Conv2D(4, 1)(x), keras.layers.MaxPooling2D(3, 1, "same")(x)]
    x = keras.layers.Conv2D(8, 1, activation="relu")(keras.layers.Concatenate()(branches))
    x = keras.layers.Conv2DTranspose(8, 2, strides=2, activation="relu")(x)
    embedding = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(3, bias_initializer="ones")(embedding)
    return convert_network(keras.Model({IMAGE: image}, {"logits": logits, "embedding": embedding}))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def quantized(converted, pixels):
    return quantize_network(converted, [{IMAGE: row[None]} for row in pixels])


def list_kinds(network) -> set[str]:
    return {op.get_type_name() for op in network.get_ordered_ops()}


@pytest.mark.slow
def test_a_network_of_which_all_layers_are_restored_is_the_one_in_float32(converted, quantized, pixels):
    layers = list_layers(quantized)
    assert len(layers) == 7  # the one behind the padding as well
    restored = restore_layers(converted, quantized, layers)
    assert "FakeQuantize" not in list_kinds(restored)
    for output in ("logits", "embedding"):
        expected = compute(converted, "float32", pixels, output)
        np.testing.assert_allclose(compute(restored, "int8", pixels, output), expected, rtol=1e-5, atol=1e-6)
        assert not np.allclose(compute(quantized, "int8", pixels, output), expected, rtol=1e-5, atol=1e-6)
    assert list_layers(restored) == []


@pytest.mark.slow
def test_a_layer_is_restored_with_its_weights_and_bias_and_the_others_stay_in_int8(
    converted, quantized, pixels, tmp_path
):
    originals = {op.get_friendly_name(): op for op in converted.get_ops()}
    layers = list_layers(quantized)
    for number, name in enumerate(layers):
        restored = restore_layers(converted, quantized, [name])
        assert list_layers(restored) == layers[:number] + layers[number + 1 :]
        (layer,) = (op for op in restored.get_ops() if op.get_friendly_name() == name)
        weights, original = (op.input_value(1).get_node().data for op in (layer, originals[name]))
        assert np.array_equal(weights, original)
    # The last one's output has its bias, and what it takes is an output too.
    assert "MatMul" in layers[-1]
    dense = originals[layers[-1]]
    (added,) = (port.get_node() for port in dense.output(0).get_target_inputs())
    (bias,) = (x.get_node().data for x in added.input_values() if x.get_node().get_type_name() == "Constant")
    logits, embedding = (compute(restored, "int8", pixels, name) for name in ("logits", "embedding"))
    weights = dense.input_value(1).get_node().data
    kernel = weights.T if dense.get_attributes()["transpose_b"] else weights
    np.testing.assert_allclose(logits, embedding @ kernel + bias, rtol=1e-4, atol=1e-5)
    openvino.save_model(restored, tmp_path / "network.xml", compress_to_fp16=False)
    assert np.array_equal(compute(tmp_path / "network.xml", "int8", pixels, "logits"), logits)


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
