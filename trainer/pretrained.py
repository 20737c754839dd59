"""Pretrained weights of a base: a cheap check that they are available, and loading them from a file.

Only the numbers in a file are read: nothing in it is ever executed. Three layouts are supported: Keras 3's
``.weights.h5``; its ``.keras``, a zip that contains such a file; and the ``.h5`` of earlier Keras, also the layout of
the ImageNet weights that Keras offers. The file may hold the base alone, the base with its classifier (everything after
the base is ignored), or a model that contains the base, such as the ``model.keras`` that a run writes.
"""

import itertools
import os
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from imagepipe.base.errors import WeightsError
from trainer import backbones
from trainer.config import IMAGENET, NO_WEIGHTS
from trainer.weights_file import check_readable, open_weights

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
        weights: ``imagenet``, ``none`` or the path of a file.
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
    elif not Path(weights).is_file():
        raise WeightsError(f"trainer.weights: there is no file {weights}. Give a file, 'imagenet' or 'none'.")
    else:
        check_readable(weights)
        with _explain_damage(weights), open_weights(weights):
            pass  # whether the weights are those of the backbone shows when the network is there


def is_imagenet_available(backbone: str = backbones.DEFAULT) -> bool:
    """Returns whether Keras's ImageNet weights of a backbone are in its cache or can be downloaded from here."""
    # Such as resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5, efficientnetv2-b0_notop.h5 or
    # weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5.
    name = re.compile(rf"(weights)?{backbone.replace('_', '')}(weights|224|notop).*")
    for file in _locate_keras_cache().glob("*.h5"):
        letters = re.sub("[-_]", "", file.name)
        if name.fullmatch(letters) and "notop" in letters:
            return True
    try:
        request = urllib.request.Request(_PROBE_URL, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):  # noqa: S310 (a constant https URL)
            return True
    except (urllib.error.URLError, OSError):
        return False


def _locate_keras_cache() -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


@dataclass(frozen=True)
class _StoredLayer:
    """A layer of the base, and its weights in the file."""

    layer: "keras.Layer"
    datasets: list[h5py.Dataset]
    stored_name: str

    def fits(self) -> bool:
        return [tuple(weight.shape) for weight in self.layer.weights] == [dataset.shape for dataset in self.datasets]


def load_weights(base: "keras.Model", path: str, backbone: str) -> None:
    """Loads the weights of ``base`` from a file. All of them are checked before any is changed.

    Args:
        base: the network without its classifier.
        path: the file.
        backbone: the network's name in the configuration, for messages.

    Raises:
        WeightsError: if the file can't be read, or a layer's weights are missing or of another shape.
    """
    with _explain_damage(path), open_weights(path) as file:
        stored = list(_match_keras_3(base, file) if "layers" in file else _match_earlier_keras(base, file))
        for entry in stored:
            _check_own_numbers(entry.datasets, file)
            if not entry.fits():
                raise WeightsError(
                    f"trainer.weights: {path} does not hold weights of {backbone}: its layer '{entry.layer.name}' "
                    f"takes {_format_shapes(entry.layer.weights)}, and the file has "
                    f"{_format_shapes(entry.datasets)} in '{entry.stored_name}'. Give a file of {backbone}'s "
                    "weights, or set trainer.backbone to the network that these are of."
                )
        for entry in stored:
            for weight, dataset in zip(entry.layer.weights, entry.datasets, strict=True):
                weight.assign(dataset[()])


@contextmanager
def _explain_damage(path: str) -> Iterator[None]:
    """Turns whatever h5py raises if a file is damaged into WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # h5py doesn't list what it raises on damaged bytes, from KeyError to UnicodeEncodeError
        raise WeightsError(f"trainer.weights: {path} does not hold weights that can be read: {error}") from error


def _match_keras_3(base: "keras.Model", file: h5py.File) -> Iterator[_StoredLayer]:
    """Matches layers by their class and their position among those of this class, as Keras does."""
    inside = "layers/functional"  # applications contain no model; in a model that does, it is the base
    yield from _match_group(base.layers, file[inside] if f"{inside}/layers" in file else file)


def _match_group(layers: Sequence["keras.Layer"], group: Mapping[str, Any]) -> Iterator[_StoredLayer]:
    counts: Counter[str] = Counter()
    for layer in layers:
        kind = _convert_to_snake_case(type(layer).__name__)
        name = f"layers/{kind}_{counts[kind]}" if counts[kind] else f"layers/{kind}"
        counts[kind] += 1
        if kind == "sequential":
            yield from _match_group(layer.layers, group.get(name, {}))
        elif not layer.weights:
            continue
        elif f"{name}/vars" in group:
            stored = group[f"{name}/vars"]
            yield _StoredLayer(layer, [stored[key] for key in sorted(stored)], stored.attrs.get("name", name))
        else:
            yield _StoredLayer(layer, [], name)


def _convert_to_snake_case(name: str) -> str:
    """Converts a class's name as ``keras.src.utils.naming.to_snake_case`` does, which names the groups."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


def _match_earlier_keras(base: "keras.Model", file: h5py.File) -> Iterator[_StoredLayer]:
    """Matches layers by their position among those with weights, as Keras does: names changed over its versions."""
    group = file.get("model_weights", file)  # there if a whole model was saved
    names = [_decode_text(name) for name in group.attrs.get("layer_names", ())]
    weights = {name: [_decode_text(weight) for weight in group[name].attrs["weight_names"]] for name in names}
    stored = [name for name in names if weights[name]]
    for layer, name in itertools.zip_longest((layer for layer in base.layers if layer.weights), stored):
        if layer is None:
            return  # the rest is the classifier
        yield _StoredLayer(layer, [group[name][weight] for weight in weights[name]] if name else [], name or "its end")


def _decode_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_own_numbers(datasets: Sequence[Any], file: h5py.File) -> None:
    """Refuses links: HDF5 can point to other files on this machine, which a file from elsewhere must not."""
    for dataset in datasets:
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f":
            raise OSError(f"{dataset.name} is not numeric")
        if dataset.file != file or dataset.external or dataset.is_virtual:
            raise OSError(f"{dataset.name} is in another file")


def _format_shapes(weights: Sequence[Any]) -> str:
    return " ".join(str(tuple(weight.shape)).replace(" ", "") for weight in weights) or "none"
