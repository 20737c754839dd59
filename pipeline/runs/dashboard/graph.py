"""Layout of a DAG in layers from top to bottom.

After K. Sugiyama, S. Tagawa and M. Toda, "Methods for visual understanding of hierarchical system structures", IEEE
Transactions on Systems, Man, and Cybernetics 11(2), 1981. An edge over several layers has a place of its own in each,
so that it crosses no box.
"""

import itertools
from dataclasses import dataclass
from statistics import fmean

WIDTH, HEIGHT = 172, 44
_GAP, _BETWEEN, _MARGIN = 16, 30, 4
_PASSING = 28  # width of an edge's place in a layer
_SWEEPS = 8

_Place = str | tuple[str, str, int]
"""A node, or the place at which an edge crosses a layer: (from, to, layer)."""


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


def lay_out(dag: dict[str, list[str]]) -> Drawing:
    """Lays out a DAG.

    Edges that a longer path implies are left out: everything needs the Examples, and an arrow for each would hide the
    order of the nodes.

    Args:
        dag: the nodes in topological order, each with the nodes that it waits for; unknown ones are ignored.
    """
    parents = _reduce_transitively(dag)
    if not parents:
        return Drawing(0, 0, [], [])
    layer: dict[str, int] = {}
    for node, own_parents in parents.items():
        layer[node] = 1 + max((layer[parent] for parent in own_parents), default=-1)

    above: dict[_Place, list[_Place]] = {node: [] for node in parents}
    rows: list[list[_Place]] = [[] for _ in range(1 + max(layer.values()))]
    for node in parents:
        rows[layer[node]].append(node)
    paths: list[list[_Place]] = []
    for node, own_parents in parents.items():
        for parent in own_parents:
            crossings = [(parent, node, depth) for depth in range(layer[parent] + 1, layer[node])]
            for crossing in crossings:
                rows[crossing[2]].append(crossing)
            path: list[_Place] = [parent, *crossings, node]
            for upper, lower in itertools.pairwise(path):
                above.setdefault(lower, []).append(upper)
            paths.append(path)
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
    return Drawing(total, height, boxes, [_format_path(path, x, y) for path in paths])


def _reduce_transitively(dag: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns the transitive reduction: without edges that a longer path implies."""
    reached: dict[str, set[str]] = {}  # all ancestors of a node
    reduced: dict[str, list[str]] = {}
    for node, parents in dag.items():
        parents = [parent for parent in parents if parent in reached]
        further = set().union(*(reached[parent] for parent in parents))
        reached[node] = further | set(parents)
        reduced[node] = [parent for parent in parents if parent not in further]
    return reduced


def _untangle(rows: list[list[_Place]], above: dict[_Place, list[_Place]]) -> None:
    """Orders each layer by the mean position of its neighbours (the barycenter method), down and up in turns."""
    below: dict[_Place, list[_Place]] = {}
    for lower, uppers in above.items():
        for upper in uppers:
            below.setdefault(upper, []).append(lower)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        order = range(1, len(rows)) if down else range(len(rows) - 2, -1, -1)
        for at in order:
            beside = rows[at - 1 if down else at + 1]
            position = {place: (i + 0.5) / len(beside) for i, place in enumerate(beside)}
            near = above if down else below
            own = {place: (i + 0.5) / len(rows[at]) for i, place in enumerate(rows[at])}
            rows[at].sort(key=lambda place: fmean([position[n] for n in near.get(place, [])] or [own[place]]))


def _width(place: _Place) -> float:
    return WIDTH if isinstance(place, str) else _PASSING


def _format_path(places: list[_Place], x: dict[_Place, float], y: dict[_Place, float]) -> str:
    """Returns an edge as an SVG path: curves between the layers, straight across a layer."""
    start = (x[places[0]], y[places[0]] + HEIGHT)
    path = f"M{start[0]:.1f},{start[1]:.1f}"
    for place in places[1:]:
        end = (x[place], y[place])
        middle = (start[1] + end[1]) / 2
        path += f"C{start[0]:.1f},{middle:.1f} {end[0]:.1f},{middle:.1f} {end[0]:.1f},{end[1]:.1f}"
        if not isinstance(place, str):
            path += f"V{end[1] + HEIGHT:.1f}"
        start = (end[0], end[1] + HEIGHT)
    return path
