"""Finds the layers of a network in a file, all of them or none.

By name where the file has the names, and else by topological order (of a class, in Keras 3's layout). A match has to be
whole: every layer of the network has its weights in the file, of the same shapes, and the file has no others between
them. So a smaller network is not taken out of a larger one that has layers of the same names.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trainer.weights.layers import Contents, StoredLayer, TakenLayer

Pairs = list[StoredLayer | None]
"""For each layer that takes weights, the one in the file that is at its place, or None."""


class Match(NamedTuple):
    """The best match of a network with a file.

    Attributes:
        pairs: by the network's layers.
        wrong: index of the first layer whose weights are missing or of another shape, or None.
        extra: a layer of the file between those of the network, or None.
        is_single: False if the file holds such a network more than once.
    """

    pairs: Pairs
    wrong: int | None
    extra: StoredLayer | None
    is_single: bool = True

    @property
    def is_whole(self) -> bool:
        """Whether it is clear which of the file's layers are the network's, and these are all that it takes."""
        return self.wrong is None and self.extra is None and self.is_single


def match_layers(taken: Sequence[TakenLayer], contents: Contents) -> Match:
    """Returns the match that is whole, or else the one that goes furthest."""
    named = _judge(taken, _pair_by_name(taken, contents.layers), contents)
    if named.is_whole:
        return named
    list_orders = _pair_in_order if contents.is_ordered else _pair_by_path
    matches = [_judge(taken, pairs, contents) for pairs in list_orders(taken, contents.layers)]
    if whole := [match for match in matches if match.is_whole]:
        return whole[0]._replace(is_single=len(whole) == 1)
    return max((*matches, named), key=lambda match: len(taken) if match.wrong is None else match.wrong)


def _judge(taken: Sequence[TakenLayer], pairs: Pairs, contents: Contents) -> Match:
    for index, (layer, stored) in enumerate(zip(taken, pairs, strict=True)):
        if not _fits(layer, stored):
            return Match(pairs, index, None)
    return Match(pairs, None, _find_extra(pairs, contents))


def _fits(layer: TakenLayer, stored: StoredLayer | None) -> bool:
    return stored is not None and stored.shapes == layer.shapes


def _find_extra(pairs: Pairs, contents: Contents) -> StoredLayer | None:
    """Returns a layer between those that are paired, in the file's order or in that of its class."""
    paired = {stored.path for stored in pairs if stored}
    rows: defaultdict[str, list[StoredLayer]] = defaultdict(list)
    for layer in contents.layers:
        rows["" if contents.is_ordered else _strip_number(layer.path)].append(layer)
    for row in rows.values():
        places = [place for place, layer in enumerate(row) if layer.path in paired]
        for place in range(places[0], places[-1]) if places else ():
            if row[place].path not in paired:
                return row[place]
    return None


def _pair_in_order(taken: Sequence[TakenLayer], stored: Sequence[StoredLayer]) -> Iterator[Pairs]:
    """Yields the pairs for each place at which the network's first layer may be: one of its kind."""
    kind = [len(shape) for shape in taken[0].shapes]
    for start, first in enumerate(stored):
        if start == 0 or [len(shape) for shape in first.shapes] == kind:
            run: Pairs = list(stored[start : start + len(taken)])
            yield run + [None] * (len(taken) - len(run))


def _pair_by_path(taken: Sequence[TakenLayer], stored: Sequence[StoredLayer]) -> Iterator[Pairs]:
    """Yields the pairs for each group in which the network may be: the file itself, or a model within the model."""
    by_path = {layer.path: layer for layer in stored}
    for path in by_path:
        if path == taken[0].path or path.endswith(f"/{taken[0].path}"):
            root = path.removesuffix(taken[0].path)
            yield [by_path.get(f"{root}{layer.path}") for layer in taken]


def _pair_by_name(taken: Sequence[TakenLayer], stored: Sequence[StoredLayer]) -> Pairs:
    """Pairs layers of the same name; of names such as ``conv2d_7``, which Keras counts, those at the same distance."""
    by_name: defaultdict[str, list[StoredLayer]] = defaultdict(list)
    for candidate in stored:
        if candidate.name:
            by_name[_normalize(candidate.name)].append(candidate)
            if "/" in candidate.name:
                by_name[_normalize(candidate.name.rpartition("/")[2])].append(candidate)
    counted: defaultdict[str, list[TakenLayer]] = defaultdict(list)
    for layer in taken:
        if _is_counted(layer):
            counted[_strip_number(layer.name)].append(layer)
    shifts = {kind: _find_shift(kind, layers, by_name) for kind, layers in counted.items()}
    pairs: Pairs = []
    for layer in taken:
        name = _normalize(layer.name)
        if _is_counted(layer):
            kind = _strip_number(name)
            shift = shifts[kind]
            name = "" if shift is None else _join_number(kind, _get_number(name) + shift)
        candidates = by_name.get(name, [])
        pairs.append(candidates[0] if len(candidates) == 1 else None)
    return pairs


def _find_shift(kind: str, layers: Sequence[TakenLayer], by_name: dict[str, list[StoredLayer]]) -> int | None:
    """Returns by how much the file's numbers of a class are above the network's; None if two would fit as well."""
    first = min(_get_number(layer.name) for layer in layers)
    numbers = sorted(_get_number(name) for name in by_name if _strip_number(name) == kind)

    def count_fitting(shift: int) -> int:
        rows = [by_name.get(_join_number(kind, _get_number(layer.name) + shift), []) for layer in layers]
        return sum(len(row) == 1 and _fits(layer, row[0]) for layer, row in zip(layers, rows, strict=True))

    fitting = {number - first: count_fitting(number - first) for number in numbers}
    best = [shift for shift, count in fitting.items() if count == max(fitting.values())]
    return best[0] if len(best) == 1 else None


def _is_counted(layer: TakenLayer) -> bool:
    """Returns whether Keras made the name: the class, and how many of it there were before in that process."""
    return _strip_number(layer.name) == _strip_number(layer.path.rpartition("/")[2])


def _normalize(name: str) -> str:
    return name.replace("/", "_")  # Keras 3 allows no slash in a name; DenseNet's and MobileNetV3's had some


def _strip_number(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _get_number(name: str) -> int:
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0


def _join_number(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind
