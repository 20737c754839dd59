"""The pages of the dashboard by path. Their links are relative, so that they work both served and as files.

index.html                            all runs
runs/<run>/index.html                 a run
runs/<run>/log-<node>.html            log of a node
runs/<run>/<file>                     one of FILES
versions/<pipeline>/<version>/index.html   lineage of a model
compare/<run>/<run>/index.html        two runs; the first is the baseline
compare/<run>/<run>/<index>.jpg       an image on which they disagree
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagepipe.base import filesystem
from imagepipe.base.charts import Chart
from imagepipe.base.errors import ModelError
from imagepipe.base.metrics import HEADLINE_METRICS, METRICS
from imagepipe.base.names import SUMMARY
from pipeline.runs import lineage, provenance
from pipeline.runs.dashboard import data, disagreements, graph
from pipeline.runs.dashboard.metric_history import RunValue, draw_metric_history
from pipeline.runs.dashboard.templating import format_duration, format_figure, render
from pipeline.runs.push_outcome import describe_push
from pipeline.runs.summary import Summary, is_live
from pipeline.workdir import Workdir

FILES = {
    "report.html": "text/html; charset=utf-8",
    SUMMARY: "application/json",
    provenance.FILENAME: "application/json",
    provenance.CONFIG: "text/plain; charset=utf-8",
    "log.txt": "text/plain; charset=utf-8",
    "curves.png": "image/png",
    "confusion_matrix.png": "image/png",
}
"""Files of a run that are served, with their content types."""

_ASSETS = {"style.css": "text/css; charset=utf-8", "script.js": "text/javascript; charset=utf-8"}
_HERE = Path(__file__).parent
_COLORS = 6  # of the style sheet
_CHARTED = 200  # runs in a chart: more points than that would be a smear


@dataclass(frozen=True)
class Page:
    """Content of a path: text, bytes, or a file."""

    content: str | bytes | Path
    kind: str = "text/html; charset=utf-8"
    status: int = 200


ReadRuns = Callable[[Workdir], tuple[list[data.Run], str]]


def find_page(workdir: Workdir, path: str, exported: bool = False, read_runs: ReadRuns = data.read_runs) -> Page | None:
    """Returns the content of a path; None if there is none.

    Args:
        workdir: the pipeline's folder.
        path: the path without a leading slash. It is compared with existing names, and never opened.
        exported: whether the page becomes a file, without the parts that need a server.
        read_runs: reads the runs, see ``data.read_runs``.
    """
    match path.split("/"):
        case [""] | ["index.html"]:
            return Page(_render_index(workdir, *read_runs(workdir), exported))
        case [name] if name in _ASSETS:
            return Page((_HERE / name).read_text(encoding="utf-8"), _ASSETS[name])
        case ["runs", run_id, name]:
            runs = {run.id: run for run in read_runs(workdir)[0]}
            return _find_run_page(workdir, runs, run_id, name, exported) if run_id in runs else None
        case ["versions", pipeline, version, "index.html"]:
            return _make_version_page(workdir, read_runs(workdir)[0], pipeline, version, exported)
        case ["compare", one, other, name]:
            runs = {run.id: run for run in read_runs(workdir)[0]}
            return (
                _make_comparison_page(workdir, runs[one], runs[other], name, exported)
                if {one, other} <= set(runs)
                else None
            )
    return None


def make_missing_page(path: str) -> Page:
    """Returns the page for a path that has no content."""
    return Page(render("missing.html", depth=path.count("/"), title="Not found", exported=False), status=404)


def _find_run_page(workdir: Workdir, runs: dict[str, data.Run], run_id: str, name: str, exported: bool) -> Page | None:
    if name == "index.html":
        return Page(_render_run(workdir, runs, runs[run_id], exported))
    folder = workdir.runs / run_id
    if name in FILES:
        file = find_inside(workdir, folder / name)
        return Page(file, FILES[name]) if file else None
    if name.startswith("log-") and name.endswith(".html"):
        node = name.removeprefix("log-").removesuffix(".html")
        log = find_inside(workdir, folder / "log.txt")
        if log is None:
            return None
        lines, cut = data.read_node_log(log, node)
        summary = runs[run_id].summary
        return Page(
            render(
                "log.html",
                2,
                f"Log of {node}",
                exported,
                run=runs[run_id],
                summary=summary,
                node=node,
                lines=lines,
                cut=cut,
            )
        )
    return None


def find_inside(workdir: Workdir, file: Path) -> Path | None:
    """Returns the file with links followed, if it exists and lies in the workdir."""
    resolved = file.resolve()
    return resolved if resolved.is_file() and resolved.is_relative_to(workdir.root.resolve()) else None


def _render_index(workdir: Workdir, runs: list[data.Run], problem: str, exported: bool) -> str:
    summaries = [run.summary for run in runs if run.summary]
    return render(
        "index.html",
        0,
        f"Runs of {workdir.root.name}",
        exported,
        runs=runs,
        problem=problem,
        pipelines=sorted({run.pipeline for run in runs if run.pipeline}),
        columns=list(dict.fromkeys(name for summary in summaries for name in HEADLINE_METRICS[summary.task])),
        bars={run.id: _compute_bar(run.summary) for run in runs},
        charts=_draw_charts(runs),
        charted=_CHARTED,
        live=list(
            dict.fromkeys((run.pipeline, run.summary.pushed_version) for run in runs if run.live and run.summary)
        ),
        running=any(summary.status == "running" for summary in summaries),
    )


def _compute_bar(summary: Summary | None) -> tuple[str, list[tuple[int, float, float]]] | None:
    """Returns each node's share of a run's time: as text, and as (colour, start, width) in percent."""
    if summary is None or not summary.seconds:
        return None
    # A node has the same colour in all runs of a DAG.
    slow = [
        (i, node) for i, node in enumerate(summary.nodes) if not node.cached and node.seconds >= summary.seconds / 50
    ]
    parts, at = [], 0.0
    for i, node in slow:
        width = 100 * node.seconds / summary.seconds
        parts.append((i % _COLORS, round(at, 1), round(width, 1)))
        at += width
    return ", ".join(f"{node.id} {format_duration(node.seconds)}" for _, node in slow) or "no node took long", parts


def _draw_charts(runs: list[data.Run]) -> dict[str, list[tuple[Chart, float]]]:
    """Returns charts and the latest values of all metrics by pipeline, first those that the lists show."""
    charts: dict[str, list[tuple[Chart, float]]] = {}
    for pipeline in sorted({run.pipeline for run in runs if run.summary}):
        own = [run.summary for run in reversed(runs) if run.summary and run.pipeline == pipeline]
        first = [name for summary in own[-1:] for name in HEADLINE_METRICS[summary.task]]
        names = dict.fromkeys(
            [*first, *(name for summary in own for name in summary.metrics if name != "example_count")]
        )
        for name in names:
            values = [
                RunValue(
                    summary.run_id,
                    value,
                    _get_interval(summary, name),
                    summary.pushed_version is not None and summary.blessed is True,
                )
                for summary in own
                if (value := summary.metrics.get(name)) is not None and math.isfinite(value)
            ][-_CHARTED:]
            title = name.replace("_", " ")
            if values and (chart := draw_metric_history(title, values, format_figure(values[-1].value))):
                charts.setdefault(pipeline, []).append((chart, values[-1].value))
    return charts


def _get_interval(summary: Summary | None, name: str) -> tuple[float, float] | None:
    return summary.intervals.get(name) if summary else None


def _render_run(workdir: Workdir, runs: dict[str, data.Run], run: data.Run, exported: bool) -> str:
    details = data.read_details(workdir, run)
    order = list(runs)
    earlier = (run_id for run_id in order[order.index(run.id) + 1 :] if runs[run_id].pipeline == run.pipeline)
    folder = workdir.runs / run.id
    return render(
        "run.html",
        2,
        f"Run {run.id}",
        exported,
        run=run,
        summary=run.summary,
        push=describe_push(run.summary) if run.summary else "",
        details=details,
        drawing=graph.lay_out(details.dag),
        states={node.name: node for node in details.nodes},
        longest=max((node.seconds or 0 for node in details.nodes), default=0),
        metrics=_list_metrics(run.summary),
        files=[name for name in FILES if find_inside(workdir, folder / name)],
        previous=next(earlier, None),
        others=[run_id for run_id in order if run_id != run.id and runs[run_id].summary],
        packages=details.origin and lineage.select_main_packages(details.origin),
        rerun=details.origin and lineage.make_rerun_command(workdir, run.id),
        config=details.origin and provenance.to_yaml(details.origin.config),
        running=run.summary is not None and run.summary.status == "running",
    )


def _list_metrics(summary: Summary | None) -> list[dict[str, Any]]:
    if summary is None:
        return []
    return [
        {
            "name": name,
            "value": value,
            "interval": _get_interval(summary, name),
            "champion": (summary.champion_metrics or {}).get(name),
        }
        for name, value in summary.metrics.items()
    ]


def _make_version_page(
    workdir: Workdir, runs: list[data.Run], pipeline: str, version: str, exported: bool
) -> Page | None:
    pushed = [
        run.summary
        for run in runs
        if run.summary and run.pipeline == pipeline and run.summary.pushed_version == version
    ]
    if not pushed:
        return None
    first = pushed[-1]
    folder = f"{first.serving_dir}/{version}"
    try:
        served = filesystem.is_folder(folder)
    except OSError:  # a store that can't be asked
        served = False
    try:
        # If another target serves it, or it was removed, the run has its own copy. One in a store would be downloaded.
        is_here = served and not filesystem.is_uri(folder)
        traced = lineage.trace_model(folder if is_here else str(workdir.runs / first.run_id), workdir.root)
        problem = ""
    except ModelError as error:
        traced, problem = None, str(error)
    return Page(
        render(
            "version.html",
            3,
            f"{pipeline}, version {version}",
            exported,
            pipeline=pipeline,
            version=version,
            first=first,
            pushed=pushed,
            served=served,
            live=is_live(first),
            lineage=traced,
            problem=problem,
            packages=traced and traced.origin and lineage.select_main_packages(traced.origin),
            config=traced and traced.origin and provenance.to_yaml(traced.origin.config),
            linked={run.id for run in runs},
        )
    )


def _make_comparison_page(workdir: Workdir, one: data.Run, other: data.Run, name: str, exported: bool) -> Page | None:
    details = [data.read_details(workdir, run) for run in (one, other)]
    predictions = [_find_artifact(workdir, run, "predictions", "outputs") for run in details]
    task = other.summary.task if other.summary else ""
    comparison, problem = None, "One of them has kept no predictions; imagepipe clean removes those of old runs."
    if predictions[0] and predictions[1] and predictions[0] == predictions[1]:
        problem = "They have the same predictions, from the cache: the model and the images have not changed."
    elif predictions[0] and predictions[1]:
        try:
            comparison, problem = disagreements.compare(*predictions, regression=task == "regression"), ""
        except (OSError, ValueError, KeyError) as error:
            problem = f"Their predictions can't be read: {error}"
    split = _find_artifact(workdir, details[1], "examples", "inputs")
    if name != "index.html":
        return _find_thumbnail(details[1], comparison, split, name)
    origins = [run.origin for run in details]
    return Page(
        render(
            "compare.html",
            3,
            f"Compared: {one.id} and {other.id}",
            exported,
            one=one,
            other=other,
            metrics=_compare_metrics(one, other),
            changes={
                "Configuration": _list_changes(origins, lambda origin: data.flatten(origin.config)),
                "Code": _list_changes(origins, lambda origin: {"commit": lineage.describe_commit(origin)}),
                "Dataset": _list_changes(origins, lambda origin: data.flatten(origin.dataset.model_dump())),
                "Packages": _list_changes(origins, lambda origin: origin.packages),
            },
            have_origins=all(origins),
            comparison=comparison,
            problem=problem,
            pictures=split is not None,
        )
    )


def _find_artifact(
    workdir: Workdir, details: data.Details, key: str, side: Literal["inputs", "outputs"]
) -> Path | None:
    """Returns the folder of an input or output of a run's component Predictions, if it lies in the workdir."""
    for node in details.nodes:
        if node.execution and any(output.key == "predictions" for output in node.execution.outputs):
            for artifact in getattr(node.execution, side):
                folder = Path(artifact.uri).resolve()
                if artifact.key == key and folder.is_dir() and folder.is_relative_to(workdir.root.resolve()):
                    return folder
    return None


def _find_thumbnail(
    details: data.Details, comparison: disagreements.Comparison | None, examples: Path | None, name: str
) -> Page | None:
    index = name.removesuffix(".jpg")
    if comparison is None or examples is None or not index.isdecimal():
        return None
    features = details.origin.config["data"]["features"] if details.origin else {}
    shown = tuple(disagreement.index for disagreement in comparison.shown)
    thumbnails = disagreements.make_thumbnails(examples / "Split-eval", features.get("input", "input"), shown)
    thumbnail = thumbnails.get(int(index))
    return Page(thumbnail, "image/jpeg") if thumbnail else None


def _list_changes(origins: list[Any], part: Callable[[Any], dict[str, Any]]) -> list[data.Change]:
    return data.list_changes(part(origins[0]), part(origins[1])) if all(origins) else []


def _compare_metrics(one: data.Run, other: data.Run) -> list[dict[str, Any]]:
    if one.summary is None or other.summary is None:
        return []
    rows = []
    for name in dict.fromkeys([*one.summary.metrics, *other.summary.metrics]):
        values = [run.summary.metrics.get(name) for run in (one, other) if run.summary]
        change = None if None in values else values[1] - values[0]  # type: ignore[operator]
        metric = METRICS[other.summary.task].get(name)
        better = metric and change and (change < 0) == metric.lower_is_better
        rows.append(
            {
                "name": name,
                "figures": values,
                "intervals": [_get_interval(run.summary, name) for run in (one, other)],
                "change": change,
                "word": "" if not metric or not change else "better" if better else "worse",
            }
        )
    return rows
