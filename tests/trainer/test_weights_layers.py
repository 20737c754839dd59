"""The shipped layers of the built-in backbones are Keras's."""

import subprocess
import sys

import pytest

from tools.backbone_layers import build_tables
from trainer.backbones import BACKBONES
from trainer.unfreezing import NAMES, load_names
from trainer.weights.identify import LAYERS, load_layers

FEW = ("mobilenet_v2", "mobilenet_v3_small")
# Networks of the families above and below that only repeat more blocks: seconds each, the largest half a minute.
LARGER = ("mobilenet_v3_large", "resnet101v2", "resnet152v2", "convnext_small", "convnext_base", "convnext_large")
LARGER += tuple(f"efficientnet_v2_{size}" for size in ("b1", "b2", "b3", "s", "m", "l"))


def choose_marks(backbone: str) -> tuple[pytest.MarkDecorator, ...]:
    if backbone in FEW:
        return ()
    return (pytest.mark.long if backbone in LARGER else pytest.mark.slow,)


def test_every_backbone_has_its_layers_in_a_small_file():
    assert list(load_layers()) == list(load_names()) == list(BACKBONES)
    assert LAYERS.stat().st_size + NAMES.stat().st_size < 100_000
    assert all(row.unfreeze_after in load_names()[name] for name, row in BACKBONES.items())


@pytest.mark.parametrize("backbone", [pytest.param(name, marks=choose_marks(name)) for name in BACKBONES])
def test_keras_builds_the_layers_that_are_shipped(backbone):
    shipped = load_layers()[backbone], load_names()[backbone]
    assert build_tables(backbone) == shipped, "run `python -m tools.backbone_layers`"


def test_a_file_is_checked_without_tensorflow():
    code = "import sys, trainer.pretrained as p; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0  # noqa: S603
