"""A backbone of three layers, for whole pipelines that are not about the network: ``tests.small_backbone:build``.

To trace, compare and export one with a hundred layers takes most of the time of such a run.
"""

import keras

SIZE = (32, 32)
MIN_SIDE = 32
SCALING = "-1 to 1"
UNFREEZE_AFTER = "block_2"

BACKBONE = "tests.small_backbone:build"


def build(image_size: tuple[int, int]) -> keras.Model:
    """Returns the network: from scaled images ``[n, height, width, 3]`` to ``[n, height / 8, width / 8, 64]``."""
    features = image = keras.Input((*image_size, 3))
    for number, width in enumerate((16, 32, 64), start=1):
        convolution = keras.layers.Conv2D(width, 3, 2, "same", activation="relu", name=f"block_{number}")
        features = convolution(features)
    return keras.Model(image, features, name="small")
