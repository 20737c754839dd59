"""Files that Keras 2 wrote (tf_keras): MobileNetV3, whose layers had other names then, in every kind of file."""

import keras
import numpy as np
import pytest
import tf_keras

from trainer.pretrained import load_weights
from trainer.weights.contents import open_weights
from trainer.weights.identify import describe_contents

SIZE = (32, 32, 3)


pytestmark = pytest.mark.slow  # to save the files takes 12 s, and a SavedModel 20


@pytest.fixture(scope="module")
def base():
    model = tf_keras.applications.MobileNetV3Small(SIZE, include_top=False, weights=None)
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras2")
    base.save_weights(folder / "base.h5")
    base.save(folder / "base.keras")
    image = tf_keras.Input(SIZE)
    pooled = tf_keras.layers.GlobalAveragePooling2D()(base(tf_keras.layers.Rescaling(1 / 127.5)(image)))
    nested = tf_keras.Model(image, tf_keras.layers.Dense(3)(pooled))
    nested.save_weights(folder / "nested.weights.h5")
    nested.save(folder / "nested.h5")
    nested.save(folder / "nested.keras")
    nested.export(folder / "exported")
    deep = tf_keras.Sequential([tf_keras.Sequential([base, tf_keras.layers.Flatten()]), tf_keras.layers.Dense(4)])
    deep.build((None, *SIZE))
    deep.save(folder / "deep.h5")
    deep.save(folder / "deep.keras")
    flat = tf_keras.Model(base.input, tf_keras.layers.Dense(3)(tf_keras.layers.Flatten()(base.output)))
    flat.save(folder / "flat.h5")
    flat.save_weights(folder / "flat.weights.h5")
    for layer in base.layers[:100]:
        layer.trainable = False
    nested.save(folder / "half-frozen.h5")
    base.trainable = True
    return folder


KINDS = {
    "base.h5": None,
    "base.keras": None,
    "nested.weights.h5": 3,
    "nested.h5": 3,
    "nested.keras": 3,
    "exported": 3,
    "deep.h5": 4,
    "deep.keras": 4,
    "flat.h5": 3,
    "flat.weights.h5": 3,
    "half-frozen.h5": 3,
}


@pytest.fixture(scope="module")
def loaded():
    """The network of Keras 3, for weights to be loaded into."""
    return keras.applications.MobileNetV3Small(SIZE, include_top=False, weights=None)


def list_weights(model) -> list[np.ndarray]:
    return [weight for layer in model.layers for weight in layer.get_weights()]


def check_file(base, loaded, file, top):
    loaded.set_weights([np.zeros_like(weight) for weight in loaded.get_weights()])
    load_weights(loaded, str(file), "mobilenet_v3_small")
    assert all(np.array_equal(a, b) for a, b in zip(list_weights(base), list_weights(loaded), strict=True))
    with open_weights(str(file)) as (contents, _):
        description = describe_contents(contents)
    assert (description.backbone, description.top) == ("mobilenet_v3_small", top)
    assert description.base_numbers == loaded.count_params()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_is_read(base, loaded, files, name):
    check_file(base, loaded, files / name, KINDS[name])


def test_a_saved_model_is_read(base, loaded, tmp_path):
    image = tf_keras.Input(SIZE)
    pooled = tf_keras.layers.GlobalAveragePooling2D()(base(image))
    model = tf_keras.Model(image, tf_keras.layers.Dense(6)(pooled))
    model.compile("adam", "mse")
    model.fit(np.zeros((1, *SIZE)), np.zeros((1, 6)), verbose=0)
    model.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "keras_metadata.pb").is_file()
    check_file(base, loaded, tmp_path / "saved", 6)
