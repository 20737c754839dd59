"""The forms in which a network serves: which are tried, which are accepted, and what is said about it."""

import keras
import numpy as np
import pytest
from openvino import opset13 as ops

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from trainer.config import ServingConfig, TrainerConfig
from trainer.data import TrainingData
from trainer.devices import check_engine
from trainer.export import forms, quantize
from trainer.export.forms import choose_forms
from trainer.inputs import ArrayFile, LoadedSplit
from trainer.tasks import make_classification

SIDE, TRAIN, VALIDATION = 16, 400, 40


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TrainingData:
    """Images whose class is their brightest channel."""
    rng = np.random.default_rng(0)
    count = TRAIN + VALIDATION
    targets = rng.integers(0, 3, count)
    pixels = rng.integers(0, 200, (count, SIDE, SIDE, 3), np.uint8)
    pixels[np.arange(count), :, :, targets] += 25
    path = tmp_path_factory.mktemp("pixels") / "pixels"
    path.write_bytes(pixels.data)
    rows = ArrayFile(path, (SIDE, SIDE, 3), np.dtype(np.uint8))
    task = make_classification(3)
    whole = LoadedSplit(rows, {}, targets.astype(np.int32), task)
    train, validation = whole.select(np.arange(TRAIN)), whole.select(np.arange(TRAIN, count))
    return TrainingData(task, ["r", "g", "b"], (SIDE, SIDE), {}, train, validation, is_set_aside=True)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """A network with a depthwise convolution that finds the brightest channel."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name=IMAGE)
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.DepthwiseConv2D(3, activation="relu", depthwise_initializer=keras.initializers.Constant(1 / 9))(x)
    mix = keras.layers.Conv2D(3, 1, name="mix")
    x = mix(x)
    mix.set_weights([np.eye(3, dtype=np.float32)[None, None], np.zeros(3)])
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(3, kernel_initializer=keras.initializers.Identity(20.0))(x)
    return keras.Model({IMAGE: image}, {"logits": logits, "embedding": x})


def choose(network, data, **serving) -> forms.Forms:
    return choose_forms(network, network, TrainerConfig(weights="none"), ServingConfig(**serving), data)


@pytest.fixture
def no_bfloat16(monkeypatch):
    monkeypatch.setattr(forms, "choose_precision", lambda _: "float32")


def test_switched_off_the_network_itself_is_served(network, data):
    result = choose(network, data, optimize=False)  # what YAML makes of off
    assert (result.saved.network, result.openvino) == (network, None)
    assert result.facts["precision"] == "float32"


@pytest.mark.parametrize(("policy", "precision"), [("mixed_bfloat16", "bfloat16"), ("float32", "float32")])
def test_auto_computes_as_this_machine_is_faster_if_the_answers_stay(network, data, monkeypatch, policy, precision):
    monkeypatch.setattr(forms, "choose_precision", lambda _: policy)
    assert choose(network, data).facts["precision"] == precision


def test_a_precision_that_is_named_and_refused_stops_the_export(network, data):
    with pytest.raises(TrainingError, match=r"bfloat16 is refused: .*serving.max_difference is 1e-07. Try auto"):
        choose(network, data, precision="bfloat16", max_difference=1e-7)


def test_a_graph_that_gives_no_numbers_is_not_exported(network, data, monkeypatch, no_bfloat16):
    monkeypatch.setattr(
        forms,
        "optimize_network",
        lambda *_, **__: lambda features: {n: x * np.nan for n, x in network(features).items()},
    )
    with pytest.raises(TrainingError, match=r"not numbers. Try serving.optimize: off"):
        choose(network, data)


@pytest.mark.slow  # to import NNCF takes seconds
def test_openvino_in_int8_is_accepted_for_its_answers(network, data, no_bfloat16):
    result = choose(network, data, engine="openvino", precision="int8")
    assert result.openvino.precision == "int8"
    assert (result.facts["engine"], result.facts["precision"]) == ("openvino", "int8")
    assert any("440 of 440 images" in line for line in result.facts["tried"])
    types = {op.get_type_name() for op in result.openvino.network.get_ordered_ops()}
    assert "FakeQuantize" in types
    assert result.openvino.fitted.calibration != result.fitted.calibration  # its own


@pytest.mark.slow
def test_a_planted_bad_quantization_is_refused_and_its_worst_layer_taken_back(network, data, monkeypatch, no_bfloat16):
    def quantize_badly(converted, images):
        """Cuts the activations of one layer off."""
        quantized = quantize_network(converted, images)
        *_, last = (op for op in quantized.get_ordered_ops() if quantize.list_quantized(op))
        limits = last.input_value(0).get_node()
        for port in (2, 4):
            limit = limits.input_value(port).get_node().data
            limits.input(port).replace_source_output(ops.constant(np.full_like(limit, 1e-3)).output(0))
        return quantized

    quantize_network = quantize.quantize_network
    monkeypatch.setattr(quantize, "quantize_network", quantize_badly)
    result = choose(network, data, engine="openvino", precision="int8")
    refused, accepted = result.facts["tried"]
    assert "int8, " in refused
    assert "lies below serving.min_agreement" in refused
    assert "int8 but for 1 of" in accepted


def test_few_images_can_not_show_that_int8_may_be_used(network, data, no_bfloat16):
    few = TrainingData(**{**vars(data), "train": data.train.select(np.arange(60))})
    result = choose(network, few, engine="auto")
    assert any("int8: not tried, as 100 images can't show that it may be used: 36" in t for t in result.facts["tried"])
    assert result.facts["precision"] == "float32"


def test_tensorflow_serves_where_openvino_is_missing(network, data, monkeypatch, no_bfloat16):
    find = forms.importlib.util.find_spec
    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    result = choose(network, data, engine="auto")
    assert result.openvino is None
    assert "pip install 'imagepipe-tfx[openvino]'" in result.facts["tried"][0]
    with pytest.raises(TrainingError, match=r"pip install 'imagepipe-tfx\[openvino\]'"):
        check_engine(ServingConfig(engine="openvino"))
