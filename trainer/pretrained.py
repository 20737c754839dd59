"""Pretrained weights of a base: a cheap check that they are available, and loading them from a file.

Only the numbers in a file are read: nothing in it is ever executed. These are supported, of Keras 2 and 3:
``.weights.h5``; a ``.weights.json`` with such files beside it; ``.keras``, a zip that contains one; the older ``.h5``,
also the layout of the ImageNet weights that Keras offers; and the folder of a SavedModel. The file may hold the base
alone, the base with its classifier (everything after the base is ignored), or a model that contains the base at any
depth.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imagepipe.base.errors import WeightsError
from trainer import backbones
from trainer.config import IMAGENET, NO_WEIGHTS
from trainer.weights.check import check_readable
from trainer.weights.contents import Reader, open_weights
from trainer.weights.fetch import open_fetched
from trainer.weights.identify import find_layers, get_name, load_layers
from trainer.weights.layers import StoredLayer, list_layers

if TYPE_CHECKING:
    import keras

# Keras keeps the weights of all its applications on one host; this file stands for them.
_PROBE_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
_PROBE_SECONDS = 5


def check_weights(weights: str, backbone: str) -> None:
    """Checks, before anything is run, that weights are available.

    Args:
        weights: ``imagenet``, ``none`` or the path or URI of a file.
        backbone: the network that they are for, see ``trainer.backbones``.

    Raises:
        WeightsError: if they are not.
    """
    if weights == NO_WEIGHTS:
        return
    if weights == IMAGENET:
        if not is_imagenet_available(backbone):
            raise WeightsError(
                f"trainer.weights: imagenet: Keras can't download the weights of {backbone} from here and has no copy "
                f"in {_locate_keras_cache()}. Give a file of them (trainer.weights: FILE), or train from scratch "
                "(trainer.weights: none)."
            )
    else:
        check_file(weights)
        with _fetch(weights) as file, open_weights(file) as (contents, read):
            if backbone in backbones.BACKBONES:  # of another one the layers are known once it is built
                layers = find_layers(weights, contents, backbone, load_layers()[backbone])
                for _ in _read_numbers(weights, layers, read):
                    pass  # one layer's are in memory at a time


def check_file(path: str) -> None:
    """Checks that a file of weights is there and does no harm to who reads it, see ``trainer.weights.check``.

    Args:
        path: its path or URI.

    Raises:
        WeightsError: if it is not.
    """
    with _fetch(path) as file:
        if not Path(file).exists():
            raise WeightsError(f"there is no file {path}. Give a file, 'imagenet' or 'none'.")
        check_readable(file)


@contextmanager
def _fetch(path: str) -> Iterator[str]:
    """Yields the path of weights on this machine; errors name the setting, and the path as it was given."""
    try:
        with open_fetched(path) as file:
            yield file
    except WeightsError as error:
        raise WeightsError(f"trainer.weights: {error}") from error


def is_imagenet_available(backbone: str = backbones.DEFAULT) -> bool:
    """Returns whether Keras's ImageNet weights of a backbone are in its cache or can be downloaded from here."""
    return is_cached(backbone) or can_download()


def is_cached(backbone: str) -> bool:
    """Returns whether Keras's ImageNet weights of a backbone are in its cache."""
    # Such as resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5, efficientnetv2-b0_notop.h5 or
    # weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5.
    name = re.compile(rf"(weights)?{backbone.replace('_', '')}(weights|224|notop).*")
    letters = (re.sub("[-_]", "", file.name) for file in _locate_keras_cache().glob("*.h5"))
    return any(name.fullmatch(text) and "notop" in text for text in letters)


def can_download() -> bool:
    """Returns whether Keras's weights can be downloaded from here."""
    try:
        request = urllib.request.Request(_PROBE_URL, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):  # noqa: S310 (a constant https URL)
            return True
    except (urllib.error.URLError, OSError):
        return False


def _locate_keras_cache() -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def _read_numbers(path: str, layers: Sequence[StoredLayer], read: Reader) -> Iterator[list[np.ndarray]]:
    """Yields the weights of each layer.

    Raises:
        WeightsError: if they are not all finite.
        OSError: if they are no floats.
    """
    for layer in layers:
        numbers = [read(key) for key in layer.keys]
        if not all(np.isfinite(array).all() for array in numbers):
            raise WeightsError(
                f"{path}: the weights of layer '{get_name(layer)}' are not all finite. The training that they are from "
                "failed, or the file is damaged: give another one."
            )
        yield numbers


def load_weights(base: "keras.Model", path: str, backbone: str) -> None:
    """Loads the weights of ``base`` from a file. All of them are checked before any is changed.

    Args:
        base: the network without its classifier.
        path: of the file, which ``check_file`` has passed, or its URI.
        backbone: the network's name in the configuration, for messages.

    Raises:
        WeightsError: if the file can't be read, a layer's weights are missing or of another shape, or are not finite.
    """
    layers = list_layers(base.layers)
    with _fetch(path) as file, open_weights(file) as (contents, read):
        stored = find_layers(path, contents, backbone, [taken for _, taken in layers])
        values = list(_read_numbers(path, stored, read))
    for (weights, _), numbers in zip(layers, values, strict=True):
        for weight, array in zip(weights, numbers, strict=True):
            weight.assign(array)
