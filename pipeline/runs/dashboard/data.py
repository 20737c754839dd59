"""What the pages tell, read from a workdir each time: summaries, ``run.json``, ML Metadata, logs, predictions."""

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagepipe.deploy.versions import list_version_folders
from pipeline import logs
from pipeline.runs import provenance, store, summary
from pipeline.runs.provenance import Origin
from pipeline.runs.summary import Summary
from pipeline.workdir import Workdir

_LOG_LINES = 3000
_LOG_LINE = 2000  # characters
_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Run:
    """A run in the list.

    Attributes:
        id: the run.
        pipeline: its pipeline's name; empty where the summary is damaged.
        summary: None where it is damaged, or ML Metadata only knows the run.
        problem: why there is no summary, in words.
        live: whether its model is the newest in its folder.
        report: whether it has left a report.
    """

    id: str
    pipeline: str
    summary: Summary | None
    problem: str = ""
    live: bool = False
    report: bool = False


@dataclass(frozen=True)
class Node:
    """A node of a run.

    Attributes:
        name: in the DAG.
        state: ``done``, ``cached``, ``running``, ``failed``, ``waiting``, or ``not reached`` in a run that has ended.
        seconds: None if it has not ended.
        execution: what ML Metadata has of it.
        made_by: by an artifact's id, the run that made it, where that was another.
    """

    name: str
    state: str
    seconds: float | None
    execution: store.Execution | None
    made_by: dict[int, str]


@dataclass(frozen=True)
class Details:
    """All about a run.

    Attributes:
        run: as in the list.
        origin: what it was made from.
        nodes: of its DAG, in order.
        dag: each node with those that it waits for.
        metadata_problem: why ML Metadata can't be read now; '' if it can.
    """

    run: Run
    origin: Origin | None
    nodes: list[Node]
    dag: dict[str, list[str]]
    metadata_problem: str


def runs(workdir: Workdir) -> tuple[list[Run], str]:
    """All runs, newest first, and why ML Metadata can't be read now, '' if it can.

    A run whose folder was removed is in ML Metadata still.
    """
    found: dict[str, Run] = {}
    newest: dict[str, str | None] = {}
    for run_id, read in summary.read_each(workdir.runs):
        if not _RUN_ID.fullmatch(run_id):
            continue
        if read is None:
            found[run_id] = Run(run_id, "", None, "its summary.json is damaged")
            continue
        if read.target == "filesystem" and read.serving_dir not in newest:
            newest[read.serving_dir] = next((folder.name for folder in list_version_folders(read.serving_dir)[-1:]), None)
        live = read.pushed_version is not None and newest.get(read.serving_dir) == read.pushed_version
        report = (workdir.runs / run_id / "report.html").is_file()
        found[run_id] = Run(run_id, read.name, read, live=live, report=report)
    problem = ""
    try:
        with store.opened(workdir.metadata) as metadata:
            recorded = store.run_ids(metadata) if metadata else {}
        for run_id, pipeline in recorded.items():
            if run_id not in found and _RUN_ID.fullmatch(run_id):
                found[run_id] = Run(run_id, pipeline, None, "only ML Metadata knows it: its folder was removed")
    except store.BusyError as error:
        problem = str(error)
    return [found[run_id] for run_id in sorted(found, reverse=True)], problem


def details(workdir: Workdir, run: Run) -> Details:
    """All about one of the runs."""
    origin = provenance.read(workdir.runs / run.id)
    executions: list[store.Execution] = []
    made: dict[int, str] = {}
    problem = ""
    try:
        with store.opened(workdir.metadata) as metadata:
            if metadata:
                executions = store.executions(metadata, run.pipeline, run.id)
                outputs = {a.id for each in executions if each.state == "cached" for a in each.outputs}
                makers = store.makers(metadata, outputs)
                made = {artifact: by.run for artifact, by in makers.items() if by.run != run.id}
    except store.BusyError as error:
        problem = str(error)
    dag = origin.dag if origin else _dag_of(executions, run.summary)
    return Details(run, origin, _nodes(run.summary, dag, executions, made), dag, problem)


def _dag_of(executions: list[store.Execution], read: Summary | None) -> dict[str, list[str]]:
    """The DAG of a run that left no ``run.json``: who took what whom has made."""
    maker = {artifact.id: each.node for each in executions for artifact in each.outputs}
    dag = {each.node: sorted({maker[a.id] for a in each.inputs if a.id in maker} - {each.node}) for each in executions}
    return dag or {node.id: [] for node in (read.nodes if read else [])}


def _nodes(
    read: Summary | None, dag: dict[str, list[str]], executions: list[store.Execution], made: dict[int, str]
) -> list[Node]:
    ended = {node.id: node for node in (read.nodes if read else [])}
    recorded = {each.node: each for each in executions}
    running = read is not None and read.status == "running"
    nodes: list[Node] = []
    for name in dag:
        execution = recorded.get(name)
        if name in ended:
            state, seconds = "cached" if ended[name].cached else "done", ended[name].seconds
        elif execution and execution.state in ("done", "cached", "failed"):
            state, seconds = execution.state, execution.seconds
        elif running:
            before = all(each in ended for each in list(dag)[: list(dag).index(name)])
            state, seconds = ("running" if before else "waiting"), None
        else:
            # Killed while it ran, or it failed before it was in ML Metadata; those after it were not reached.
            stopped = any(node.state in ("failed", "not reached") for node in nodes)
            failed = read is not None and read.status == "failed" and not stopped
            state, seconds = ("failed" if failed else "not reached"), None
        nodes.append(Node(name, state, seconds, execution, made))
    return nodes


def log_of(file: Path, node: str) -> tuple[list[str], bool]:
    """The lines of a log that a node has written, and whether those before them were left out, being too many."""
    kept: deque[str] = deque(maxlen=_LOG_LINES)
    count, inside = 0, False
    with file.open(encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(_LOG_LINE):
            if line.startswith(logs.MARK):
                inside = line.removeprefix(logs.MARK).strip() == node
                if inside:
                    kept.clear()
                    count = 0
            elif inside:
                kept.append(line.rstrip("\n"))
                count += 1
    return list(kept), count > len(kept)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as one level: ``trainer.epochs`` and so on."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


@dataclass(frozen=True)
class Change:
    """What two runs have otherwise: a key, and the value in each; None where one has no such key."""

    key: str
    one: Any
    other: Any


def changes(one: dict[str, Any], other: dict[str, Any]) -> list[Change]:
    """The keys at which two levels of values differ."""
    keys = [*one, *(key for key in other if key not in one)]
    return [Change(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]
