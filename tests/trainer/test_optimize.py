"""The graph that serves, against the network that was trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE
from trainer.config import ServingConfig
from trainer.export import optimize
from trainer.export.optimize import optimize_for_serving
from trainer.inputs import ArrayFile, LoadedSplit
from trainer.tasks import make_regression

SIDE, COUNT = 16, 40


@pytest.fixture(scope="module")
def network() -> keras.Model:
    """Convolutions with BatchNormalization whose statistics are not the initial ones, and a side feature."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name=IMAGE)
    weight = keras.Input((), name="weight")
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    for filters in (8, 16):
        x = keras.layers.Conv2D(filters, 3, use_bias=False)(x)
        norm = keras.layers.BatchNormalization()
        x = keras.layers.Activation("relu")(norm(x))
        norm.moving_mean.assign(np.linspace(-0.2, 0.2, filters))
        norm.moving_variance.assign(np.linspace(0.3, 2, filters))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([x, keras.layers.Reshape((1,))(weight)])
    return keras.Model({IMAGE: image, "weight": weight}, {"logits": keras.layers.Dense(3)(x), "embedding": x})


@pytest.fixture
def evaluation(tmp_path) -> LoadedSplit:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
    (tmp_path / "pixels").write_bytes(pixels.data)
    rows = ArrayFile(tmp_path / "pixels", (SIDE, SIDE, 3), np.dtype(np.uint8))
    return LoadedSplit(
        rows, {"weight": rng.random(COUNT, np.float32)}, np.full((COUNT, 1), 7, np.float32), make_regression("huber")
    )


def read_inputs(split: LoadedSplit) -> dict[str, tf.Tensor]:
    return {IMAGE: tf.constant(split.images.read(np.arange(split.count))), "weight": tf.constant(split.side["weight"])}


def trace_graph(function) -> tuple[tf.Graph, list[str]]:
    """Returns the graph that a SavedModel would contain, and the types of all its operations."""
    specs = {IMAGE: tf.TensorSpec([None, SIDE, SIDE, 3], tf.uint8), "weight": tf.TensorSpec([None])}
    graph = tf.function(lambda features: function(features)).get_concrete_function(specs).graph
    library = graph.as_graph_def().library.function
    return graph, [node.op for inner in library for node in inner.node_def]


@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_its_outputs_are_those_of_the_network(network, evaluation, precision, within):
    function, facts = optimize_for_serving(
        network, tf.nn.softmax, "classification", evaluation, ServingConfig(precision=precision)
    )
    inputs = read_inputs(evaluation)
    differences = tf.nest.map_structure(lambda a, b: np.abs(a - b).max(), function(inputs), network(inputs))
    assert max(differences.values()) < within
    probabilities = [tf.nn.softmax(f(inputs)["logits"]) for f in (function, network)]
    difference = np.abs(probabilities[0] - probabilities[1]).max()
    assert facts["precision"] == precision
    assert facts["max_difference"] == pytest.approx(difference, abs=1e-6)


def test_variables_are_constants_and_batch_normalization_is_part_of_the_convolutions(network):
    graph, operations = trace_graph(optimize.optimize_network(network, bfloat16=False))
    assert not graph.variables
    assert operations.count("Conv2D") == 2
    assert operations.count("BiasAdd") == 2  # what is left of it
    assert not {"Rsqrt", "Sub", "Mul", "AddV2", "ReadVariableOp"} & set(operations)  # nor any of the scaling of pixels


def test_scaling_stays_before_a_convolution_that_pads(evaluation):
    image = keras.Input((SIDE, SIDE, 3), dtype="uint8", name=IMAGE)
    weight = keras.Input((), name="weight")
    x = keras.layers.Conv2D(4, 3, padding="same", bias_initializer="ones")(keras.layers.Rescaling(1 / 127.5, -1)(image))
    x = keras.layers.GlobalAveragePooling2D()(x)
    padded = keras.Model({IMAGE: image, "weight": weight}, keras.layers.Activation("softmax")(x))
    function = optimize.optimize_network(padded, bfloat16=False)
    assert {"Mul", "AddV2"} <= set(trace_graph(function)[1])
    inputs = read_inputs(evaluation)
    assert np.abs(function(inputs) - padded(inputs, training=False)).max() < 1e-6


def test_weights_of_convolutions_are_stored_in_bfloat16(network):
    graph, _ = trace_graph(optimize.optimize_network(network, bfloat16=True))
    nodes = [node for inner in graph.as_graph_def().library.function for node in inner.node_def]
    assert {node.attr["T"].type for node in nodes if node.op == "Conv2D"} == {tf.bfloat16.as_datatype_enum}
    assert {node.attr["T"].type for node in nodes if node.op == "MatMul"} == {tf.float32.as_datatype_enum}
    to_bfloat16 = [n for n in nodes if n.op == "Cast" and n.attr["DstT"].type == tf.bfloat16.as_datatype_enum]
    assert [node.attr["SrcT"].type for node in to_bfloat16] == [tf.uint8.as_datatype_enum]  # which loses nothing
    kernels = [node for node in nodes if node.op == "Const" and len(node.attr["value"].tensor.tensor_shape.dim) == 4]
    assert {node.attr["value"].tensor.dtype for node in kernels} == {tf.bfloat16.as_datatype_enum}
    assert all(node.attr["value"].tensor.tensor_content for node in kernels)  # two bytes a number, not integers


def test_grouped_convolutions_which_keras_computes_in_functions_of_its_own_are_optimized_too():
    image = keras.Input((SIDE, SIDE, 6), name=IMAGE)
    grouped = keras.Model({IMAGE: image}, keras.layers.Conv2D(6, 3, groups=3, bias_initializer="ones")(image))
    pixels = {IMAGE: tf.random.stateless_uniform((2, SIDE, SIDE, 6), (0, 0))}
    for bfloat16, within in ((True, 0.05), (False, 1e-5)):
        function = optimize.optimize_network(grouped, bfloat16)
        assert np.abs(function(pixels) - grouped(pixels, training=False)).max() < within


@pytest.mark.parametrize(("policy", "precision"), [("mixed_bfloat16", "bfloat16"), ("float32", "float32")])
def test_auto_computes_as_this_machine_is_faster(network, evaluation, monkeypatch, policy, precision):
    monkeypatch.setattr(optimize, "choose_precision", lambda _: policy)
    _, facts = optimize_for_serving(network, tf.nn.softmax, "classification", evaluation, ServingConfig())
    assert facts["precision"] == precision


def test_switched_off_the_network_itself_is_served(network, evaluation):
    config = ServingConfig.model_validate({"optimize": False})  # what YAML makes of off
    assert optimize_for_serving(network, tf.nn.softmax, "classification", evaluation, config) == (
        network,
        {"precision": "float32", "max_difference": None},
    )


def test_a_graph_that_differs_too_much_is_not_exported(network, evaluation, monkeypatch):
    config = ServingConfig(precision="bfloat16", max_difference=1e-7)
    with pytest.raises(TrainingError, match=r"in bfloat16; serving.max_difference is 1e-07. Try .*precision: float32"):
        optimize_for_serving(network, tf.nn.softmax, "classification", evaluation, config)
    monkeypatch.setattr(
        optimize, "optimize_network", lambda *_: lambda features: {"logits": features["weight"][:, None] * np.nan}
    )
    with pytest.raises(TrainingError, match=r"up to inf in float32; .* Try serving.optimize: off"):
        optimize_for_serving(network, tf.nn.softmax, "classification", evaluation, ServingConfig(precision="float32"))


def test_auto_uses_float32_if_bfloat16_differs_too_much(network, evaluation, monkeypatch):
    monkeypatch.setattr(optimize, "choose_precision", lambda _: "mixed_bfloat16")
    config = ServingConfig(max_difference=1e-5)
    _, facts = optimize_for_serving(network, tf.nn.softmax, "classification", evaluation, config)
    assert facts["precision"] == "float32"
    with pytest.raises(
        TrainingError, match=r"by up to .* in bfloat16, by up to .* in float32; .* serving.optimize: off"
    ):
        optimize_for_serving(
            network, tf.nn.softmax, "classification", evaluation, config.model_copy(update={"max_difference": 1e-12})
        )


def test_a_regression_differs_in_units_of_its_target(network, evaluation, monkeypatch):
    monkeypatch.setattr(
        optimize, "optimize_network", lambda *_: lambda features: {"logits": network(features)["logits"] + 50}
    )
    evaluation.targets[: COUNT // 2] += 2000  # a standard deviation of 1,000
    _, facts = optimize_for_serving(network, tf.identity, "regression", evaluation, ServingConfig())
    assert facts["max_difference"] == pytest.approx(0.05, rel=1e-3)
