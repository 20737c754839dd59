"""Hashes of what a training is given by name, beside its data: the code of a backbone, and weights to start from."""

import hashlib
from pathlib import Path
from typing import Literal

from trainer.own_backbone import hash_module
from trainer.weights.contents import list_shards
from trainer.weights.fetch import fetch_weights


def hash_given(key: Literal["backbone", "weights"], name: str) -> str:
    """Returns a hash of what lies under a name, which may change while the name stays.

    Args:
        key: of the settings, see ``trainer.config.list_given``.
        name: its value.

    Raises:
        ConfigError: there is no such backbone.
        WeightsError: a file that names others is damaged, or a URI can't be read.
    """
    if key == "backbone":
        return hash_module(name)
    place = Path(fetch_weights(name))
    # Of a SavedModel nothing else is read; the folder of its variables may be a link.
    saved = sorted(place.glob("variables/variables.*")) if place.is_dir() else []
    files = saved or [place, *map(Path, list_shards(str(place)))]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():  # who reads it says that it is missing
            with file.open("rb") as content:
                digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
