"""Networks for other programs, each opened by the runtime of its format."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from imagepipe.base.names import NOVELTY
from trainer.export.calibration import Calibration
from trainer.export.novelty import fit_novelty, save_novelty
from trainer.export.portable import (
    load_network,
    open_onnx,
    open_openvino,
    open_tflite,
    write_onnx,
    write_openvino,
    write_tflite,
)
from trainer.network import scale_outputs

_RANDOM = np.random.default_rng(0)
# Of one colour each, or nearly: to the network images of noise alone are all alike, and novelty is of what differs.
PIXELS = (_RANDOM.integers(0, 216, (16, 1, 1, 3)) + _RANDOM.integers(0, 40, (16, 8, 8, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training: a network, and what its novelty is computed by; its answers."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE)
    x = keras.layers.Conv2D(8, 3, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    norm = keras.layers.BatchNormalization()
    x = keras.layers.DepthwiseConv2D(3)(keras.layers.Activation("relu")(norm(x)))
    norm.moving_variance.assign(np.linspace(0.3, 2, 8))
    x = keras.layers.Conv2D(8, 3, groups=4)(x)  # in groups, which Keras computes in a function of its own
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    features = keras.Input((8,), name=IMAGE)
    logits = keras.layers.Dense(3, name="logits")(features)
    head = keras.Model({IMAGE: features}, keras.layers.Activation("softmax", name="outputs")(logits), name="head")
    model = keras.Model({IMAGE: image}, head({IMAGE: pooled}))
    folder = tmp_path_factory.mktemp("network")
    # The logits that novelty is of are those without the calibration, which the network has in its weights.
    served = keras.Model({IMAGE: image}, {"embedding": pooled, "logits": head.get_layer("logits")(pooled)})
    outputs = served.predict({IMAGE: PIXELS}, verbose=0)
    novelty = fit_novelty("classification", outputs["embedding"][:4], outputs)
    calibration = Calibration((4.0,), (0.0,))
    save_novelty(novelty, calibration, folder / NOVELTY)
    expected = {"novelty": novelty(outputs).numpy(), "embedding": outputs["embedding"]}
    scale_outputs(head.get_layer("logits"), *calibration)
    model.save(folder / "model.keras")
    return folder, expected | {"classes": model.predict({IMAGE: PIXELS}, verbose=0)}


@pytest.fixture(scope="module")
def network(trained):
    """The network as it is exported, and its answers."""
    folder, expected = trained
    return load_network(folder), expected


@pytest.fixture
def network_by_distance(trained, tmp_path):
    """The same, with a novelty that is of the embedding alone: the network, its answers and the novelty."""
    folder, expected = trained
    shutil.copy(folder / "model.keras", tmp_path)
    novelty = fit_novelty("multilabel", expected["embedding"][:4], {"embedding": expected["embedding"]})
    save_novelty(novelty, Calibration(), tmp_path / NOVELTY)
    return load_network(tmp_path), expected, novelty


def check_answers(answers, expected, precision: str) -> None:
    """Holds answers against the network's."""
    assert set(answers) == {"classes", "novelty", "embedding"}
    tolerance = {"float32": 1e-5, "float16": 2e-3}[precision]
    for name, values in expected.items():
        rounding = 10 * tolerance if name == "novelty" else tolerance  # it rises steeply with so few images
        np.testing.assert_allclose(answers[name], values, atol=rounding, err_msg=name)


def check_quantized(answers, expected, novelty) -> None:
    """Holds answers in int8 against the network's: novelty is computed in float, of the embedding in int8.

    A step is a hundredth of these activations; random probabilities are near a third.
    """
    np.testing.assert_allclose(answers["classes"], expected["classes"], atol=0.1)
    assert np.abs(answers["embedding"] - expected["embedding"]).mean() < 0.02  # NNCF cuts the largest values off
    np.testing.assert_allclose(answers["novelty"], novelty(dict(answers)).numpy(), atol=1e-4)


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", ["model.keras", NOVELTY])
@pytest.mark.parametrize(
    "damage",
    [lambda content: content[: len(content) // 2], lambda content: b"", flip_bit],
    ids=["half", "empty", "bit"],
)
def test_damaged_files_are_refused_in_words(trained, tmp_path, name, damage):
    folder, _ = trained
    for file in ("model.keras", NOVELTY):
        content = (folder / file).read_bytes()
        (tmp_path / file).write_bytes(damage(content) if file == name else content)
    with pytest.raises(
        TrainingError, match=rf"{name} can't be loaded: .*\. If it is damaged, copy it again, or"
    ) as caught:
        load_network(tmp_path)
    assert "not found" not in str(caught.value)  # as Keras says of half a file


@pytest.mark.parametrize("content", [b'{"trainer": ', b"{}", b"[]"])
def test_a_damaged_configuration_beside_a_network_is_refused_in_words(trained, tmp_path, content):
    folder, _ = trained
    shutil.copy(folder / "model.keras", tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(TrainingError, match=r"config\.json is damaged: .*Copy it again, or run the pipeline again"):
        load_network(tmp_path)


def test_openvino_says_in_words_that_a_file_can_not_be_written(network, tmp_path):
    (tmp_path / "x.xml").mkdir()
    with pytest.raises(TrainingError, match=r"x.xml can't be written by OpenVINO: .*"):
        write_openvino(network[0], "float32", PIXELS, tmp_path / "x.xml")
    assert not (tmp_path / "x.bin").exists()


def test_a_network_with_side_features_is_refused_by_their_names(tmp_path):
    image, weight = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE), keras.Input((1,), name="weight")
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(image))
    joined = keras.layers.Concatenate()([pooled, weight])
    keras.Model({IMAGE: image, "weight": weight}, joined).save(tmp_path / "model.keras")
    with pytest.raises(TrainingError, match=r"needs side features next to an image: weight\..*--format saved_model"):
        load_network(tmp_path)


def test_a_network_of_an_earlier_version_has_classes_alone(trained, tmp_path):
    folder, expected = trained
    shutil.copy(folder / "model.keras", tmp_path)
    answers = load_network(tmp_path).predict({IMAGE: PIXELS}, verbose=0)
    assert set(answers) == {"classes"}
    np.testing.assert_allclose(answers["classes"], expected["classes"], atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_on_devices_the_answers_are_those_of_the_network(network, tmp_path, precision):
    model, expected = network
    file = tmp_path / "network.tflite"
    write_tflite(model, precision, PIXELS, file)
    check_answers(open_tflite(file)(PIXELS), expected, precision)
    check_answers(ask_litert(file), expected, precision)


@pytest.mark.slow
def test_on_devices_in_int8_novelty_stays_in_float(network_by_distance, tmp_path):
    model, *expected = network_by_distance
    write_tflite(model, "int8", PIXELS, tmp_path / "network.tflite")
    check_quantized(ask_litert(tmp_path / "network.tflite"), *expected)


def ask_litert(file: Path) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    ask = Interpreter(str(file)).get_signature_runner()
    rows = [ask(image=one[None]) for one in PIXELS]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.slow  # imports and conversions of some seconds
def test_in_onnx_runtime_the_answers_are_those_of_the_network(network, tmp_path):
    model, expected = network
    file = tmp_path / "network.onnx"
    write_onnx(model, "float32", PIXELS, file)
    ask = open_onnx(file)
    assert list(ask(PIXELS)) == ["classes", "novelty", "embedding"]
    check_answers(ask(PIXELS), expected, "float32")
    first = {name: values[:1] for name, values in expected.items()}  # any number of images
    check_answers(ask(PIXELS[:1]), first, "float32")


@pytest.mark.slow
def test_in_onnx_runtime_in_int8_novelty_stays_in_float(network_by_distance, tmp_path):
    model, *expected = network_by_distance
    write_onnx(model, "int8", PIXELS, tmp_path / "network.onnx")
    check_quantized(open_onnx(tmp_path / "network.onnx")(PIXELS), *expected)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_in_openvino_the_answers_are_those_of_the_network(network, tmp_path, precision):
    model, expected = network
    file = tmp_path / "network.xml"
    write_openvino(model, precision, PIXELS, file)
    ask = open_openvino(file)
    check_answers(ask(PIXELS), expected, precision)
    check_answers(ask(PIXELS[:1]), {name: values[:1] for name, values in expected.items()}, precision)


@pytest.mark.slow
def test_in_openvino_in_int8_novelty_stays_in_float(network_by_distance, tmp_path):
    model, *expected = network_by_distance
    write_openvino(model, "int8", PIXELS, tmp_path / "network.xml")
    check_quantized(open_openvino(tmp_path / "network.xml")(PIXELS), *expected)
