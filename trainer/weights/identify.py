"""Finds out whose weights a file holds, and says what is wrong with them, without Keras."""

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from imagepipe.base.errors import WeightsError
from trainer.weights.layers import Contents, Shape, Size, StoredLayer, TakenLayer, show_text
from trainer.weights.matching import Match, get_number, match_layers, strip_number

LAYERS = Path(__file__).with_name("backbones.json.gz")
"""The layers of the built-in backbones: so a file is checked without TensorFlow. tools/backbone_layers.py writes it."""

_DENSE = re.compile(r"(layers/[^/]+/)*layers/dense(_\d+)?")  # in Keras 3's layout, where the path has the class


class Description(NamedTuple):
    """Says what a file of weights is.

    Attributes:
        format: layout and version of Keras.
        backbone: the built-in backbone whose weights it holds, or None.
        is_single: False if it holds those more than once, so that which ones are meant can't be told.
        size: (height, width) in pixels of the images that it was trained on; None if the file does not say it.
        top: number of outputs of the classifier, or None without one.
        layers: number of layers with weights.
        numbers: number of weights, all in all.
        base_numbers: number of those that are the backbone's.
    """

    format: str
    backbone: str | None
    is_single: bool
    size: Size | None
    top: int | None
    layers: int
    numbers: int
    base_numbers: int | None


@cache
def load_layers() -> dict[str, list[TakenLayer]]:
    """Returns the layers that take weights, by built-in backbone, in topological order."""
    tables = json.loads(gzip.decompress(LAYERS.read_bytes()))
    return {
        backbone: [TakenLayer(path, name, tuple(map(tuple, shapes))) for path, name, shapes in rows]
        for backbone, rows in tables.items()
    }


def describe_contents(contents: Contents) -> Description:
    """Returns what a file is."""
    backbone, match = identify_backbone(contents) or (None, None)
    base = [stored for stored in match.pairs if stored] if match else []
    is_clear = match is not None and match.is_whole
    return Description(
        format=contents.format,
        backbone=backbone,
        is_single=match is None or match.is_single,
        size=next((layer.size for layer in base or contents.layers if layer.size), None),
        top=_count_outputs(contents, base) if is_clear else None,
        layers=len(contents.layers),
        numbers=contents.count_numbers(),
        base_numbers=contents._replace(layers=base).count_numbers() if is_clear else None,
    )


def identify_backbone(contents: Contents) -> tuple[str, Match] | None:
    """Returns the built-in backbone whose weights a file holds, all of them, and where; None if it is none of them.

    If it holds them more than once, the match is not whole: it is not single.
    """
    available = _count_shapes(contents.layers)
    for backbone, taken in load_layers().items():
        if _count_shapes(taken) - available:  # to match layers takes longer: seconds for files of thousands
            continue
        match = match_layers(taken, contents)
        if match.is_whole or not match.is_single:
            return backbone, match
    return None


def _count_shapes(layers: Sequence[TakenLayer] | Sequence[StoredLayer]) -> Counter[tuple[Shape, ...]]:
    return Counter(layer.shapes for layer in layers)


def find_layers(path: str, contents: Contents, backbone: str, taken: Sequence[TakenLayer]) -> list[StoredLayer]:
    """Finds the layers of a network in a file.

    Args:
        path: the file, for the message.
        contents: what it holds.
        backbone: the network's name in the configuration.
        taken: its layers.

    Returns:
        For each, the one in the file.

    Raises:
        WeightsError: if not all are there, in three lines: which layer, what it takes, what the file has; and which
            backbone the file seems to be of.
    """
    match = match_layers(taken, contents)
    if match.is_whole:
        return [stored for stored in match.pairs if stored]
    other = identify_backbone(contents)
    if not match.is_single:
        remedy = f"Give a file that holds the weights of {backbone} once."
    elif other and not other[1].is_single:
        remedy = f"It holds {other[0]} more than once. Give a file of {backbone}'s weights."
    elif other and other[0] != backbone:
        remedy = f"It seems to be of {other[0]}: set trainer.backbone to that, or give a file of {backbone}'s weights."
    else:
        remedy = f"It is of no backbone that comes with imagepipe. Give a file of {backbone}'s weights."
    raise WeightsError(
        f"{path} does not hold the weights of {backbone}:\n{_describe_difference(taken, match, contents)}\n{remedy}"
    )


def _describe_difference(taken: Sequence[TakenLayer], match: Match, contents: Contents) -> str:
    if match.wrong is not None:
        layer, stored = taken[match.wrong], match.pairs[match.wrong]
        needed, available = (_count_shapes(layers)[layer.shapes] for layers in (taken, contents.layers))
        if stored:
            has = f"{format_shapes(stored.shapes)} in '{get_name(stored)}'"
        elif available > needed:
            has = f"{available} such layers for {needed} of the network: which are meant can't be told"
        elif available == needed:
            has = "as many such layers as the network, but none has this name, nor does their order fit the names"
        else:
            has = "none"
        return f"its layer '{layer.name}' takes {format_shapes(layer.shapes)}, and the file has {has}."
    if match.extra:
        return f"the file has a layer '{get_name(match.extra)}' among its layers, which it does not have."
    return "the file holds such a network more than once, and which one is meant can't be told."


def format_shapes(shapes: Sequence[Shape]) -> str:
    """Returns shapes as text, such as ``(3,3,3,32) (32,)``."""
    return show_text(" ".join(str(tuple(shape)).replace(" ", "") for shape in shapes)) or "none"


def get_name(layer: StoredLayer) -> str:
    """Returns the name of a layer, or its place in the file, as text for messages."""
    return show_text(layer.name or re.sub("(^|/)layers/", r"\1", layer.path))


def _is_dense(layer: StoredLayer) -> bool:
    """Returns whether a layer has the weights of a dense one: no recurrent kernel besides, as an LSTM has."""
    kernel, *others = layer.shapes
    return len(kernel) == 2 and others in ([], [kernel[1:]])


def _count_outputs(contents: Contents, base: Sequence[StoredLayer]) -> int | None:
    """Returns the outputs of the last layer besides the backbone that may be a classifier's, None without one.

    That is a dense one, wherever the file lists it, or else a convolution behind the backbone; without an order, one
    with a higher number than those of the backbone. Of dense ones in models within models, the outermost is the last.
    """
    paths = {layer.path for layer in base}
    rest = [layer for layer in contents.layers if layer.path not in paths and layer.shapes]
    dense = [layer for layer in rest if _is_dense(layer)]
    if not contents.is_ordered:
        dense = [layer for layer in dense if _DENSE.fullmatch(layer.path)]
        dense.sort(key=lambda layer: (-layer.path.count("/"), get_number(layer.path)))
    if dense:
        return dense[-1].shapes[0][-1]
    places = {layer.path: place for place, layer in enumerate(contents.layers)}
    end = max(places[path] for path in paths)
    last = {strip_number(path): get_number(path) for path in sorted(paths, key=get_number)}

    def is_behind(path: str) -> bool:
        if contents.is_ordered:
            return places[path] > end
        return get_number(path) > last.get(strip_number(path), math.inf)

    convolutions = [layer for layer in rest if len(layer.shapes[0]) == 4 and is_behind(layer.path)]
    return convolutions[-1].shapes[0][-1] if convolutions else None
