"""Line charts as coordinates for SVG, which the page colours: for light and for dark."""

import math
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_TICKS = 4

Points = list[tuple[float, float]]


class Line(NamedTuple):
    """A line with its name; ``points`` as SVG's ``polyline`` has them, ``dots`` as (x, y)."""

    name: str
    points: str
    dots: Points


@dataclass(frozen=True)
class Chart:
    """A chart of ``WIDTH`` by ``HEIGHT``.

    Attributes:
        title: what it shows.
        x_name: of the axis to the right.
        y_name: of the axis upwards.
        lines: each a series.
        x_ticks: (place, text).
        y_ticks: likewise.
        diagonal: the ends (x, y, x, y) of the line on which both axes say the same; None to draw none.
        dots_only: whether the points are not joined.
        summary: the same for those who can't see it.
    """

    title: str
    x_name: str
    y_name: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    diagonal: tuple[float, float, float, float] | None
    dots_only: bool
    summary: str


def chart(
    title: str,
    x_name: str,
    y_name: str,
    series: dict[str, Points],
    x: tuple[float, float] | None = None,
    y: tuple[float, float] | None = None,
    diagonal: bool = False,
    dots_only: bool = False,
) -> Chart | None:
    """Draws series of points by their names; what is not finite is left out.

    Args:
        title: what it shows.
        x_name: of the axis to the right.
        y_name: of the axis upwards.
        series: points by name.
        x: ends of the axis; by default those of the points.
        y: likewise.
        diagonal: whether to draw the line on which both axes say the same.
        dots_only: whether the points are not joined.

    Returns:
        The chart; None if there is nothing to draw.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    drawn = {name: points for name, points in finite.items() if points}
    if not drawn:
        return None
    x_low, x_high = x or _ends([p[0] for points in drawn.values() for p in points])
    y_low, y_high = y or _ends([p[1] for points in drawn.values() for p in points])

    def right(value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (value - x_low) / (x_high - x_low), 1)

    def up(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - y_low) / (y_high - y_low), 1)

    lines = []
    for name, points in drawn.items():
        dots = [(right(a), up(b)) for a, b in points]
        lines.append(Line(name, " ".join(f"{a},{b}" for a, b in dots), dots))
    low, high = max(x_low, y_low), min(x_high, y_high)
    said = "; ".join(
        f"{name}: {len(points)} points, from {points[0][1]:.4g} to {points[-1][1]:.4g}"
        for name, points in drawn.items()
    )
    return Chart(
        title=title,
        x_name=x_name,
        y_name=y_name,
        lines=lines,
        x_ticks=[(right(value), _text(value)) for value in _ticks(x_low, x_high)],
        y_ticks=[(up(value), _text(value)) for value in _ticks(y_low, y_high)],
        diagonal=(right(low), up(low), right(high), up(high)) if diagonal and low < high else None,
        dots_only=dots_only,
        summary=f"{title}. {y_name} by {x_name}. {said}",
    )


def _ends(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        around = abs(low) / 10 or 0.5
        return low - around, high + around
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Two to five values of one, two or five times a power of ten."""
    step = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= _TICKS)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _text(value: float) -> str:
    return f"{value:.4g}"
