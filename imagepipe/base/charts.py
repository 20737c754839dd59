"""Line charts as SVG text, for the run report and the dashboard.

The charts have no colours of their own: the style sheet of the page gives them, for light and for dark mode. It needs
the classes ``grid``, ``tick``, ``ideal``, ``line``, ``whisker`` and, per series, ``s0`` to ``s5`` (stroke) and ``f0``
to ``f5`` (fill).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

COLORS = 6
"""Number of colours in the style sheets; series beyond that repeat them."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 24  # margins, in pixels
_NAME_HEIGHT = 16  # of the name of an axis
_LETTER = 8  # width of a digit, at the 13 px of the larger style sheet
_MAX_DOTS = 30  # on a line, unless they have tooltips: more would hide it
_MAX_LARGE_DOTS = 60
_MAX_VALUE = 1e300  # the difference of larger ones may be no number
_SMALLEST = 1e-300  # distance of ticks: a fraction of a smaller one may be 0
_MAX_DIGITS = 9  # of a tick; longer ones are written with an exponent, as they would leave no room for the drawing


@dataclass(frozen=True)
class Point:
    """A point of a series, in the units of the axes.

    Attributes:
        x: value on the x axis.
        y: value on the y axis.
        interval: ends of an interval around ``y``, drawn as a whisker; None to draw none.
        title: tooltip.
        css_class: class of its dot, instead of the colour of the series.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None
    title: str = ""
    css_class: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        name: printed beside it, if given.
        ends: its two ends; by default round numbers around all values.
        labels: values and texts that are printed instead of round numbers, without grid lines.
    """

    name: str = ""
    ends: tuple[float, float] | None = None
    labels: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Dot:
    """A point in pixels; ``whisker`` has the heights of the ends of its interval."""

    x: float
    y: float
    whisker: tuple[float, float] | None
    title: str
    css_class: str


@dataclass(frozen=True)
class Line:
    """A series in pixels."""

    name: str
    dots: list[Dot]


@dataclass(frozen=True)
class Chart:
    """A chart, in the coordinates of SVG.

    Attributes:
        title: what it shows.
        lines: one per series.
        x_ticks: (x, text).
        y_ticks: (y, text).
        summary: the same as text, for screen readers.
        svg: the drawing, without title and legend.
    """

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    summary: str
    svg: str


def draw_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    x: Axis,
    y: Axis,
    *,
    size: tuple[int, int] = (360, 240),
    diagonal: bool = False,
    joined: bool = True,
    summary: str = "",
) -> Chart | None:
    """Draws series of points; points that are not finite, or beyond 1e300, are left out.

    Args:
        title: what the chart shows.
        series: points by name.
        x: the axis to the right.
        y: the axis upwards.
        size: width and height, in pixels.
        diagonal: whether to draw the line on which both axes have the same value.
        joined: whether a line joins the points.
        summary: text for screen readers; by default the axes, and the first and the last value of each series.

    Returns:
        The chart; None if there is nothing to draw.
    """
    in_reach = {name: [p for p in points if _is_drawable(p.x, p.y)] for name, points in series.items()}
    drawn = {name: points for name, points in in_reach.items() if points}
    if not drawn:
        return None
    points = [point for drawn_points in drawn.values() for point in drawn_points]
    x_low, x_high, x_step = _scale(x, [point.x for point in points])
    y_low, y_high, y_step = _scale(y, [value for p in points for value in (p.y, *(_find_whisker(p) or ()))])
    x_texts, y_texts = x.labels or _list_ticks(x_low, x_high, x_step), y.labels or _list_ticks(y_low, y_high, y_step)
    frame = _place_frame(size, x, y, x_texts, y_texts)

    def place_x(value: float) -> float:
        return round(frame.left + (frame.right - frame.left) * (value - x_low) / (x_high - x_low), 1)

    def place_y(value: float) -> float:
        return round(frame.bottom - (frame.bottom - frame.top) * (value - y_low) / (y_high - y_low), 1)

    def place_point(point: Point) -> Dot:
        interval = _find_whisker(point)
        whisker = (place_y(interval[0]), place_y(interval[1])) if interval else None
        return Dot(place_x(point.x), place_y(point.y), whisker, point.title, point.css_class)

    lines = [Line(name, [place_point(point) for point in points]) for name, points in drawn.items()]
    x_ticks = [(place_x(value), text) for value, text in x_texts]
    y_ticks = [(place_y(value), text) for value, text in y_texts]
    low, high = max(x_low, y_low), min(x_high, y_high)
    has_diagonal = diagonal and low < high
    drawing = [
        *_draw_axes(frame, x, y, x_ticks, y_ticks),
        *([_draw_line("ideal", place_x(low), place_x(high), place_y(low), place_y(high))] if has_diagonal else []),
        *(element for number, line in enumerate(lines) for element in _draw_series(line, number % COLORS, joined)),
    ]
    if not summary:
        ends = (f"{n}: {len(p)} points, from {p[0].y:.4g} to {p[-1].y:.4g}" for n, p in drawn.items())
        summary = f"{title}. {y.name} by {x.name}. {'; '.join(ends)}"
    opening = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(summary)}">'
    svg = "\n".join([opening, *drawing, "</svg>"])
    return Chart(title, lines, x_ticks, y_ticks, summary, svg)


def _is_drawable(*values: float) -> bool:
    return all(abs(value) <= _MAX_VALUE for value in values)  # NaN isn't


def _find_whisker(point: Point) -> tuple[float, float] | None:
    return point.interval if point.interval and _is_drawable(*point.interval) else None


def _scale(axis: Axis, values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the ends of an axis and the distance of its ticks.

    The distance is one, two or five times a power of ten, so that there are three to eight ticks. Ends that are not
    given are such round numbers too.
    """
    low, high = axis.ends or (min(values), max(values))
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, _SMALLEST):  # equal but for rounding, which would be the ends' too
        half = size / 10 if size > _SMALLEST else 1.0
        low, high = low - half, high + half
    spread = high - low
    step = 10.0 ** math.floor(math.log10(spread / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 6)
    if axis.ends:
        return low, high, step
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _list_ticks(low: float, high: float, step: float) -> list[tuple[float, str]]:
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    is_long = digits > _MAX_DIGITS or max(abs(low), abs(high)) >= 10.0**_MAX_DIGITS
    form = ".4g" if is_long else f".{digits}f"
    return [(number * step, f"{number * step:{form}}") for number in range(first, last + 1)]


class _Frame(NamedTuple):
    """Ends of the axes, in pixels."""

    left: int
    right: int
    top: int
    bottom: int


def _place_frame(
    size: tuple[int, int],
    x: Axis,
    y: Axis,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
) -> _Frame:
    """Leaves room for ticks and names around the frame."""
    left = _LETTER * max(len(text) for _, text in y_ticks) + 8 + (_NAME_HEIGHT if y.name else 0)
    right = 0 if x.labels else _LETTER * len(x_ticks[-1][1]) // 2
    bottom = _BOTTOM + (_NAME_HEIGHT if x.name else 0)
    return _Frame(max(_LEFT, left), size[0] - max(_RIGHT, right), _TOP, size[1] - bottom)


def _draw_axes(
    frame: _Frame,
    x: Axis,
    y: Axis,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
) -> list[str]:
    """Draws grid lines, ticks and names."""
    left, right, top, bottom = frame
    drawing = []
    for height, text in y_ticks:
        if not y.labels:
            drawing.append(_draw_line("grid", left, right, height, height))
        drawing.append(_draw_text(left - 6, height + 4, text, "end"))
    longest = max(len(text) for _, text in x_ticks)
    interval = 1 if x.labels else math.ceil(len(x_ticks) * _LETTER * (longest + 1) / (right - left))
    for number, (position, text) in enumerate(x_ticks):
        anchor = "middle"
        if x.labels:  # longer than numbers: those at the ends would not fit
            anchor = "start" if position == left else "end" if position == right else "middle"
        else:
            drawing.append(_draw_line("grid", position, position, top, bottom))
        if number % interval == 0:  # texts of all ticks would overlap
            drawing.append(_draw_text(position, bottom + 16, text, anchor))
    if x.name:
        drawing.append(_draw_text((left + right) / 2, bottom + 34, x.name, "middle"))
    if y.name:
        middle = (top + bottom) / 2
        drawing.append(_draw_text(12, middle, y.name, "middle", f' transform="rotate(-90 12 {middle})"'))
    return drawing


def _draw_series(line: Line, color: int, joined: bool) -> list[str]:
    drawing = [_draw_line("whisker", dot.x, dot.x, *dot.whisker) for dot in line.dots if dot.whisker]
    if joined:
        points = " ".join(f"{dot.x},{dot.y}" for dot in line.dots)
        drawing.append(f'<polyline class="line s{color}" points="{points}"/>')
    radius = 2.5 if not joined else 3.5 if len(line.dots) <= _MAX_LARGE_DOTS else 2
    has_dots = not joined or len(line.dots) <= _MAX_DOTS or any(dot.title for dot in line.dots)
    for dot in line.dots if has_dots else ():
        css_class = dot.css_class or f"f{color}{'' if joined else ' faint'}"
        title = f"<title>{escape(dot.title)}</title>" if dot.title else ""
        drawing.append(f'<circle class="{escape(css_class)}" cx="{dot.x}" cy="{dot.y}" r="{radius}">{title}</circle>')
    return drawing


def _draw_line(css_class: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{css_class}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


def _draw_text(x: float, y: float, text: str, anchor: str, attributes: str = "") -> str:
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}"{attributes}>{escape(text)}</text>'
