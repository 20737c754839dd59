"""The shipped layers of the built-in backbones are Keras's."""

import subprocess
import sys

import pytest

from tools.backbone_layers import build_table
from trainer.backbones import BACKBONES
from trainer.weights.identify import LAYERS, load_layers

FEW = ("mobilenet_v2", "mobilenet_v3_small", "densenet121")


def test_every_backbone_has_its_layers_in_a_small_file():
    assert list(load_layers()) == list(BACKBONES)
    assert LAYERS.stat().st_size < 100_000


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in BACKBONES]
)
def test_keras_builds_the_layers_that_are_shipped(backbone):
    assert build_table(backbone) == load_layers()[backbone], "run `python -m tools.backbone_layers`"


def test_a_file_is_checked_without_tensorflow():
    code = "import sys, trainer.pretrained as p; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603
