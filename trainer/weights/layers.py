"""A layer with weights, in a network that takes them and in a file that has them."""

import math
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import keras

Shape = tuple[int, ...]
Size = tuple[int, int]
"""Height and width in pixels."""

# The order in which Keras's layers create their weights; some files list them in another one. So they are sorted where
# the network's own names are not at hand, see TakenLayer.
_ORDER = (
    "kernel", "depthwise_kernel", "pointwise_kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance",
)  # fmt: skip


class TakenLayer(NamedTuple):
    """A layer of a network that takes weights.

    Attributes:
        path: the group that Keras 3 gives it in a file: ``layers/conv2d_7``, or
            ``layers/sequential/layers/conv2d`` of a layer within a layer.
        name: its name; of a layer within a layer that is no model, after the name of that one and a slash.
        shapes: of its weights.
        variables: their names; none in the list of built-in backbones, whose layers are all Keras's.
    """

    path: str
    name: str
    shapes: tuple[Shape, ...]
    variables: tuple[str, ...] = ()


Part = tuple[list[Any], TakenLayer]
"""The weights of a layer in a network, and what it takes."""

_MODELS = {"Sequential", "Functional"}  # whose layers stand side by side in a file
_RESIZING = {"Resizing", "CenterCrop", "RandomCrop"}


class StoredLayer(NamedTuple):
    """A layer in a file.

    Attributes:
        path: where it is in the file. In Keras 3's layout the class and the position among those of this class, as in
            ``TakenLayer``.
        name: its name, or None if the file does not have it.
        shapes: of its weights, in the order in which Keras creates them.
        keys: where the weights are in the file.
        size: of the images that the model takes whose layer it is, or None if the file does not say it.
        variables: names of the weights; none if the file does not have them.
    """

    path: str
    name: str | None
    shapes: tuple[Shape, ...]
    keys: tuple[str, ...]
    size: Size | None = None
    variables: tuple[str, ...] = ()


class ConfiguredLayer(NamedTuple):
    """A layer in the configuration of a model.

    Attributes:
        path: as in ``TakenLayer``.
        name: its name.
        top: name of the outermost layer in which it lies; its own if it lies in none.
        size: see ``StoredLayer``.
    """

    path: str
    name: str
    top: str
    size: Size | None


def show_text(text: str, most: int = 80) -> str:
    """Returns a text of a file for messages: on one line, without control characters, of so many characters at most."""
    plain = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


class Contents(NamedTuple):
    """Lists what a file holds.

    Attributes:
        layers: those with weights.
        is_ordered: whether they are in topological order. If not (Keras 3's layout), the order within a class is
            known, by the paths.
        format: the layout and the version of Keras, for messages.
    """

    layers: list[StoredLayer]
    is_ordered: bool
    format: str

    def count_numbers(self) -> int:
        """Returns how many numbers the layers have together."""
        return sum(math.prod(shape) for layer in self.layers for shape in layer.shapes)


def list_layers(layers: Sequence["keras.Layer"]) -> list[Part]:
    """Returns the layers with weights of a network, also those within layers, in topological order.

    Of a layer that holds others (attention, one of your own), each of them is one, in the order of its weights. Their
    paths are those at which ``keras.src.saving.saving_lib`` saves them: by the layer's attributes.
    """
    return list(_walk_layers(layers, "layers", "", set()))


def _walk_layers(layers: Iterable[Any], path: str, above: str, seen: set[int]) -> Iterator[Part]:
    """Yields the parts of layers and of containers of layers; ``above`` is the name of the layer that holds them."""
    counts: Counter[str] = Counter()
    for layer in layers:
        is_container = isinstance(layer, list | tuple | dict)
        kind = "container" if is_container else type(layer).__name__
        if is_container or hasattr(layer, "weights"):
            yield from _walk(layer, f"{path}/{number_class(kind, counts)}", above, seen)


def _walk(value: Any, path: str, above: str, seen: set[int]) -> Iterator[Part]:
    """Yields the parts of what may be a layer, or a container of layers."""
    if isinstance(value, list | tuple | dict):
        yield from _walk_layers(value.values() if isinstance(value, dict) else value, path, above, seen)
    if id(value) in seen or not getattr(value, "weights", None):
        return
    seen.add(id(value))
    if _MODELS & {base.__name__ for base in type(value).__mro__}:
        yield from _walk_layers(value.layers, f"{path}/layers", "", seen)
        return
    name = f"{above}{value.name}"
    inner = [
        part
        for attribute in _list_attributes(value)
        for part in _walk(getattr(value, attribute), f"{path}/{attribute}", f"{name}/", seen)
    ]
    others = {id(weight) for weights, _ in inner for weight in weights}
    if own := [weight for weight in value.weights if id(weight) not in others]:
        shapes, variables = tuple(tuple(weight.shape) for weight in own), tuple(weight.name for weight in own)
        yield own, TakenLayer(path, name, shapes, variables)
    order = {id(weight): place for place, weight in enumerate(value.weights)}
    yield from sorted(inner, key=lambda part: order[id(part[0][0])])


def _list_attributes(layer: "keras.Layer") -> list[str]:
    """Returns what a layer has that others do not, private attributes last."""
    keras_layer = next(base for base in type(layer).__mro__ if base.__name__ == "Layer")
    names = set(dir(layer)).difference(dir(keras_layer), ["_layers"])  # which has them once more
    return sorted(filter(partial(hasattr, layer), names), key=lambda name: (name.startswith("_"), name))


def number_class(name: str, counts: Counter[str]) -> str:
    """Returns the name of the next layer's group: its class, and its number among those; counts it.

    As ``keras.src.saving.saving_lib`` names them, with ``keras.src.utils.naming.to_snake_case``.
    """
    kind = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
    counts[kind] += 1
    return f"{kind}_{counts[kind] - 1}" if counts[kind] > 1 else kind


def collect_layers(weights: Sequence[tuple[str, Shape, str]]) -> list[StoredLayer]:
    """Collects weights into layers, which are in the order in which they come first.

    Args:
        weights: name (``Conv1/kernel:0``, with the layers around it before), shape and place in the file of each.
    """
    layers: dict[str, list[tuple[str, Shape, str]]] = {}
    for name, shape, key in weights:
        layer, _, variable = name.rpartition("/")
        layers.setdefault(layer, []).append((variable.split(":")[0], shape, key))
    stored = []
    for layer, members in layers.items():
        if all(variable in _ORDER for variable, *_ in members):
            members.sort(key=lambda member: _ORDER.index(member[0]))
        variables, shapes, keys = (tuple(column) for column in zip(*members, strict=True))
        stored.append(StoredLayer(layer, layer, shapes, keys, variables=variables))
    return stored


def sort_weights(stored: StoredLayer, taken: TakenLayer) -> StoredLayer:
    """Returns a layer of a file with its weights in the order of the network's, if they have the same names."""
    names, wanted = stored.variables, taken.variables
    if names == wanted or len(set(names)) < len(names) or sorted(names) != sorted(wanted):
        return stored
    order = [names.index(name) for name in wanted]
    shapes, keys = tuple(stored.shapes[i] for i in order), tuple(stored.keys[i] for i in order)
    return stored._replace(shapes=shapes, keys=keys, variables=wanted)


def list_configured(
    config: Any, root: str = "", top: str = "", size: Size | None = None
) -> Generator[ConfiguredLayer, None, Size | None]:
    """Yields the layers of a model's configuration that are no models themselves, in order.

    Args:
        config: the configuration; nothing in it is built.
        root: the path of the model's own group, with a slash at its end.
        top: of the model, see ``ConfiguredLayer``.
        size: of the images that the model is given, unless it says what it takes.

    Returns:
        The size of the images behind it: layers may have changed it.
    """
    counts: Counter[str] = Counter()
    for layer in _list_inner(config):
        kind = str(layer.get("class_name")).rpartition(">")[2]
        path = f"{root}layers/{number_class(kind, counts)}"
        if _list_inner(layer):
            size = yield from list_configured(layer, f"{path}/", top or _get_name(layer), size)
        else:
            size = _get_size(kind, layer.get("config")) or size
            yield ConfiguredLayer(path, _get_name(layer), top or _get_name(layer), size)
    return size


def _get_size(kind: str, settings: Any) -> Size | None:
    """Returns the size of the images that a layer takes or, if it changes it, gives; None if it does not say it."""
    settings = settings if isinstance(settings, dict) else {}
    if kind in _RESIZING:
        sides = settings.get("height"), settings.get("width")
    else:
        shape = settings.get("batch_shape") or settings.get("batch_input_shape")
        sides = tuple(shape[1:3]) if isinstance(shape, list) and len(shape) == 4 and shape[3] == 3 else ()
    match sides:
        case (int(height), int(width)):
            return height, width
    return None


def _get_name(config: Mapping[str, Any]) -> str:
    """Returns the name in a layer's configuration, "" if there is none."""
    settings = config.get("config")
    return str(config.get("name") or (settings.get("name") if isinstance(settings, dict) else None) or "")


def _list_inner(config: Any) -> list[Mapping[str, Any]]:
    """Returns the configurations of the layers of a model; none if it is not one of a model."""
    settings = config.get("config") if isinstance(config, dict) else None
    layers = settings.get("layers") if isinstance(settings, dict) else settings  # a list in the first of Keras 2
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def widen_bfloat16(halves: np.ndarray) -> np.ndarray:
    """Returns numbers in bfloat16, given as uint16, as float32, of which they are the upper half."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
