import keras
import numpy as np
import pytest

from imagepipe.base.errors import TrainingError
from trainer.config import TrainerConfig
from trainer.data import PixelStatistics
from trainer.network import build_network, get_head_units, set_batch_norm_momentum, unfreeze_after
from trainer.tasks import make_classification, make_multilabel, make_regression

SIZE = (40, 48)
SCRATCH = TrainerConfig(weights="none", backbone="mobilenet_v2")
SIDE = {"price": None, "camera": 3}
STATISTICS = PixelStatistics((10.0, 100.0, 200.0), (4.0, 900.0, 0.0))


def rows(n: int = 2) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(1).integers(0, 256, (n, *SIZE, 3)).astype(np.uint8)
    return {"image": pixels, "price": np.linspace(-3, 3, n).astype(np.float32), "camera": np.arange(n) % 3}


@pytest.fixture(scope="module")
def built():
    return build_network(SIZE, make_classification(4), SIDE, SCRATCH)


def test_side_features_and_pixels_give_a_probability_for_each_class(built):
    same_pixels = rows() | {"image": np.zeros((2, *SIZE, 3), np.uint8)}
    probabilities = built.model(same_pixels).numpy()
    assert probabilities.shape == (2, 4)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert not np.allclose(probabilities[0], probabilities[1])  # the side features count


@pytest.mark.parametrize("task", [make_multilabel(3), make_regression("huber")])
def test_a_task_gives_the_number_of_outputs_and_their_activation(task):
    head = build_network(SIZE, task, {}, SCRATCH).head
    assert head.get_layer("logits").units == task.outputs
    assert head.get_layer("outputs").activation is keras.activations.get(task.activation)


def test_what_is_served_are_the_features_and_the_outputs_before_their_activation(built):
    served = built.served(rows())
    np.testing.assert_allclose(served["embedding"], built.pooled(rows()["image"]), rtol=1e-5)
    np.testing.assert_allclose(keras.ops.softmax(served["logits"]), built.model(rows()), rtol=1e-5, atol=1e-6)


def test_the_head_on_pooled_features_is_the_model_on_images(built):
    features = built.pooled(rows()["image"]).numpy()
    assert not np.allclose(features[0], features[1], atol=1e-3 * features.max())  # the pixels count
    assert features.shape == (2, built.base.output_shape[-1])
    assert features.dtype == np.float32
    np.testing.assert_allclose(built.head(rows() | {"image": features}), built.model(rows()), rtol=1e-5, atol=1e-6)
    scaled = rows()["image"] / np.float32(127.5) - 1
    np.testing.assert_allclose(
        np.mean(built.base(scaled), axis=(1, 2)), features, rtol=1e-2, atol=1e-4 * features.max()
    )


def test_training_the_head_alone_is_training_the_model(built):
    initial = built.model(rows()).numpy()
    built.head.get_layer("logits").bias.assign_add([1, 0, 0, 0])
    assert (built.model(rows()).numpy()[:, 0] > initial[:, 0]).all()


@pytest.mark.parametrize(
    ("backbone", "normalization"),
    [
        ("mobilenet_v2", "featurewise"),
        pytest.param("resnet50", "backbone", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "featurewise", marks=pytest.mark.slow),
    ],
)
def test_a_model_is_what_it_was_after_saving_and_loading(tmp_path, backbone, normalization):
    config = TrainerConfig(weights="none", backbone=backbone, normalization=normalization)
    network = build_network(SIZE, make_classification(4), SIDE, config, STATISTICS).model
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in network.layers]
    assert np.array_equal(loaded(rows()), network(rows()))


def test_the_hidden_layer_and_its_dropout_are_as_configured():
    config = TrainerConfig(weights="none", backbone="mobilenet_v2", head_units=7, dropout=0.5)
    head = build_network(SIZE, make_classification(4), {}, config).head
    assert head.get_layer("hidden").units == 7
    assert head.get_layer("dropout").rate == 0.5
    assert [layer.name for layer in head.layers] == ["image", "hidden", "dropout", "logits", "outputs"]


@pytest.mark.parametrize(("dropout", "classes_rate", "number_rate"), [(None, 0.2, 0), (0.1, 0.1, 0.1)])
def test_what_is_dropped_by_default_is_for_probabilities_and_not_for_numbers(dropout, classes_rate, number_rate):
    config = TrainerConfig(weights="none", backbone="mobilenet_v2", dropout=dropout)
    for task, rate in ((make_classification(4), classes_rate), (make_regression("huber"), number_rate)):
        assert build_network(SIZE, task, {}, config).head.get_layer("dropout").rate == rate


@pytest.mark.parametrize(
    ("options", "has_side", "units"),
    [
        ({"weights": "none"}, False, 1024),
        ({"weights": "imagenet"}, False, 0),
        ({"weights": "imagenet"}, True, 1024),
        ({"weights": "imagenet", "head_units": 7}, False, 7),
    ],
)
def test_on_pretrained_features_alone_the_head_is_linear_by_default(options, has_side, units):
    assert get_head_units(TrainerConfig(**options), has_side) == units


def test_a_head_without_hidden_units_is_linear():
    config = TrainerConfig(weights="none", backbone="mobilenet_v2", head_units=0)
    head = build_network(SIZE, make_classification(4), {}, config).head
    assert [layer.name for layer in head.layers] == ["image", "dropout", "logits", "outputs"]


def test_outputs_and_pooled_features_are_float32_also_where_the_rest_computes_in_16_bits():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        built = build_network(SIZE, make_classification(4), SIDE, SCRATCH)
    finally:
        keras.config.set_dtype_policy("float32")
    assert built.base.layers[-1].compute_dtype == "bfloat16"
    assert built.head.get_layer("hidden").compute_dtype == "bfloat16"
    assert built.pooled(rows()["image"]).dtype == "float32"
    assert built.model(rows()).dtype == "float32"


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "mobilenet_v3_small"])
def test_featurewise_scaling_standardizes_each_channel_instead_of_the_backbones_scaling(backbone):
    config = TrainerConfig(weights="none", backbone=backbone, normalization="featurewise")
    built = build_network(SIZE, make_classification(2), {}, config, STATISTICS)
    pixels = np.stack([np.full(SIZE, level, np.uint8) for level in (12, 70, 203)], axis=-1)
    # The last channel never varied: its 3 levels more are 3, not millions.
    assert built.model.get_layer("scale")(pixels[None]).numpy()[0, 0, 0] == pytest.approx([1, -1, 3])
    assert not any(isinstance(layer, keras.layers.Rescaling) for layer in built.base.layers)
    with pytest.raises(ValueError, match="featurewise needs the statistics"):
        build_network(SIZE, make_classification(2), {}, config)


@pytest.mark.slow
def test_batch_normalization_follows_the_data_from_scratch_and_not_when_it_is_fine_tuned():
    built = build_network(SIZE, make_classification(4), SIDE, SCRATCH)
    built.model.compile("sgd", "categorical_crossentropy")

    def changed(layer: str) -> bool:
        initial = built.base.get_layer(layer).get_weights()
        built.model.fit(rows(4), np.eye(4), verbose=0)
        return not all(map(np.array_equal, initial, built.base.get_layer(layer).get_weights()))

    assert changed("Conv_1_bn")
    unfreeze_after(built.base, "block_12_add")
    built.model.compile("sgd", "categorical_crossentropy")
    assert not changed("Conv_1_bn")
    assert not changed("Conv1")
    assert changed("Conv_1")


def test_batch_normalization_in_models_and_layers_within_the_base_is_treated_like_its_own():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm = keras.layers.BatchNormalization()

        def call(self, x):
            return self.norm(x)

    norms = [keras.layers.BatchNormalization() for _ in range(2)]
    nested = keras.Sequential([keras.Input((8, 8, 3)), keras.Sequential([norms[0]]), norms[1], Block()])
    image = keras.Input((8, 8, 3), name="image")
    base = keras.Model(image, keras.layers.Conv2D(2, 3, name="last")(nested(image)))
    unfreeze_after(base, "image")
    own = [layer for layer in base._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(own) == 3
    assert not any(layer.trainable for layer in own)
    assert base.get_layer("last").trainable
    set_batch_norm_momentum(base, 10)
    assert {layer.momentum for layer in own} == {0.5}


def test_a_layer_that_the_base_lacks_is_refused_before_training(built, tmp_path):
    built.base.save_weights(tmp_path / "base.weights.h5")
    config = TrainerConfig(
        backbone="mobilenet_v2", weights=str(tmp_path / "base.weights.h5"), unfreeze_after="block_99_add"
    )
    with pytest.raises(TrainingError, match=r"no layer 'block_99_add' in mobilenet\S*\. Similar names: .*block_9_add"):
        build_network(SIZE, make_classification(2), {}, config)
