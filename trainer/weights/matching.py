"""Finds the layers of a network in a file, all of them or none.

By name where the file has the names, and else by topological order (of a class, in Keras 3's layout), unless the names
contradict it. A match has to be whole: every layer of the network has its weights in the file, of the same shapes, and
the file has no others between them. So a smaller network is not taken out of a larger one that has layers of the same
names.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from trainer.weights.layers import Contents, StoredLayer, TakenLayer, sort_weights

_MAX_ROOTS = 4  # models within models, in which the network is looked for

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
    named = _match_by_name(taken, contents)
    own_names = [index for index, layer in enumerate(taken) if _has_own_name(layer)]
    if named.is_whole or (own_names and named.wrong is None):  # a larger network with the same names
        return named
    named_paths = {
        index: stored.path for index in own_names if (stored := named.pairs[index]) and _fits(taken[index], stored)
    }

    def contradicts(pairs: Pairs) -> bool:
        """Returns whether most names are in the file, and some of them at another place."""
        paths = {index: stored.path for index in named_paths if (stored := pairs[index])}
        return 2 * len(named_paths) > len(own_names) and any(
            named_paths[index] != path for index, path in paths.items()
        )

    list_orders = _pair_in_order if contents.is_ordered else _pair_by_path
    orders = (pairs for pairs in list_orders(taken, contents.layers) if not contradicts(pairs))
    matches = [_judge(taken, pairs, contents) for pairs in orders]
    if whole := [match for match in matches if match.is_whole]:
        return whole[0]._replace(is_single=len(whole) == 1)
    return max((*matches, named), key=lambda match: len(taken) if match.wrong is None else match.wrong)


def _match_by_name(taken: Sequence[TakenLayer], contents: Contents) -> Match:
    """Returns the match by name; of numbers that Keras counted, by the very names where two distances would fit."""
    # Those that Keras named: the class, and how many of it there were before in that process.
    counted = {strip_number(layer.path.rpartition("/")[2]) for layer in taken}
    shifted = _pair_by_name(taken, contents.layers, counted)
    if 0 < 2 * shifted.count(None) < len(taken):  # the others can be nowhere else
        exact = _pair_by_name(taken, contents.layers, set())
        match = _judge(taken, exact, contents)
        if match.is_whole and all(pair in (None, stored) for pair, stored in zip(shifted, exact, strict=True)):
            return match
    return _judge(taken, shifted, contents)


def _has_own_name(layer: TakenLayer) -> bool:
    """Returns whether neither a layer's name, nor that of one around it, may be Keras's own."""
    kinds = set(map(strip_number, layer.path.split("/")))
    top, *inner = layer.name.split("/")  # the path of an inner layer may have an attribute's name, and not its class
    return not any(strip_number(part) in kinds for part in (top, *inner)) and inner == list(map(strip_number, inner))


def _judge(taken: Sequence[TakenLayer], pairs: Pairs, contents: Contents) -> Match:
    pairs = [stored and sort_weights(stored, layer) for layer, stored in zip(taken, pairs, strict=True)]
    for index, (layer, stored) in enumerate(zip(taken, pairs, strict=True)):
        if not _fits(layer, stored):
            return Match(pairs, index, None)
    return Match(pairs, None, _find_extra(pairs, contents) or _find_next(taken, pairs, contents))


def _fits(layer: TakenLayer, stored: StoredLayer | None) -> bool:
    return stored is not None and sort_weights(stored, layer).shapes == layer.shapes


def _find_extra(pairs: Pairs, contents: Contents) -> StoredLayer | None:
    """Returns a layer between those that are paired, in the file's order or in that of its class."""
    paired = {stored.path for stored in pairs if stored}
    rows: defaultdict[str, list[StoredLayer]] = defaultdict(list)
    for layer in contents.layers:
        rows["" if contents.is_ordered else _strip_numbers(layer.path)].append(layer)
    for row in rows.values():
        places = [place for place, layer in enumerate(row) if layer.path in paired]
        for place in range(places[0], places[-1]) if places else ():
            if row[place].path not in paired:
                return row[place]
    return None


def _find_next(taken: Sequence[TakenLayer], pairs: Pairs, contents: Contents) -> StoredLayer | None:
    """Returns a layer that continues a row of blocks, behind which the network has others; in Keras 3's layout.

    The order of different classes is not in the file, so the layer may be in the midst. A head may have layers that
    Keras named as well. So those that lie in no other layer are left out, and those that do, such as the parts of an
    attention, count only if the block since the last one of their row is there once more.
    """
    if contents.is_ordered or not pairs[0]:
        return None
    depth = taken[0].path.count("/") + 1
    root = "/".join([*pairs[0].path.split("/")[:-depth], ""])
    stored = [pair for pair in pairs if pair]
    paired = {layer.path for layer in stored}
    others = [layer for layer in contents.layers if layer.path.startswith(root) and layer.path not in paired]
    rows, other_rows = list(map(_get_row, stored)), set(map(_get_row, others))
    named = [bool(pair.name and _has_own_name(layer)) for layer, pair in zip(taken, stored, strict=True)]
    places: defaultdict[tuple[Hashable, ...], list[int]] = defaultdict(list)
    for index, layer in enumerate(taken):
        if named[index] or "/" in layer.name:
            places[rows[index]].append(index)
    tops = [layer.name.partition("/")[0] for layer in taken]
    for other in others:
        if indices := places.get(_get_row(other)):
            start, place = indices[-2:][0], indices[-1]
            is_continued = named[place] or other_rows.issuperset(rows[start:place])
            if is_continued and set(tops[place:]) != {tops[place]}:
                return other
    return None


def _get_row(layer: StoredLayer) -> tuple[Hashable, ...]:
    return _strip_numbers(layer.path), _strip_numbers(layer.name or ""), layer.shapes


def _pair_in_order(taken: Sequence[TakenLayer], stored: Sequence[StoredLayer]) -> Iterator[Pairs]:
    """Yields the pairs for each place at which the network's first layer may be: one of its kind."""
    kind = sorted(len(shape) for shape in taken[0].shapes)
    for start, first in enumerate(stored):
        if start == 0 or sorted(len(shape) for shape in first.shapes) == kind:
            run: Pairs = list(stored[start : start + len(taken)])
            yield run + [None] * (len(taken) - len(run))


def _pair_by_path(taken: Sequence[TakenLayer], stored: Sequence[StoredLayer]) -> Iterator[Pairs]:
    """Yields the pairs for each group in which the network may be: the file itself, or a model within the model.

    Other layers of a class may come before: their numbers are then higher, all by the same.
    """
    ends = (layer.path for layer in stored if f"/{layer.path}".endswith(f"/{taken[0].path}"))
    roots = (path.removesuffix(taken[0].path) for path in ends)
    large_enough = (root for root in roots if sum(layer.path.startswith(root) for layer in stored) >= len(taken))
    for root in islice(large_enough, _MAX_ROOTS):
        by_path = {layer.path.removeprefix(root): [layer] for layer in stored if layer.path.startswith(root)}
        paths = [layer.path for layer in taken]
        yield _pair_shifted(taken, paths, by_path, {strip_number(path) for path in paths})


def _pair_by_name(taken: Sequence[TakenLayer], stored: Sequence[StoredLayer], counted: set[str]) -> Pairs:
    """Pairs layers of the same name."""
    keys = [_normalize(layer.name) for layer in taken]
    whole_names = set(keys)
    by_name: defaultdict[str, list[StoredLayer]] = defaultdict(list)
    for layer in stored:
        if layer.name:
            by_name[_normalize(layer.name)].append(layer)
            if "/" in layer.name and _normalize(layer.name) not in whole_names:
                by_name[_normalize(layer.name.rpartition("/")[2])].append(layer)
    return _pair_shifted(taken, keys, by_name, counted)


def _pair_shifted(
    taken: Sequence[TakenLayer], keys: Sequence[str], stored: Mapping[str, list[StoredLayer]], counted: set[str]
) -> Pairs:
    """Pairs layers of the same key; of keys such as ``conv2d_7``, whose class is counted, at the same distance."""
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if (kind := strip_number(key)) in counted:
            kinds[kind].append(index)
    shifted = list(keys)
    for kind, indices in kinds.items():
        numbers = [get_number(keys[index]) for index in indices]
        shift = _find_shift(kind, [taken[index] for index in indices], numbers, stored)
        for index, number in zip(indices, numbers, strict=True):
            shifted[index] = "" if shift is None else _join_number(kind, number + shift)
    rows = [stored.get(key, []) for key in shifted]
    times = Counter(row[0].path for row in rows if len(row) == 1)
    return [row[0] if len(row) == 1 and times[row[0].path] == 1 else None for row in rows]


def _find_shift(
    kind: str, layers: Sequence[TakenLayer], numbers: Sequence[int], stored: Mapping[str, list[StoredLayer]]
) -> int | None:
    """Returns by how much the file's numbers of a class are above the network's; None if two would fit."""

    def count_fitting(shift: int) -> int:
        rows = [stored.get(_join_number(kind, number + shift), []) for number in numbers]
        return sum(len(row) == 1 and _fits(layer, row[0]) for layer, row in zip(layers, rows, strict=True))

    shifts = sorted(get_number(key) - min(numbers) for key in stored if strip_number(key) == kind)
    counts = {shift: count_fitting(shift) for shift in shifts}
    best = [shift for shift, count in counts.items() if count == max(counts.values())]
    if len(best) == 1:
        return best[0]
    return None if best and counts[best[0]] == len(layers) else 0


def _normalize(name: str) -> str:
    return name.replace("/", "_")  # Keras 3 allows no slash in a name; DenseNet's and MobileNetV3's had some


def strip_number(name: str) -> str:
    """Returns the class of a name or path such as ``conv2d_7``."""
    return re.sub(r"_\d+$", "", name)


def _strip_numbers(path: str) -> str:
    """Returns a path or name such as ``layers/block_7/norm_1`` without its numbers."""
    return re.sub(r"_?\d+(?=/|_|$)", "", path)


def get_number(name: str) -> int:
    """Returns the number of a name or path such as ``conv2d_7``, 0 without one."""
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0


def _join_number(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind
