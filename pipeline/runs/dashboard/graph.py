"""Where the nodes of a DAG go in a drawing: in layers from top to bottom, as Sugiyama, Tagawa and Toda have it.

(Methods for visual understanding of hierarchical system structures, IEEE Transactions on Systems, Man, and Cybernetics
11(2), 1981.) An edge over several layers passes through a place of its own in each, so that it crosses no box.
"""

import itertools
from dataclasses import dataclass

WIDTH, HEIGHT = 172, 44
_GAP, _BETWEEN, _MARGIN = 16, 30, 4
_PASSING = 28  # width of the place of an edge that passes by
_SWEEPS = 8

_Place = str | tuple[str, str, int]
"""A node, or where an edge passes through a layer: from, to, layer."""


@dataclass(frozen=True)
class Box:
    """A node: its left upper corner, in units of the drawing."""

    node: str
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """A drawing of ``width`` by ``height``: boxes of ``WIDTH`` by ``HEIGHT``, and paths of SVG for the edges."""

    width: float
    height: float
    boxes: list[Box]
    edges: list[str]


def draw(dag: dict[str, list[str]]) -> Drawing:
    """Lays out a DAG.

    Edges that a longer way implies are left out: everything needs the Examples, and an arrow for each would hide the
    order in which things happen.

    Args:
        dag: the nodes in an order in which they can run, each with those that it waits for; others are ignored.
    """
    parents = _reduced(dag)
    if not parents:
        return Drawing(0, 0, [], [])
    layer: dict[str, int] = {}
    for node, before in parents.items():
        layer[node] = 1 + max((layer[each] for each in before), default=-1)

    above: dict[_Place, list[_Place]] = {node: [] for node in parents}
    rows: list[list[_Place]] = [[] for _ in range(1 + max(layer.values()))]
    for node in parents:
        rows[layer[node]].append(node)
    ways: list[list[_Place]] = []
    for node, before in parents.items():
        for each in before:
            passes = [(each, node, at) for at in range(layer[each] + 1, layer[node])]
            for passed in passes:
                rows[passed[2]].append(passed)
            way: list[_Place] = [each, *passes, node]
            for upper, lower in itertools.pairwise(way):
                above.setdefault(lower, []).append(upper)
            ways.append(way)
    _untangle(rows, above)

    x: dict[_Place, float] = {}
    y: dict[_Place, float] = {}
    widths = [sum(_width(place) for place in row) + _GAP * (len(row) - 1) for row in rows]
    total = max(widths) + 2 * _MARGIN
    for depth, (row, width) in enumerate(zip(rows, widths, strict=True)):
        at = (total - width) / 2
        for place in row:
            x[place], y[place] = at + _width(place) / 2, _MARGIN + depth * (HEIGHT + _BETWEEN)
            at += _width(place) + _GAP
    boxes = [Box(node, x[node] - WIDTH / 2, y[node]) for node in parents]
    height = 2 * _MARGIN + len(rows) * (HEIGHT + _BETWEEN) - _BETWEEN
    return Drawing(total, height, boxes, [_path(way, x, y) for way in ways])


def _reduced(dag: dict[str, list[str]]) -> dict[str, list[str]]:
    """The transitive reduction: without edges from a node to those that it reaches by another way as well."""
    reached: dict[str, set[str]] = {}  # all that a node needs, directly or not
    reduced: dict[str, list[str]] = {}
    for node, before in dag.items():
        known = [each for each in before if each in reached]
        beyond = set().union(*(reached[each] for each in known))
        reached[node] = beyond | set(known)
        reduced[node] = [each for each in known if each not in beyond]
    return reduced


def _untangle(rows: list[list[_Place]], above: dict[_Place, list[_Place]]) -> None:
    """Orders each layer by where the neighbours of its places are (the barycenter method), down and up in turns."""
    below: dict[_Place, list[_Place]] = {}
    for lower, uppers in above.items():
        for upper in uppers:
            below.setdefault(upper, []).append(lower)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        order = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for at in order:
            beside = rows[at - 1 if down else at + 1]
            place = {each: (i + 0.5) / len(beside) for i, each in enumerate(beside)}
            near = above if down else below
            own = {each: (i + 0.5) / len(rows[at]) for i, each in enumerate(rows[at])}
            rows[at].sort(key=lambda each: _mean([place[n] for n in near.get(each, [])], own[each]))


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _width(place: _Place) -> float:
    return WIDTH if isinstance(place, str) else _PASSING


def _path(way: list[_Place], x: dict[_Place, float], y: dict[_Place, float]) -> str:
    """An edge as a path of SVG: curves between the layers, straight where it passes one."""
    start = (x[way[0]], y[way[0]] + HEIGHT)
    path = f"M{start[0]:.1f},{start[1]:.1f}"
    for place in way[1:]:
        end = (x[place], y[place])
        middle = (start[1] + end[1]) / 2
        path += f"C{start[0]:.1f},{middle:.1f} {end[0]:.1f},{middle:.1f} {end[0]:.1f},{end[1]:.1f}"
        if not isinstance(place, str):
            path += f"V{end[1] + HEIGHT:.1f}"
        start = (end[0], end[1] + HEIGHT)
    return path
