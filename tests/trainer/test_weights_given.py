"""Real files from elsewhere, where they are at hand."""

from pathlib import Path

import keras
import numpy as np
import pytest

from trainer.pretrained import check_weights, load_weights
from trainer.weights.contents import open_weights
from trainer.weights.identify import describe_contents

FOLDER = Path(__file__).parents[2].parent / "shared" / "weights"
WHOLE = FOLDER / "whole_model_mobilenet_v2_160.h5"
BASE = FOLDER / "inception_v3_notop.weights.h5"


def read_description(file):
    with open_weights(str(file)) as (contents, _):
        return describe_contents(contents)


@pytest.mark.skipif(not WHOLE.is_file(), reason=f"there is no {WHOLE}")
def test_a_whole_classifier_is_read_unchanged():
    check_weights(str(WHOLE), "mobilenet_v2")
    base = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(160, 160, 3))
    load_weights(base, str(WHOLE), "mobilenet_v2")
    first = base.get_layer("Conv1").get_weights()[0]
    with open_weights(str(WHOLE)) as (contents, read):
        stored = next(layer for layer in contents.layers if layer.name == "Conv1")
        np.testing.assert_array_equal(first, read(stored.keys[0]))
    description = read_description(WHOLE)
    assert (description.backbone, description.size, description.top) == ("mobilenet_v2", (160, 160), 19)


@pytest.mark.slow
@pytest.mark.skipif(not BASE.is_file(), reason=f"there is no {BASE}")
def test_a_base_alone_is_read_unchanged():
    check_weights(str(BASE), "inception_v3")
    base = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(96, 96, 3))
    load_weights(base, str(BASE), "inception_v3")
    expected = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(96, 96, 3))
    expected.load_weights(BASE)
    assert all(np.array_equal(a, b) for a, b in zip(base.get_weights(), expected.get_weights(), strict=True))
    assert read_description(BASE).backbone == "inception_v3"
