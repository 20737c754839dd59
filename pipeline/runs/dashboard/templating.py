"""Templates of the pages, and how they show figures, durations and times."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from imagepipe.base.templates import load_templates
from pipeline.runs import lineage
from pipeline.runs.dashboard import graph

_FOLDER = Path(__file__).with_name("templates")


@cache
def _load_templates() -> jinja2.Environment:
    environment = load_templates(_FOLDER)
    environment.filters |= {
        "commit": lineage.describe_commit,
        "duration": format_duration,
        "figure": format_figure,
        "plain": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        "words": lambda name: name.replace("_", " "),
    }
    environment.globals |= {"box": (graph.WIDTH, graph.HEIGHT), "when": _format_start}
    return environment


def render(template: str, depth: int, title: str, exported: bool, **values: Any) -> str:
    """Renders a page that lies ``depth`` folders below the first."""
    root = "../" * depth
    return _load_templates().get_template(template).render(root=root, title=title, exported=exported, **values)


def format_figure(value: float | None) -> str:
    """Returns a metric's value as text."""
    if value is None:
        return "none"
    return f"{value:.4f}" if value != round(value) or abs(value) < 10 else f"{value:,.0f}"


def format_duration(seconds: float | None) -> str:
    """Returns a duration as text; '' if there is none."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _format_start(run_id: str) -> str:
    """Returns the time of a run's start, UTC, from its id; '' if the id has another form."""
    day, _, rest = run_id.partition("-")
    clock = rest[:6]
    if len(day) != 8 or not (day + clock).isdecimal() or len(clock) != 6:
        return ""
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}:{clock[4:]}"
