"""The forms in which a network serves: which are tried, which are accepted, and what is said about it."""

import dataclasses
import itertools
from collections.abc import Callable
from types import SimpleNamespace

import keras
import numpy as np
import openvino
import pytest
import tensorflow as tf
from openvino import opset13 as ops

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from imagepipe.deploy.openvino_form import compile_network
from trainer import devices
from trainer.config import ServingConfig, TrainerConfig
from trainer.data import TrainingData
from trainer.devices import check_engine
from trainer.export import forms, layers, optimize, quantize, recipes
from trainer.export.forms import choose_forms
from trainer.inputs import ArrayFile, LoadedSplit
from trainer.tasks import make_classification, make_regression

SIDE, TRAIN, VALIDATION = 16, 1000, 40


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
    mix = keras.layers.Conv2D(3, 1, activation="hard_silu", name="mix")  # with no bias, as in MobileNetV3
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


def test_a_form_that_gives_no_numbers_is_refused_and_the_next_one_is_taken(network, data, monkeypatch):
    """Neither temperature nor novelty can be fitted to it."""
    monkeypatch.setattr(forms, "choose_precision", lambda _: "mixed_bfloat16")
    wrap = optimize.wrap_graph

    def break_bfloat16(lowered, suffix):
        computed = wrap(lowered, suffix)
        factor = np.nan if suffix == "_bfloat16" else 1.0
        return lambda features: {name: x * factor for name, x in computed(features).items()}

    monkeypatch.setattr(recipes.optimize, "wrap_graph", break_bfloat16)
    result = choose(network, data, engine="tensorflow")
    assert "TensorFlow, bfloat16: refused: it gives answers that are not numbers" in result.facts["tried"][0]
    assert (result.saved.precision, result.facts["saved_precision"]) == ("float32", "float32")


@pytest.mark.slow  # to import NNCF takes seconds
def test_openvino_in_int8_is_accepted_for_its_answers(network, data, no_bfloat16):
    result = choose(network, data, engine="openvino", precision="int8")
    assert result.openvino.precision == "int8"
    assert (result.facts["engine"], result.facts["precision"]) == ("openvino", "int8")
    assert result.facts["saved_precision"] == result.saved.precision == "float32"
    assert any("1000 of 1000 images that it was trained on and 40 of 40 set" in t for t in result.facts["tried"])
    types = {op.get_type_name() for op in result.openvino.network.get_ordered_ops()}
    assert "FakeQuantize" in types
    assert result.openvino.fitted.calibration != result.fitted.calibration  # its own


@pytest.mark.slow
def test_a_planted_bad_quantization_is_refused_and_its_worst_layer_taken_back(network, data, monkeypatch, no_bfloat16):
    def quantize_badly(converted, images):
        """Cuts the activations of one layer off."""
        quantized = quantize_network(converted, images)
        *_, limits = (op for op in quantized.get_ordered_ops() if op.get_type_name() == "FakeQuantize")
        for port in (2, 4):
            limit = limits.input_value(port).get_node().data
            limits.input(port).replace_source_output(ops.constant(np.full_like(limit, 1e-3)).output(0))
        return quantized

    quantize_network = quantize.quantize_network
    monkeypatch.setattr(quantize, "quantize_network", quantize_badly)
    result = choose(network, data, engine="openvino", precision="int8")
    refused, *_, accepted = result.facts["tried"]
    assert "int8, " in refused
    assert "of 40 set aside" in refused
    assert "below serving.min_agreement" in refused
    assert "int8 but for 1 of" in accepted


@pytest.mark.slow
def test_int8_that_is_named_and_refused_stops_the_export_where_the_engine_is_free_too(network, data, no_bfloat16):
    with pytest.raises(TrainingError, match=r"(?s)engine: auto with serving.precision: int8: no form .* int8 but for"):
        choose(network, data, engine="auto", precision="int8", max_difference=1e-4)


def try_openvino(monkeypatch, milliseconds: dict[tuple[str, int], float], refused: list[tuple[str, int]]) -> list[str]:
    """Returns the lines for forms by precision and number of layers in float32, of which some are refused."""

    def make_recipe(precision: str) -> recipes.Recipe:
        return recipes.Recipe(
            f"OpenVINO, {precision}",
            precision,
            prepare=lambda network: None,
            list_layers=lambda prepared: [f"layer {number}" for number in range(20)],
            build=lambda prepared, kept: (precision, len(kept)),
            wrap=lambda form: form,
        )

    tried: list[str] = []

    def try_form(name, recipe, form, kept):
        tried.append(f"{name}: {'refused' if form in refused else 'accepted'}")
        return (None if form in refused else form), [], {"agreement": None, "max_difference": 0.1}

    precisions = dict.fromkeys(precision for precision, _ in milliseconds)
    monkeypatch.setattr(forms, "_list_recipes", lambda judge: map(make_recipe, precisions))
    monkeypatch.setattr(forms, "measure_ms", lambda form, batch: milliseconds[form])
    monkeypatch.setattr(forms, "measure_error", lambda form, batch, expected: 1 / (1 + form[1]))
    monkeypatch.setattr(forms, "compile_network", lambda network: lambda batch: {"logits": np.zeros(1)})
    judge = SimpleNamespace(
        serving=ServingConfig(engine="openvino"), network=None, tried=tried, report=tried.append, try_form=try_form
    )
    judge.must_prove, judge.show_at_best = lambda recipe: True, lambda: 1.0
    forms._choose_openvino(None, judge, {})
    return tried


MILLISECONDS = {("float32", 0): 5.0, ("int8", 0): 4.0, ("int8", 2): 4.5, ("int8", 6): 9.0}


def test_a_form_with_layers_in_float32_is_tried_when_those_that_are_faster_were(monkeypatch):
    refused = [("int8", 0), ("int8", 2)]
    assert try_openvino(monkeypatch, MILLISECONDS, refused) == [
        "OpenVINO, int8, 4.00 ms an image: refused",
        "OpenVINO, int8 but for 2 of 20 layers, 4.50 ms an image: refused",
        "OpenVINO, float32, 5.00 ms an image: accepted",
    ]
    *_, last = try_openvino(monkeypatch, MILLISECONDS, [*refused, ("float32", 0)])
    assert last == "OpenVINO, int8 but for 6 of 20 layers, 9.00 ms an image: accepted"


def test_where_time_runs_out_layers_anywhere_were_measured_and_the_share_is_of_all_layers(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(layers, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(layers, "_MAX_SECONDS", 6)
    names = [f"layer {number}" for number in range(20)]
    ranked = layers.rank_layers(names, lambda kept: -sum(map(names.index, kept)))
    assert len(ranked) == 6
    assert max(map(names.index, ranked)) >= 10
    clock = iter(range(1000))
    monkeypatch.setattr(layers, "_MAX_SECONDS", 4)
    milliseconds = {**MILLISECONDS, ("int8", 4): 4.6}
    *_, last = try_openvino(monkeypatch, milliseconds, [("int8", 0), ("int8", 2)])
    assert last == "OpenVINO, int8 but for 4 of 20 layers (the effect of 4 was measured), 4.60 ms an image: accepted"


def make_delicate(weight: float) -> keras.Model:
    """Returns a network in which a convolution takes 300 times its input from ``weight`` times the same."""
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name=IMAGE)
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.DepthwiseConv2D(3, activation="relu", depthwise_initializer=keras.initializers.Constant(1 / 9))(x)
    x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
    kernel = np.concatenate([weight * np.eye(3), -300 * np.eye(3)])[None, None]
    x = keras.layers.Conv2D(3, 1, kernel_initializer=keras.initializers.Constant(kernel))(
        keras.layers.Concatenate()([x, x])
    )
    x = keras.layers.Flatten()(x)
    logits = keras.layers.Dense(3, kernel_initializer=keras.initializers.Identity(20.0))(x)
    return keras.Model({IMAGE: image}, {"logits": logits, "embedding": x})


@pytest.mark.skipif(not devices.has_openvino_bfloat16(), reason="OpenVINO emulates bfloat16 here")
def test_a_layer_that_bfloat16_harms_is_kept_in_float32(data, tmp_path):
    result = choose(make_delicate(300.9), data, engine="openvino", precision="bfloat16")  # rounded to 300
    for engine, (refused, accepted) in zip(
        ("TensorFlow", "OpenVINO"), np.reshape(result.facts["tried"], (2, 2)), strict=True
    ):
        assert refused.startswith(f"{engine}, bfloat16")
        assert "refused" in refused
        assert accepted.startswith(f"{engine}, bfloat16 but for 1 of")
        assert "accepted" in accepted
    assert (result.saved.precision, result.openvino.precision) == ("bfloat16", "bfloat16")
    openvino.save_model(result.openvino.network, tmp_path / "network.xml", compress_to_fp16=False)
    inputs = {IMAGE: data.validation.images.read(np.arange(8))}
    written, own = (
        compile_network(network, "bfloat16")(inputs)["logits"]
        for network in (tmp_path / "network.xml", result.openvino.network)
    )
    assert np.array_equal(written, own)
    assert np.ptp(own, axis=1).min() > 0.1


def test_after_a_refit_the_form_of_the_network_that_has_not_seen_an_image_is_asked_about_it(
    data, no_bfloat16, monkeypatch
):
    monkeypatch.setattr(forms, "_SHARES_KEPT", ())
    network, chosen = make_delicate(302), make_delicate(300.9)  # the second is rounded
    config, serving = TrainerConfig(weights="none"), ServingConfig(precision="bfloat16")
    with pytest.raises(TrainingError, match=r"1000 of 1000 images that it was trained on and \d+ of 40 set aside"):
        choose_forms(network, chosen, config, serving, data)
    assert choose_forms(network, network, config, serving, data).saved.precision == "bfloat16"


def test_layers_in_float32_are_tried_though_few_images_set_aside_refused_the_form(data, monkeypatch):
    """Those count alone for this form; for a better one they needn't."""
    monkeypatch.setattr(forms, "choose_precision", lambda _: "mixed_bfloat16")
    times = itertools.count(100, -1)  # each form is faster than those before
    monkeypatch.setattr(forms, "measure_ms", lambda *_: next(times))
    config = TrainerConfig(weights="none")
    result = choose_forms(make_delicate(302), make_delicate(300.9), config, ServingConfig(), data)
    refused, tried = result.facts["tried"][:2]
    assert "refused: 1000 of 1000 images that it was trained on" in refused
    assert tried.startswith("TensorFlow, bfloat16 but for 1 of")


def compute_bfloat16(monkeypatch, change: Callable[[str, tf.Tensor], tf.Tensor]) -> None:
    """Changes the outputs of TensorFlow's form in bfloat16, by name."""
    monkeypatch.setattr(forms, "choose_precision", lambda _: "mixed_bfloat16")
    wrap = optimize.wrap_graph

    def wrap_changed(lowered, suffix):
        computed = wrap(lowered, suffix)
        if suffix != "_bfloat16":
            return computed
        return lambda features: {name: change(name, x) for name, x in computed(features).items()}

    monkeypatch.setattr(recipes.optimize, "wrap_graph", wrap_changed)


def test_a_form_that_finds_other_images_unknown_is_refused_where_these_get_no_label(network, data, monkeypatch):
    compute_bfloat16(monkeypatch, lambda name, x: x[::-1] if name == "embedding" else x)
    monkeypatch.setattr(forms, "_SHARES_KEPT", ())
    assert choose(network, data).saved.precision == "bfloat16"
    refused = choose(network, data, unknown={"novelty": 0.7})
    assert refused.saved.precision == "float32"
    assert "TensorFlow, bfloat16: refused: " in refused.facts["tried"][0]
    assert 0.2 < refused.fitted.unknown.held_out.mean() < 0.4


def test_where_no_image_is_set_aside_a_regression_is_judged_by_its_error_in_training(data, monkeypatch):
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name=IMAGE)
    embedding = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    value = keras.layers.Dense(1, kernel_initializer="ones")(embedding)
    network = keras.Model({IMAGE: image}, {"logits": value, "embedding": embedding})
    task, error = make_regression("mean_squared_error"), 0.01  # a fifth of the values' standard deviation or less

    def make_split(split: LoadedSplit) -> LoadedSplit:
        """Gives images the network's values as targets, but for the error."""
        values = network.predict({IMAGE: split.images.read(np.arange(split.count))}, verbose=0)["logits"]
        return dataclasses.replace(split, targets=values + error * (-1) ** np.arange(split.count)[:, None], task=task)

    splits = make_split(data.train), make_split(data.validation)
    numbers = TrainingData(task, ["x"], (SIDE, SIDE), {}, *splits, is_set_aside=False)
    monkeypatch.setattr(forms, "_SHARES_KEPT", ())
    for share, precision in ((0.05, "bfloat16"), (0.15, "float32")):
        with monkeypatch.context() as changed:

            def shift(name: str, x: tf.Tensor, by: float = share * error) -> tf.Tensor:
                return x + by if name == "logits" else x

            compute_bfloat16(changed, shift)
            assert choose(network, numbers).saved.precision == precision, share


def test_few_images_can_not_show_that_int8_may_be_used(network, data, no_bfloat16):
    few = TrainingData(**{**vars(data), "train": data.train.select(np.arange(60))})
    result = choose(network, few, engine="auto")
    assert any("int8: not tried, as so many images show that 9" in line for line in result.facts["tried"])
    assert result.facts["precision"] == "float32"


def test_tensorflow_serves_where_openvino_is_missing(network, data, monkeypatch, no_bfloat16):
    find = forms.importlib.util.find_spec
    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    result = choose(network, data, engine="auto")
    assert result.openvino is None
    assert "pip install 'imagepipe-tfx[openvino]'" in result.facts["tried"][0]
    with pytest.raises(TrainingError, match=r"pip install 'imagepipe-tfx\[openvino\]'"):
        check_engine(ServingConfig(engine="openvino"))


def test_bfloat16_of_openvino_is_refused_in_words_where_the_processor_lacks_it(network, data, monkeypatch, no_bfloat16):
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    named = ServingConfig(engine="openvino", precision="bfloat16")
    with pytest.raises(TrainingError, match=r"serving.precision: bfloat16 needs a processor with bfloat16"):
        check_engine(named)
    check_engine(ServingConfig(engine="openvino"))
    loose = named.model_copy(update={"max_difference": 1.0})
    with pytest.raises(TrainingError, match=r"(?s)no form was accepted. Try precision: auto.*this processor lacks it"):
        choose_forms(network, network, TrainerConfig(weights="none"), loose, data)
