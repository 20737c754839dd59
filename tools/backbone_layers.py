"""Writes trainer/weights/backbones.json.gz: the layers that take weights in each built-in backbone.

``python -m tools.backbone_layers`` after a change of trainer/backbones.py or of Keras; tests compare file and networks.
"""

import gzip
import json

import keras

from trainer.backbones import BACKBONES
from trainer.weights.identify import LAYERS
from trainer.weights.layers import TakenLayer, list_layers


def build_table(backbone: str) -> list[TakenLayer]:
    """Builds a backbone and returns its layers, with the names that they have in a new process."""
    keras.backend.clear_session()
    row = BACKBONES[backbone]
    application = getattr(keras.applications, row.application)
    base = application(include_top=False, weights=None, input_shape=(row.min_side, row.min_side, 3))
    return [taken for _, taken in list_layers(base.layers)]


def main() -> None:
    """Writes the file; the same layers give the same bytes."""
    text = json.dumps({backbone: build_table(backbone) for backbone in BACKBONES}, separators=(",", ":"))
    LAYERS.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
