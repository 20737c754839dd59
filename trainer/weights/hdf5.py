"""Lists the layers of an HDF5 file of weights: Keras 3's layout, and the one of earlier versions."""

import itertools
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from trainer.weights.layers import (
    ConfiguredLayer,
    Contents,
    Shape,
    StoredLayer,
    collect_layers,
    list_configured,
    show_text,
    widen_bfloat16,
)

_MAX_LISTED = 20_000  # weights: their names in the file may be one list that stands for many layers
_OPTIMIZER = ("optimizer/", "_optimizer/", "optimizer_weights/")


def list_contents(file: h5py.File) -> Contents:
    """Returns what a file holds; of Keras 3's ``.keras``, see ``add_configuration``.

    Raises:
        OSError: if it points outside. Damage shows as one of many exceptions of h5py.
    """
    groups = _walk(file)
    group = file.get("model_weights", file)  # there if a whole model was saved
    if names := _read_list(group, "layer_names"):
        return _list_earlier(file, group, names)
    layers = _list_keras_3([groups])
    version = "Keras 3" if any(layer.name for layer in layers) else "Keras 2 or the first of Keras 3"
    return Contents(layers, False, f".weights.h5 of {version}")


def list_shards(files: Sequence[h5py.File]) -> Contents:
    """Returns what the files that Keras 3 has split a network's weights into hold together, see ``list_contents``."""
    return Contents(_list_keras_3([_walk(file) for file in files]), False, ".weights.json of Keras 3")


def add_configuration(contents: Contents, config: Any, version: str) -> Contents:
    """Returns the contents of a ``.keras`` file with what its ``config.json`` says: names and sizes.

    Args:
        contents: of its HDF5 file.
        config: the parsed JSON; nothing in it is built.
        version: of Keras.
    """
    rows = {row.path: row for row in list_configured(config)}
    layers = [
        layer._replace(name=layer.name or row.name, size=row.size) if (row := rows.get(layer.path)) else layer
        for layer in contents.layers
    ]
    return contents._replace(layers=layers, format=f".keras of Keras {show_text(version)}")


def _walk(file: h5py.File) -> dict[str, h5py.Group]:
    """Returns the groups ``vars`` in which Keras 3 keeps a layer's weights, by the path of the layer.

    Links and outside data are refused: HDF5 can point to other files here, which a file from elsewhere must not.
    """
    groups: dict[str, h5py.Group] = {}

    # h5py ends a visit with the first answer; an exception it may replace by one of its own.
    def find_link(name: str, link: Any) -> str | None:
        return None if isinstance(link, h5py.HardLink) else name

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> str | None:
        if isinstance(item, h5py.Dataset):
            return name if item.external or item.is_virtual else None
        if name.endswith("/vars") and not name.startswith(_OPTIMIZER):
            # Files of TensorFlow 2.11 have their layers in groups of another name.
            groups[name.removesuffix("/vars").replace("_layer_checkpoint_dependencies", "layers")] = item
        return None

    if outside := file.visititems_links(find_link) or file.visititems(visit):
        raise OSError(f"{outside} is in another file, or elsewhere in this one")
    return groups


def _list_keras_3(shards: Sequence[Mapping[str, h5py.Group]]) -> list[StoredLayer]:
    """Returns the layers of ``layers/conv2d/vars/0`` and so on, however deep, those of a class in order.

    Of several files, each weight is in one of them, those of a layer may be in two.
    """
    layers = []
    for path in sorted(set().union(*shards), key=_split_numbers):
        groups = [shard[path] for shard in shards if path in shard]
        if keys := sorted((key for group in groups for key in group), key=_split_numbers):
            if len(set(keys)) < len(keys):
                raise OSError(f"{path} is in more than one of its files")
            datasets = [next(group[key] for group in groups if key in group) for key in keys]
            shapes, places = tuple(weight.shape for weight in datasets), tuple(weight.name for weight in datasets)
            variables = () if all(key.isdecimal() for key in keys) else tuple(keys)  # of a layer that saves its own
            layers.append(StoredLayer(path, _read_name(shards, path), shapes, places, variables=variables))
    if not layers:
        raise OSError("it has no layers with weights")
    return layers


def _read_name(shards: Sequence[Mapping[str, h5py.Group]], path: str) -> str | None:
    """Returns the name of a layer, after those of the layers that hold it; None if the files do not have it."""
    names: list[str] = []
    while path and not path.endswith("layers"):  # the layers of a model stand for themselves
        attributes = [shard[path].attrs for shard in shards if path in shard]
        names += [_decode_text(some["name"]) for some in attributes if "name" in some][:1]
        path = path.rpartition("/")[0]
    return "/".join(reversed(names)) or None


def _split_numbers(path: str) -> list[tuple[str, int]]:
    """Returns a key by which ``conv2d``, ``conv2d_2`` and ``conv2d_10`` are sorted in this order."""
    return [(part.rstrip("0123456789"), int("0" + part[len(part.rstrip("0123456789")) :])) for part in path.split("/")]


def _list_earlier(file: h5py.File, group: h5py.Group, names: list[str]) -> Contents:
    config = json.loads(_decode_text(file.attrs["model_config"])) if "model_config" in file.attrs else None
    rows: defaultdict[str, list[ConfiguredLayer]] = defaultdict(list)
    for row in list_configured(config):
        rows[row.top].append(row)
    layers: list[StoredLayer] = []
    listed = 0
    for name in names:
        weights = _read_list(group[name], "weight_names")
        listed += 1 + len(weights)
        if listed > _MAX_LISTED:
            raise OSError(f"it lists more than {_MAX_LISTED:,} layers and weights")
        layers += _list_layer(group[name], name, weights, rows[name])
    if not layers:
        raise OSError("it has no layers with weights")
    version = _decode_text(group.attrs.get("keras_version", file.attrs.get("keras_version", "2 or earlier")))
    return Contents(layers, True, f".h5 of Keras {show_text(version)}")


def _list_layer(
    group: h5py.Group, name: str, names: list[str], configured: Sequence[ConfiguredLayer]
) -> list[StoredLayer]:
    """Returns a layer, or the layers within it if it is a model, in topological order."""
    weights: list[tuple[str, Shape, str]] = [(weight, group[weight].shape, group[weight].name) for weight in names]
    layers = collect_layers(weights)
    if len(layers) == 1:
        return [layers[0]._replace(path=name, name=name, size=configured[-1].size if configured else None)]
    # Weights that are trained come first, whatever their layers' order; that is in the configuration.
    order = {row.name: index for index, row in enumerate(configured)}
    holders = [_find_holder(layer.path, order) for layer in layers]
    sizes = [configured[order[holder]].size if holder else None for holder in holders]
    placed = [layer._replace(path=f"{name}/{layer.path}", size=size) for layer, size in zip(layers, sizes, strict=True)]
    if not all(holders):
        return placed
    return [layer for _, layer in sorted(zip(holders, placed, strict=True), key=lambda pair: order[pair[0]])]


def _find_holder(path: str, names: Collection[str]) -> str:
    """Returns the layer of a model that a layer is, or lies in; "" if there is none."""
    while path and path not in names:
        path = path.rpartition("/")[0]
    return path


def _read_list(group: h5py.Group, name: str) -> list[str]:
    """Returns a list of texts, which Keras splits into ``name0``, ``name1`` … if it is long."""
    if name in group.attrs:
        return [_decode_text(value) for value in group.attrs[name]]
    parts = itertools.takewhile(lambda part: part in group.attrs, (f"{name}{number}" for number in itertools.count()))
    return [_decode_text(value) for part in parts for value in group.attrs[part]]


def _decode_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read_numbers(dataset: h5py.Dataset) -> np.ndarray:
    """Returns the numbers of a dataset, floats.

    Raises:
        OSError: if they are none.
    """
    if dataset.dtype.kind == "f":
        return dataset[()]
    # The older layout has no attribute that says so: what h5py makes of an array of ml_dtypes.
    if (dataset.attrs.get("dtype") == "bfloat16" or dataset.dtype.kind == "V") and dataset.dtype.itemsize == 2:
        return widen_bfloat16(dataset[()].view(np.uint16))
    raise OSError(f"{dataset.name} is not numeric")
