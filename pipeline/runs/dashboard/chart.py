"""A line chart of a figure over runs, as coordinates for SVG."""

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 440, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 10, 24


@dataclass(frozen=True)
class Value:
    """A figure of a run: with its interval where one was computed, and whether the run pushed a model."""

    run: str
    value: float
    low: float | None
    high: float | None
    pushed: bool


@dataclass(frozen=True)
class Point:
    """Where a value is drawn; ``low`` and ``high`` are the ends of its interval on the same axis."""

    of: Value
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Chart:
    """A chart of ``WIDTH`` by ``HEIGHT``.

    Attributes:
        name: the figure's.
        points: in order of time.
        line: the points, as SVG's ``polyline`` has them.
        ticks: (height, text) of the lines of the grid.
        left: where the grid begins.
        right: where it ends.
        bottom: where the times stand.
        first: the time of the first run, as text.
        last: that of the last.
    """

    name: str
    points: list[Point]
    line: str
    ticks: list[tuple[float, str]]
    left: float
    right: float
    bottom: float
    first: str
    last: str


def chart(name: str, values: list[Value]) -> Chart:
    """Draws at least one value, in order of time; runs stand at equal distances."""
    ends = [end for v in values for end in (v.value, v.low, v.high) if end is not None]
    low, high, step = _scale(min(ends), max(ends))
    across, up = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def y(value: float) -> float:
        return round(_TOP + up * (high - value) / (high - low), 1)

    points = []
    for i, v in enumerate(values):
        x = round(_LEFT + across * ((i + 0.5) / len(values)), 1)
        points.append(
            Point(v, x, y(v.value), None if v.low is None else y(v.low), None if v.high is None else y(v.high))
        )
    count = round((high - low) / step)
    digits = max(0, -math.floor(math.log10(step)))
    return Chart(
        name=name,
        points=points,
        line=" ".join(f"{p.x},{p.y}" for p in points),
        ticks=[(y(low + i * step), f"{low + i * step:.{digits}f}") for i in range(count + 1)],
        left=_LEFT,
        right=WIDTH - _RIGHT,
        bottom=HEIGHT - 8,
        first=day(values[0].run),
        last=day(values[-1].run),
    )


def day(run: str) -> str:
    """The day of a run, from its id, such as 2026-11-25; the id itself where it was named otherwise."""
    return f"{run[:4]}-{run[4:6]}-{run[6:8]}" if run[:8].isdigit() and len(run) > 8 else run


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Ends of an axis and the distance of its ticks: one, two or five times a power of ten, four to eight of them."""
    if low == high:
        around = abs(high) / 10 or 1.0
        low, high = low - around, high + around
    spread = high - low
    step = 10.0 ** math.floor(math.log10(spread / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 6)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step
