"""The page of monitored traffic: one HTML file, in the style of a run's report."""

import base64
import datetime
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import components.model_report
from imagepipe.base.charts import Axis, Chart, Point, draw_chart
from imagepipe.base.images import BadImage, normalize
from imagepipe.base.templates import load_templates
from imagepipe.capture.rows import make_preview
from imagepipe.monitoring.comparison import Moved, find_limit
from imagepipe.monitoring.measures import ANSWERS, EMBEDDING, LABEL, MEASURES
from imagepipe.monitoring.report import (
    ALL_DAYS,
    MIN_IMAGES,
    Monitored,
    describe_moved,
    describe_nothing_compared,
    list_rows,
    measure_latency,
)
from imagepipe.monitoring.traffic import load_images, split_label, to_numbers

_HERE = Path(__file__).parent
_STYLE = Path(components.model_report.__path__[0]) / "style.css"
_IMAGES, _CANDIDATES = 8, 40
_MAX_MOVED = 24  # with images
_MAX_LABELS = 50


def render_page(monitored: Monitored) -> str:
    """Returns the page as HTML."""
    moved = {(m.part, m.comparison.measure) for m in monitored.moved}
    return _load_template().render(
        reference=monitored.reference,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        limits=monitored.limits,
        min_images=MIN_IMAGES,
        nothing_compared=describe_nothing_compared(monitored),
        moved=[describe_moved(m) for m in monitored.moved],
        parts=[
            {
                "name": part,
                "images": traffic.images,
                "latency": measure_latency(traffic),
                "errors": traffic.errors,
                "cells": {
                    c.measure: {"distance": c.difference.distance, "moved": (str(part), c.measure) in moved}
                    for c in monitored.comparisons[part]
                },
            }
            for part, traffic in monitored.traffic.items()
        ],
        columns=_list_columns(monitored),
        pictures=[_describe_pictures(monitored, m) for m in monitored.moved[:_MAX_MOVED]],
        left_out=max(0, len(monitored.moved) - _MAX_MOVED),
        charts=_draw_charts(monitored),
        labels=_tabulate_labels(monitored),
        versions=sorted({part.version for part in monitored.traffic}),
        feedback=monitored.feedback,
        style=_STYLE.read_text(encoding="utf-8"),
    )


@functools.cache
def _load_template() -> jinja2.Template:
    return load_templates(_HERE).get_template("page.html")


def _list_columns(monitored: Monitored) -> list[dict[str, Any]]:
    """Returns the measures that were compared, in a fixed order."""
    versus = {c.measure: c.versus for comparisons in monitored.comparisons.values() for c in comparisons}
    return [
        {"measure": name, "versus": versus[name], "limit": find_limit(name, monitored.limits)}
        for name in (*MEASURES, LABEL, *ANSWERS, EMBEDDING)
        if name in versus
    ]


def _describe_pictures(monitored: Monitored, moved: Moved) -> dict[str, Any]:
    """Returns images of the kind that there are more of than in the reference."""
    traffic = next(traffic for part, traffic in monitored.traffic.items() if str(part) == moved.part)
    table, lift = traffic.sample, moved.comparison.difference.lift
    best = np.argsort(-lift, kind="stable")[:_CANDIDATES]
    rows = list_rows(moved.comparison, traffic)[best].tolist()
    places = [(table["file"][row].as_py(), table["row"][row].as_py()) for row in rows]
    images = load_images(places)
    cards: list[dict[str, Any]] = []
    for row, place in zip(rows, places, strict=True):
        if len(cards) < _IMAGES and (url := _make_url(images.get(place))):
            measure = moved.comparison.measure
            value = None if measure in (LABEL, EMBEDDING) else table[measure][row].as_py()
            metadata = (table["metadata"][row].as_py() or b"").decode(errors="replace")
            cards.append({"url": url, "id": metadata, "label": table["label"][row].as_py(), "value": value})
    return {"title": f"{moved.part}: {moved.comparison.measure}", "cards": cards, "measure": moved.comparison.measure}


def _make_url(image: bytes | None) -> str | None:
    """Returns a captured image as a small JPEG's URL; None if there is none, or it can't be read."""
    if image is None:
        return None
    try:
        preview = make_preview(normalize(image).data)
    except BadImage:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"


def _draw_charts(monitored: Monitored) -> list[Chart]:
    days = sorted({part.day for part in monitored.traffic} - {ALL_DAYS})
    charts = []
    for name in (*MEASURES, *ANSWERS):
        series: dict[str, list[Point]] = {}
        for part, traffic in monitored.traffic.items():
            values = to_numbers(traffic.sample[name])
            values = values[np.isfinite(values)]
            if part.day != ALL_DAYS and len(values):
                point = _make_point(days.index(part.day), values, str(part))
                series.setdefault(f"version {part.version}", []).append(point)
        sample = monitored.reference.trained if name in MEASURES else monitored.reference.evaluated
        expected = sample.numbers[name][np.isfinite(sample.numbers[name])]
        if series and len(expected):
            of = "training images" if name in MEASURES else "eval split"
            ends = [0, max(1, len(days) - 1)]
            mean = _compute_mean(expected)
            series[of] = [Point(x, mean, title=f"{of}: {mean:.4g}") for x in ends]
        axis = Axis("day", labels=_label_days(days))
        if series and (chart := draw_chart(f"Mean {name}", series, axis, Axis())):
            charts.append(chart)
    return charts


def _compute_mean(values: np.ndarray) -> float:
    return float(f"{values.mean():.6g}")  # else a chart may show rounding


def _make_point(x: float, values: np.ndarray, title: str) -> Point:
    mean = _compute_mean(values)
    half = 1.96 * float(values.std()) / len(values) ** 0.5
    interval = (mean - half, mean + half) if half > 1e-6 * abs(mean) else None  # else of one value, and its rounding
    return Point(x, mean, interval, f"{title}: {mean:.4g} of {len(values):,} images")


def _label_days(days: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """Returns the first and the last day: more texts would overlap."""
    first, last = (0.0, days[0][5:]), (float(len(days) - 1), days[-1][5:])
    return (first, last) if len(days) > 1 else (first, (1.0, ""))


def _tabulate_labels(monitored: Monitored) -> list[dict[str, Any]]:
    """Returns the share of each label by version, beside the eval split's."""
    task = monitored.reference.task
    if task == "regression":
        return []
    counts: dict[str, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for part, traffic in monitored.traffic.items():
        if part.day == ALL_DAYS:
            continue
        totals[part.version] = totals.get(part.version, 0) + traffic.images
        for text, count in traffic.labels.items():
            for label in split_label(text, task):
                by_version = counts.setdefault(label, {})
                by_version[part.version] = by_version.get(part.version, 0) + count
    expected = monitored.reference.evaluated.labels
    for label in {label for labels in expected for label in labels}:
        counts.setdefault(label, {})
    rows: list[dict[str, Any]] = [
        {
            "label": label or "(no label)",
            "eval": sum(label in labels for labels in expected) / max(len(expected), 1),
            "shares": [by_version.get(version, 0) / max(totals[version], 1) for version in sorted(totals)],
        }
        for label, by_version in counts.items()
    ]
    return sorted(rows, key=lambda row: -max(row["shares"]))[:_MAX_LABELS]
