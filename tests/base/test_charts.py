"""Charts as SVG text; how pages show them is tested with the pages."""

import html
import xml.etree.ElementTree as ET

import pytest

from imagepipe.base.charts import Axis, Point, draw_chart

MARKUP = "</svg><img src=x onerror=\"document.title='owned'\"><b>"


def test_charts_leave_out_what_is_not_finite_and_draw_a_single_point():
    chart = draw_chart("t", {"a": [Point(1, 2.0), Point(2, float("nan"))], "b": []}, Axis("x"), Axis("y"))
    assert chart is not None
    assert [(line.name, len(line.dots)) for line in chart.lines] == [("a", 1)]
    assert draw_chart("t", {"a": [Point(1, float("inf"))]}, Axis("x"), Axis("y")) is None


def test_text_in_charts_is_no_markup():
    chart = draw_chart(MARKUP, {"a": [Point(1, 2.0, title=MARKUP)]}, Axis("<i>"), Axis("<i>"))
    assert "<img" not in chart.svg
    assert "<i>" not in chart.svg
    assert html.escape(MARKUP) in chart.svg
    ET.fromstring(chart.svg)  # noqa: S314 (our own text)


def test_an_axis_with_ends_keeps_them_and_has_round_numbers_between():
    chart = draw_chart("t", {"a": [Point(0, 0.2), Point(1, 0.9)]}, Axis("x", (0, 1)), Axis("y", (0, 1)))
    assert [text for _, text in chart.x_ticks] == [text for _, text in chart.y_ticks]
    assert [text for _, text in chart.y_ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    first, last = chart.lines[0].dots
    (left, _), *_, (right, _) = chart.x_ticks
    assert (first.x, last.x) == (left, right)


def test_an_interval_is_a_whisker_within_the_axis():
    chart = draw_chart("t", {"a": [Point(0, 0.5, interval=(0.1, 0.93))]}, Axis(), Axis())
    (dot,) = chart.lines[0].dots
    (lowest, _), *_, (highest, _) = chart.y_ticks
    assert lowest > dot.whisker[0] > dot.y > dot.whisker[1] > highest  # heights grow downwards
    assert 'class="whisker"' in chart.svg


@pytest.mark.parametrize(
    "values",
    [
        (0.9, 0.9000000000000001),
        (0.7, 0.7000000000000001),
        (5e-324, 0.0),
        (1e-310, 3e-310),
        (1.0, 1.7e308),
        (-1e300, 1e300),
        (1e300, 1e300),
        (3e20, 4e25),
    ],
)
def test_any_two_values_are_drawn_within_a_chart_whose_ticks_can_be_read(values):
    points = [Point(float(number), value) for number, value in enumerate(values)]
    chart = draw_chart("t", {"a": points}, Axis("x"), Axis("y"))
    heights = [dot.y for dot in chart.lines[0].dots]
    assert all(chart.y_ticks[-1][0] <= height <= chart.y_ticks[0][0] for height in heights)
    assert all(len(text) <= 12 for _, text in chart.y_ticks)
    ET.fromstring(chart.svg)  # noqa: S314 (our own text)


def test_an_interval_that_is_not_finite_is_not_drawn():
    chart = draw_chart("t", {"a": [Point(0, 0.5, interval=(0.1, float("inf")))]}, Axis(), Axis())
    assert chart.lines[0].dots[0].whisker is None
