"""The network that a training has left, read back from its ``model.keras``."""

import json
import zipfile
from pathlib import Path

import keras

from imagepipe.base.errors import TrainingError, describe_error
from trainer.backbones import BACKBONES, DEFAULT
from trainer.own_backbone import load_function


def load_trained(file: Path) -> keras.Model:
    """Loads a ``model.keras``, in safe mode: no code from the file is run.

    Args:
        file: as a training writes it, with its ``config.json`` beside, which names a backbone of the user's own: the
            file may hold classes of its module.

    Raises:
        ConfigError: if the backbone's module can't be imported.
        TrainingError: if a file is damaged.
    """
    _import_classes(file.with_name("config.json"))
    try:
        with zipfile.ZipFile(file):  # of half a file Keras would say that it isn't there
            return keras.models.load_model(file, compile=False)
    except Exception as error:  # of a damaged file zipfile, h5py and Keras raise a dozen kinds
        raise TrainingError(
            f"{file} can't be loaded: {describe_error(error)}. If it is damaged, copy it again, or run the pipeline "
            "again"
        ) from error


def _import_classes(config: Path) -> None:
    try:
        backbone = json.loads(config.read_bytes())["trainer"]["backbone"] if config.is_file() else DEFAULT
    except (ValueError, LookupError, TypeError) as error:
        raise TrainingError(
            f"{config} is damaged: {describe_error(error)}. Copy it again, or run the pipeline again"
        ) from error
    if backbone not in BACKBONES:
        load_function(backbone)
