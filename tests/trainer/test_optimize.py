"""The graph that serves, against the network that was trained."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.features import IMAGE
from trainer.export import optimize
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


@pytest.mark.parametrize(("bfloat16", "within"), [(False, 1e-6), (True, 1e-2)])
def test_its_outputs_are_those_of_the_network(network, evaluation, bfloat16, within):
    inputs = read_inputs(evaluation)
    function = optimize.optimize_network(network, bfloat16)
    differences = tf.nest.map_structure(lambda a, b: np.abs(a - b).max(), function(inputs), network(inputs))
    assert max(differences.values()) < within


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
