"""The form of a network that OpenVINO computes, against the SavedModel beside it."""

import json

import keras
import numpy as np
import openvino
import pytest
import tensorflow as tf

from components.served_model import load_as_served
from imagepipe.base.errors import ModelError
from imagepipe.base.features import IMAGE, MISSING_FLAG, TRANSFORMED
from imagepipe.deploy.openvino_form import FOLDER, FORM, OpenVinoNetwork, find_form, read_form, write_form
from imagepipe.deploy.saved_model import GRAPH, read_labels, read_task
from tests.conftest import SIZE
from trainer.export.answers import make_answers
from trainer.export.calibration import Calibration
from trainer.export.openvino import convert_network, save_form
from trainer.export.signatures import save_model

WEIGHT, CAMERA, NO_WEIGHT = TRANSFORMED + "weight", TRANSFORMED + "camera", MISSING_FLAG + "weight"
LABELS = ["10", "7", "b"]
pytestmark = pytest.mark.slow  # both forms take half a minute to make


@pytest.fixture(scope="module")
def version(analyzed, tmp_path_factory):
    """A version's folder with both forms of a network that has a grouped convolution and three side features."""
    output, features, _ = analyzed
    keras.utils.set_random_seed(1)
    image = keras.Input((*SIZE, 3), dtype="uint8", name=IMAGE)
    weight, camera = keras.Input((), name=WEIGHT), keras.Input((), dtype="int64", name=CAMERA)
    no_weight = keras.Input((), name=NO_WEIGHT)
    x = keras.layers.Conv2D(6, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 3, groups=3)(x))
    one_hot = keras.layers.CategoryEncoding(3, output_mode="one_hot")(camera)
    side = [*(keras.layers.Reshape((1,))(number) for number in (weight, no_weight)), one_hot]
    logits = keras.layers.Dense(3)(keras.layers.Concatenate()([pooled, *side]))
    inputs = {IMAGE: image, WEIGHT: weight, CAMERA: camera, NO_WEIGHT: no_weight}
    network = keras.Model(inputs, {"logits": logits, "embedding": pooled})
    answers = make_answers(
        "classification", LABELS, {}, Calibration((2.0,)), lambda outputs: outputs["embedding"][:, 0], 0.5
    )
    folder = tmp_path_factory.mktemp("version") / "1"
    save_model(network, answers, output, features, "classification", str(folder))
    converted = convert_network(network)
    save_form(converted, "float32", answers, output, features, "classification", {"images": 3}, folder / FOLDER)
    return folder


def test_openvino_behind_the_same_decoding_gives_the_saved_models_answers(version, analyzed):
    _, _, serialized = analyzed
    saved, model = tf.saved_model.load(str(version)), load_as_served(version, "tf_examples").loaded
    assert set(model.signatures) == {"tf_examples", "transform_features"}  # OpenVINO's
    for count in (len(serialized), 1):
        examples = tf.constant(serialized[:count])
        answers, expected = (loaded.signatures["tf_examples"](examples=examples) for loaded in (model, saved))
        for name in ("classes", "score", "novelty"):
            assert answers[name].numpy() == pytest.approx(expected[name].numpy(), abs=1e-5)
        assert answers["label"].numpy().tolist() == expected["label"].numpy().tolist()
    transformed, expected = (loaded.signatures["transform_features"](examples=examples) for loaded in (model, saved))
    assert transformed.keys() == expected.keys()
    assert all(np.array_equal(transformed[name], expected[name]) for name in expected)


def test_the_form_says_what_it_is_and_holds_no_second_copy_of_the_network(version):
    folder = find_form(version)
    assert read_labels(folder) == read_labels(version) == LABELS
    assert read_task(folder) == "classification"
    form = OpenVinoNetwork(folder).form
    assert (form["precision"], form["measured"]) == ("float32", {"images": 3})
    assert sorted(form["inputs"]) == sorted([IMAGE, WEIGHT, CAMERA, NO_WEIGHT])
    assert b"Conv2D" in (version / GRAPH).read_bytes()
    assert b"Conv2D" not in (folder / GRAPH).read_bytes()


def test_a_damaged_form_is_refused_in_words(version, tmp_path):
    assert find_form(tmp_path) is None
    (tmp_path / FORM).write_text('{"precision": "int2", "inputs": ["image"]}')
    with pytest.raises(ModelError, match=r"form.json can't be read.*int2"):
        OpenVinoNetwork(tmp_path)
    xml, weights = ((find_form(version) / name).read_bytes() for name in ("network.xml", "network.bin"))
    (tmp_path / "network.bin").write_bytes(weights)
    (tmp_path / "network.xml").write_text("<net")
    write_form(tmp_path, read_form(find_form(version)))
    with pytest.raises(ModelError, match=r"can't be loaded by OpenVINO: .*") as caught:
        OpenVinoNetwork(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "network.xml").write_bytes(xml)
    write_form(tmp_path, read_form(tmp_path))
    OpenVinoNetwork(tmp_path)
    for name, content in (("network.bin", bytes(len(weights))), ("network.xml", xml.replace(b'"ReLU"', b'"Tanh"'))):
        sound = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)  # OpenVINO would compute with that
        with pytest.raises(ModelError, match=r"network.xml (is|are) damaged: the bytes are not those"):
            OpenVinoNetwork(tmp_path)
        (tmp_path / name).write_bytes(sound)
    form = json.loads((tmp_path / FORM).read_text())
    (tmp_path / FORM).write_text(json.dumps({name: form[name] for name in form if name != "sha256_xml"}))
    OpenVinoNetwork(tmp_path)  # as earlier versions wrote it
    (tmp_path / FORM).write_text(json.dumps(form | {"outputs": ["logits", "embeddings"]}))
    with pytest.raises(ModelError, match=r"form.json has other outputs than network.xml"):
        OpenVinoNetwork(tmp_path)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_form_in_int8_has_the_processor_that_it_was_judged_on(version, analyzed, tmp_path, monkeypatch, precision):
    output, features, _ = analyzed
    network = openvino.Core().read_model(find_form(version) / "network.xml")
    monkeypatch.setattr("trainer.export.openvino.has_exact_int8", lambda: False)
    answers = make_answers(
        "classification", LABELS, {}, Calibration((2.0,)), lambda outputs: outputs["embedding"][:, 0], 0.5
    )
    save_form(network, precision, answers, output, features, "classification", {}, tmp_path / "form")
    assert read_form(tmp_path / "form").get("exact_int8") is (False if precision == "int8" else None)
