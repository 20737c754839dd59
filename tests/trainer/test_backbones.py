import subprocess
import sys

import keras
import numpy as np
import pytest

from trainer import backbones
from trainer.backbones import BACKBONES
from trainer.config import TrainerConfig
from trainer.network import build_network, unfreeze_after
from trainer.tasks import make_classification

# The smallest of each family; the others differ in width and depth alone.
FAMILIES = {
    "inception_v3": "inception_v3",
    "xception": "xception",
    "resnet50": "resnet",
    "resnet50v2": "resnet_v2",
    "densenet121": "densenet",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3_small": "mobilenet_v3",
    "efficientnet_v2_b0": "efficientnet_v2",
    "convnext_tiny": "convnext",
}


def test_the_table_is_read_without_keras():
    code = "import sys, trainer.backbones; sys.exit('keras' in sys.modules or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_every_row_names_an_application_and_its_own_size_is_large_enough(backbone):
    assert callable(getattr(keras.applications, backbone.application))
    assert min(backbone.size) >= backbone.min_side


@pytest.mark.parametrize("name", FAMILIES)
def test_keras_agrees_with_the_row(name):
    backbone = BACKBONES[name]
    min_side = backbone.min_side
    config = TrainerConfig(backbone=name, weights="none", head_units=2)
    network = build_network((min_side, min_side), make_classification(2), {}, config)
    unfreeze_after(network.base, backbone.unfreeze_after)
    trained = {layer.name for layer in network.base.layers if layer.trainable and layer.weights}
    frozen = {layer.name for layer in network.base.layers if not layer.trainable and layer.weights}
    assert trained
    assert frozen

    application = getattr(keras.applications, backbone.application)
    with pytest.raises(ValueError, match=f"at least {min_side}"):
        application(include_top=False, weights=None, input_shape=(min_side, min_side - 1, 3))

    pixels = np.random.default_rng(0).integers(0, 256, (2, min_side, min_side, 3)).astype(np.uint8)
    preprocess_input = getattr(keras.applications, FAMILIES[name]).preprocess_input
    np.testing.assert_allclose(
        network.scaling(pixels), preprocess_input(pixels.astype(np.float32)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if row.scaling is None and name in FAMILIES])
def test_a_base_that_scales_inside_can_do_without(name):
    application = getattr(keras.applications, BACKBONES[name].application)
    inside = application(include_top=False, weights=None, input_shape=(32, 32, 3))
    without = application(include_top=False, weights=None, input_shape=(32, 32, 3), include_preprocessing=False)
    assert len(without.layers) < len(inside.layers)
    assert [w.shape for w in without.weights] == [w.shape for w in inside.weights]


def test_the_default_is_a_row():
    assert backbones.DEFAULT in BACKBONES
