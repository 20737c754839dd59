"""The pages, by their paths. They link to each other relatively, so that they are the same served and as files.

index.html                            all runs
runs/<run>/index.html                 a run
runs/<run>/log-<node>.html            what a node wrote into the log
runs/<run>/<file>                     those of FILES
versions/<pipeline>/<version>/index.html   what a model was made from
compare/<run>/<run>/index.html        two runs, the first as that which the second is held against
compare/<run>/<run>/<index>.jpg       an image of which they say different things
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from imagepipe.base.charts import Chart
from imagepipe.base.errors import ModelError
from imagepipe.base.metrics import HEADLINE_METRICS, METRICS
from pipeline.runs import lineage, provenance
from pipeline.runs.dashboard import data, disagreements, graph
from pipeline.runs.dashboard.metric_history import RunValue, draw_metric_history
from pipeline.runs.summary import Summary
from pipeline.workdir import Workdir

FILES = {
    "report.html": "text/html; charset=utf-8",
    "summary.json": "application/json",
    "run.json": "application/json",
    "config.yaml": "text/plain; charset=utf-8",
    "log.txt": "text/plain; charset=utf-8",
    "curves.png": "image/png",
    "confusion_matrix.png": "image/png",
}
"""The files of a run that are shown, and what they are."""

_ASSETS = {"style.css": "text/css; charset=utf-8", "script.js": "text/javascript; charset=utf-8"}
_HERE = Path(__file__).parent
_COLORS = 6  # of the style sheet
_CHARTED = 200  # runs in a chart: more points than that would be a smear


@dataclass(frozen=True)
class Answer:
    """What is at a path: a text, some bytes, or a file."""

    content: str | bytes | Path
    kind: str = "text/html; charset=utf-8"
    status: int = 200


def answer(workdir: Workdir, path: str, exported: bool = False) -> Answer | None:
    """What is at a path, None if nothing is.

    Args:
        workdir: the pipeline's.
        path: without a slash at its start. It is compared with what there is, and never opened.
        exported: whether the page is to be a file, without what only a server can do.
    """
    match path.split("/"):
        case [""] | ["index.html"]:
            return Answer(_index(workdir, exported))
        case [name] if name in _ASSETS:
            return Answer((_HERE / name).read_text(encoding="utf-8"), _ASSETS[name])
        case ["runs", run_id, name]:
            found, _ = data.runs(workdir)
            runs = {run.id: run for run in found}
            return _of_run(workdir, runs, run_id, name, exported) if run_id in runs else None
        case ["versions", pipeline, version, "index.html"]:
            return _version(workdir, pipeline, version, exported)
        case ["compare", one, other, name]:
            found, _ = data.runs(workdir)
            runs = {run.id: run for run in found}
            return _compared(workdir, runs[one], runs[other], name, exported) if {one, other} <= set(runs) else None
    return None


def not_found(path: str) -> Answer:
    """The page that says that nothing is at a path."""
    return Answer(_rendered("missing.html", depth=path.count("/"), title="Not found", exported=False), status=404)


def _of_run(workdir: Workdir, runs: dict[str, data.Run], run_id: str, name: str, exported: bool) -> Answer | None:
    if name == "index.html":
        return Answer(_run(workdir, runs, runs[run_id], exported))
    folder = workdir.runs / run_id
    if name in FILES:
        file = inside(workdir, folder / name)
        return Answer(file, FILES[name]) if file else None
    if name.startswith("log-") and name.endswith(".html"):
        node = name.removeprefix("log-").removesuffix(".html")
        log = inside(workdir, folder / "log.txt")
        if log is None:
            return None
        lines, cut = data.log_of(log, node)
        read = runs[run_id].summary
        return Answer(
            _rendered(
                "log.html", 2, f"Log of {node}", exported, run=runs[run_id], read=read, node=node, lines=lines, cut=cut
            )
        )
    return None


def inside(workdir: Workdir, file: Path) -> Path | None:
    """The file, if it is there and, links followed, in the workdir."""
    found = file.resolve()
    return found if found.is_file() and found.is_relative_to(workdir.root.resolve()) else None


def _index(workdir: Workdir, exported: bool) -> str:
    runs, problem = data.runs(workdir)
    summaries = [run.summary for run in runs if run.summary]
    return _rendered(
        "index.html",
        0,
        f"Runs of {workdir.root.name}",
        exported,
        runs=runs,
        problem=problem,
        pipelines=sorted({run.pipeline for run in runs if run.pipeline}),
        columns=list(dict.fromkeys(name for each in summaries for name in HEADLINE_METRICS[each.task])),
        bars={run.id: _bar(run.summary) for run in runs},
        charts=_charts(runs),
        charted=_CHARTED,
        live=list(
            dict.fromkeys((run.pipeline, run.summary.pushed_version) for run in runs if run.live and run.summary)
        ),
        running=any(each.status == "running" for each in summaries),
    )


def _bar(read: Summary | None) -> tuple[str, list[tuple[int, float, float]]] | None:
    """How a run's time went to its nodes: in words, and as (colour, start, width) of parts of 100."""
    if read is None or not read.seconds:
        return None
    # A node has the same colour in all runs of a DAG.
    slow = [(i, node) for i, node in enumerate(read.nodes) if not node.cached and node.seconds >= read.seconds / 50]
    parts, at = [], 0.0
    for i, node in slow:
        width = 100 * node.seconds / read.seconds
        parts.append((i % _COLORS, round(at, 1), round(width, 1)))
        at += width
    return ", ".join(f"{node.id} {_duration(node.seconds)}" for _, node in slow) or "no node took long", parts


def _charts(runs: list[data.Run]) -> dict[str, list[tuple[Chart, float]]]:
    """Returns charts and the latest values of all metrics by pipeline, first those that the lists show."""
    charts: dict[str, list[tuple[Chart, float]]] = {}
    for pipeline in sorted({run.pipeline for run in runs if run.summary}):
        own = [run.summary for run in reversed(runs) if run.summary and run.pipeline == pipeline]
        first = [name for each in own[-1:] for name in HEADLINE_METRICS[each.task]]
        names = dict.fromkeys([*first, *(name for each in own for name in each.metrics if name != "example_count")])
        for name in names:
            values = [
                RunValue(
                    each.run_id, value, _interval(each, name), each.pushed_version is not None and each.blessed is True
                )
                for each in own
                if (value := each.metrics.get(name)) is not None and math.isfinite(value)
            ][-_CHARTED:]
            title = name.replace("_", " ")
            if values and (chart := draw_metric_history(title, values, _figure(values[-1].value))):
                charts.setdefault(pipeline, []).append((chart, values[-1].value))
    return charts


def _interval(read: Any, name: str) -> tuple[float, float] | None:
    found = getattr(read, "intervals", {}).get(name)
    return (found[0], found[1]) if found else None


def _run(workdir: Workdir, runs: dict[str, data.Run], run: data.Run, exported: bool) -> str:
    found = data.details(workdir, run)
    order = list(runs)
    before = next((each for each in order[order.index(run.id) + 1 :] if runs[each].pipeline == run.pipeline), None)
    folder = workdir.runs / run.id
    return _rendered(
        "run.html",
        2,
        f"Run {run.id}",
        exported,
        run=run,
        read=run.summary,
        found=found,
        drawing=graph.draw(found.dag),
        states={node.name: node for node in found.nodes},
        longest=max((node.seconds or 0 for node in found.nodes), default=0),
        metrics=_metrics(run.summary),
        files=[name for name in FILES if inside(workdir, folder / name)],
        before=before,
        others=[each for each in order if each != run.id and runs[each].summary],
        packages=found.origin and lineage.main_packages(found.origin),
        again=found.origin and lineage.again(workdir, run.id),
        config=found.origin and provenance.as_yaml(found.origin.config),
        running=run.summary is not None and run.summary.status == "running",
    )


def _metrics(read: Any) -> list[dict[str, Any]]:
    if read is None:
        return []
    return [
        {
            "name": name,
            "value": value,
            "interval": _interval(read, name),
            "champion": (read.champion_metrics or {}).get(name),
        }
        for name, value in read.metrics.items()
    ]


def _version(workdir: Workdir, pipeline: str, version: str, exported: bool) -> Answer | None:
    runs, _ = data.runs(workdir)
    pushed = [
        run.summary
        for run in runs
        if run.summary and run.pipeline == pipeline and run.summary.pushed_version == version
    ]
    if not pushed:
        return None
    first = pushed[-1]
    folder = Path(first.serving_dir) / version
    try:
        # Of what is served elsewhere, or was removed, the run's own copy is there.
        found = lineage.trace(folder if folder.is_dir() else workdir.runs / first.run_id, workdir.root)
        problem = ""
    except ModelError as error:
        found, problem = None, str(error)
    return Answer(
        _rendered(
            "version.html",
            3,
            f"{pipeline}, version {version}",
            exported,
            pipeline=pipeline,
            version=version,
            first=first,
            pushed=pushed,
            served=folder.is_dir(),
            found=found,
            problem=problem,
            packages=found and found.origin and lineage.main_packages(found.origin),
            config=found and found.origin and provenance.as_yaml(found.origin.config),
            known={run.id for run in runs},
        )
    )


def _compared(workdir: Workdir, one: data.Run, other: data.Run, name: str, exported: bool) -> Answer | None:
    found = [data.details(workdir, run) for run in (one, other)]
    predictions = [_artifact(workdir, each, "predictions", "outputs") for each in found]
    task = other.summary.task if other.summary else ""
    comparison, problem = None, "One of them has kept no predictions."
    if predictions[0] and predictions[1] and predictions[0] == predictions[1]:
        problem = "They have the same predictions, from the cache: the model and the images have not changed."
    elif predictions[0] and predictions[1]:
        try:
            comparison, problem = disagreements.compare(*predictions, regression=task == "regression"), ""
        except (OSError, ValueError, KeyError) as error:
            problem = f"Their predictions can't be read: {error}"
    split = _artifact(workdir, found[1], "examples", "inputs")
    if name != "index.html":
        return _thumbnail(found[1], comparison, split, name)
    origins = [each.origin for each in found]
    return Answer(
        _rendered(
            "compare.html",
            3,
            f"Compared: {one.id} and {other.id}",
            exported,
            one=one,
            other=other,
            metrics=_compared_metrics(one, other),
            changes={
                "Configuration": _changes(origins, lambda origin: data.flat(origin.config)),
                "Code": _changes(origins, lambda origin: {"commit": lineage.commit_text(origin)}),
                "Dataset": _changes(origins, lambda origin: data.flat(origin.dataset.model_dump())),
                "Packages": _changes(origins, lambda origin: origin.packages),
            },
            known=all(origins),
            comparison=comparison,
            problem=problem,
            pictures=split is not None,
        )
    )


def _artifact(workdir: Workdir, found: data.Details, key: str, way: str) -> Path | None:
    """The folder of an artifact that the component Predictions of a run has made or taken, if it is in the workdir."""
    for node in found.nodes:
        if node.execution and any(made.key == "predictions" for made in node.execution.outputs):
            for artifact in getattr(node.execution, way):
                folder = Path(artifact.uri).resolve()
                if artifact.key == key and folder.is_dir() and folder.is_relative_to(workdir.root.resolve()):
                    return folder
    return None


def _thumbnail(
    found: data.Details, comparison: disagreements.Comparison | None, examples: Path | None, name: str
) -> Answer | None:
    index = name.removesuffix(".jpg")
    if comparison is None or examples is None or not index.isdecimal():
        return None
    features = found.origin.config["data"]["features"] if found.origin else {}
    shown = tuple(each.index for each in comparison.shown)
    made = disagreements.thumbnails(examples / "Split-eval", features.get("input", "input"), shown)
    small = made.get(int(index))
    return Answer(small, "image/jpeg") if small else None


def _changes(origins: list[Any], part: Callable[[Any], dict[str, Any]]) -> list[data.Change]:
    return data.changes(part(origins[0]), part(origins[1])) if all(origins) else []


def _compared_metrics(one: data.Run, other: data.Run) -> list[dict[str, Any]]:
    if one.summary is None or other.summary is None:
        return []
    rows = []
    for name in dict.fromkeys([*one.summary.metrics, *other.summary.metrics]):
        values = [run.summary.metrics.get(name) for run in (one, other) if run.summary]
        change = None if None in values else values[1] - values[0]  # type: ignore[operator]
        measure = METRICS[other.summary.task].get(name)
        better = measure and change and (change < 0) == measure.lower_is_better
        rows.append(
            {
                "name": name,
                "figures": values,
                "intervals": [_interval(run.summary, name) for run in (one, other)],
                "change": change,
                "word": "" if not measure or not change else "better" if better else "worse",
            }
        )
    return rows


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "commit": lineage.commit_text,
        "duration": _duration,
        "figure": _figure,
        "plain": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        "words": lambda name: name.replace("_", " "),
    }
    environment.globals |= {"box": (graph.WIDTH, graph.HEIGHT), "when": _when}
    return environment


def _rendered(template: str, depth: int, title: str, exported: bool, **values: Any) -> str:
    root = "../" * depth
    return _templates().get_template(template).render(root=root, title=title, exported=exported, **values)


def _figure(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.4f}" if value != round(value) or abs(value) < 10 else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _when(run_id: str) -> str:
    """When a run was started, from its id, UTC; '' where it was named otherwise."""
    day, _, rest = run_id.partition("-")
    clock = rest[:6]
    if len(day) != 8 or not (day + clock).isdecimal() or len(clock) != 6:
        return ""
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]}:{clock[4:]}"
