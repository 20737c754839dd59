"""Writes two files in trainer/weights: which layers of the built-in backbones take weights, and the names of all.

``python -m tools.backbone_layers`` after a change of trainer/backbones.py or of Keras; tests compare file and networks.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import keras

from trainer.backbones import BACKBONES
from trainer.unfreezing import NAMES
from trainer.weights.identify import LAYERS
from trainer.weights.layers import TakenLayer, list_layers


def build_tables(backbone: str) -> tuple[list[TakenLayer], list[str]]:
    """Builds a backbone; returns its layers with weights and the names of all, as they are in a new process."""
    keras.backend.clear_session()
    row = BACKBONES[backbone]
    application = getattr(keras.applications, row.application)
    base = application(include_top=False, weights=None, input_shape=(row.min_side, row.min_side, 3))
    taken = [layer._replace(variables=()) for _, layer in list_layers(base.layers)]  # Keras's, in Keras's order
    return taken, [layer.name for layer in base.layers]


def main() -> None:
    """Writes the files; the same layers give the same bytes."""
    tables = {backbone: build_tables(backbone) for backbone in BACKBONES}
    _write(LAYERS, {backbone: [layer[:3] for layer in taken] for backbone, (taken, _) in tables.items()})
    _write(NAMES, {backbone: names for backbone, (_, names) in tables.items()})


def _write(path: Path, tables: dict[str, Any]) -> None:
    path.write_bytes(gzip.compress(json.dumps(tables, separators=(",", ":")).encode(), mtime=0))


if __name__ == "__main__":
    main()
