"""Reads a base's weights from a file, of which only the numbers are read: nothing in it is ever executed.

Three layouts are known: Keras 3's ``.weights.h5``; its ``.keras``, a zip with such a file inside; and the ``.h5`` of
earlier Keras, which is also that of the ImageNet weights that Keras offers. The file may hold the base alone, the base
with its classifier (what comes after the base is left out), or a model that has the base inside, such as the
``model.keras`` that a run leaves.
"""

import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
import keras

from imagepipe.base.errors import WeightsError

_INSIDE_KERAS = "model.weights.h5"


@dataclass(frozen=True)
class _Layer:
    """A layer of the base, and what the file has for it."""

    layer: keras.Layer
    found: list[h5py.Dataset]
    found_name: str

    def fits(self) -> bool:
        return [tuple(weight.shape) for weight in self.layer.weights] == [dataset.shape for dataset in self.found]


def load(base: keras.Model, path: str, backbone: str) -> None:
    """Gives ``base`` the weights in a file. All of them are checked before any is changed.

    Args:
        base: the network without its classifier.
        path: the file.
        backbone: the network's name in the configuration, for messages.

    Raises:
        WeightsError: if the file can't be read, or a layer's weights are missing or of another shape.
    """
    try:
        with _open(path) as file:
            layers = list(_keras_3(base, file) if "layers" in file else _earlier_keras(base, file))
            for layer in layers:
                _check_own(layer.found, file)
                if not layer.fits():
                    raise WeightsError(
                        f"trainer.weights: {path} does not hold weights of {backbone}: its layer '{layer.layer.name}' "
                        f"takes {_shapes(layer.layer.weights)}, and the file has "
                        f"{_shapes(layer.found)} in '{layer.found_name}'. Give a file of {backbone}'s weights, or set "
                        "trainer.backbone to the one that these are of."
                    )
            for layer in layers:
                for weight, dataset in zip(layer.layer.weights, layer.found, strict=True):
                    weight.assign(dataset[()])
    # h5py raises RuntimeError and KeyError as well as OSError where a file is damaged.
    except (OSError, RuntimeError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"trainer.weights: {path} does not hold weights that can be read: {error}") from error


@contextmanager
def _open(path: str) -> Iterator[h5py.File]:
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            yield file
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, archive.open(_INSIDE_KERAS) as inside, h5py.File(inside) as file:
            yield file
    else:
        raise WeightsError(
            f"trainer.weights: {path} does not hold weights that can be read: it is neither HDF5 nor a .keras file, or "
            "it is damaged. Keras's save_weights() and save() write such files."
        )


def _keras_3(base: keras.Model, file: h5py.File) -> Iterator[_Layer]:
    """Finds layers by their class and their place among those of this class, as Keras does."""
    inside = "layers/functional"  # applications have no model inside; in a model that has, it is the base
    yield from _in_group(base.layers, file[inside] if f"{inside}/layers" in file else file)


def _in_group(layers: Sequence[keras.Layer], group: Mapping[str, Any]) -> Iterator[_Layer]:
    seen: Counter[str] = Counter()
    for layer in layers:
        kind = _snake_case(type(layer).__name__)
        name = f"layers/{kind}_{seen[kind]}" if seen[kind] else f"layers/{kind}"
        seen[kind] += 1
        if isinstance(layer, keras.Sequential):
            yield from _in_group(layer.layers, group.get(name, {}))
        elif not layer.weights:
            continue
        elif f"{name}/vars" in group:
            stored = group[f"{name}/vars"]
            yield _Layer(layer, [stored[key] for key in sorted(stored)], stored.attrs.get("name", name))
        else:
            yield _Layer(layer, [], name)


def _snake_case(name: str) -> str:
    """What ``keras.src.utils.naming.to_snake_case``, which names the groups, makes of a class's name."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()


def _earlier_keras(base: keras.Model, file: h5py.File) -> Iterator[_Layer]:
    """Finds layers by their place among those with weights, as Keras does: names have changed over its versions."""
    group = file.get("model_weights", file)  # where a whole model was saved
    names = [_text(name) for name in group.attrs.get("layer_names", ())]
    weights = {name: [_text(weight) for weight in group[name].attrs["weight_names"]] for name in names}
    stored = [name for name in names if weights[name]]
    for layer, name in itertools.zip_longest((layer for layer in base.layers if layer.weights), stored):
        if layer is None:
            return  # what is left is the classifier
        yield _Layer(layer, [group[name][weight] for weight in weights[name]] if name else [], name or "its end")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_own(found: Sequence[Any], file: h5py.File) -> None:
    """HDF5 can also point to other files on this machine, which one from elsewhere must not."""
    for dataset in found:
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind != "f":
            raise OSError(f"{dataset.name} are no numbers")
        if dataset.file != file or dataset.external or dataset.is_virtual:
            raise OSError(f"{dataset.name} is in another file")


def _shapes(weights: Sequence[Any]) -> str:
    return " ".join(str(tuple(weight.shape)).replace(" ", "") for weight in weights) or "none"
