"""The layer above which fine-tuning starts: of a built-in backbone it is looked for before any network is built."""

import difflib
import gzip
import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from imagepipe.base.errors import TrainingError
from trainer.backbones import BACKBONES

NAMES = Path(__file__).with_name("weights") / "layer_names.json.gz"
"""The names of all layers of the built-in backbones, with weights or not. tools/backbone_layers.py writes it."""


@cache
def load_names() -> dict[str, list[str]]:
    """Returns the names of the layers by built-in backbone, in topological order."""
    tables: dict[str, list[str]] = json.loads(gzip.decompress(NAMES.read_bytes()))
    return tables


def check_layers(setting: str, layers: Iterable[str], backbone: str) -> None:
    """Checks, before anything is run, that a built-in backbone has layers; those of one's own are known once built.

    Args:
        setting: key of the configuration that names them, for the message.
        layers: their names.
        backbone: the backbone's name in the configuration.

    Raises:
        TrainingError: if it lacks one.
    """
    names = load_names().get(backbone)
    for layer in layers if names else ():
        find_layer(setting, layer, names or (), f"{backbone} (by default {BACKBONES[backbone].unfreeze_after})")


def find_layer(setting: str, layer: str, names: Sequence[str], network: str) -> int:
    """Returns the index of a layer by its name.

    Raises:
        TrainingError: if there is none; the message has some that there are.
    """
    if layer not in names:
        near = ", ".join(difflib.get_close_matches(layer, names, n=5, cutoff=0))
        raise TrainingError(f"{setting}: there is no layer '{layer}' in {network}. Similar names: {near}.")
    return names.index(layer)
