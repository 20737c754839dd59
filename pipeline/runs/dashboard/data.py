"""Content of the pages, read from a workdir each time: summaries, ``run.json``, ML Metadata, logs."""

import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import logs
from pipeline.runs import metadata_store, provenance, summary
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
        id: the run's id.
        pipeline: name of its pipeline; empty if the summary is damaged.
        summary: None if it is damaged, or only ML Metadata has the run.
        problem: why there is no summary, as text.
        live: whether its model is the newest in its folder.
        report: whether it left a report.
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
        name: its name in the DAG.
        state: ``done``, ``cached``, ``running``, ``failed``, ``waiting``, or ``not reached`` in a run that has ended.
        seconds: None if it has not ended.
        execution: its execution in ML Metadata.
        produced_by: the run that wrote an artifact, by artifact id, if that was another run.
    """

    name: str
    state: str
    seconds: float | None
    execution: metadata_store.Execution | None
    produced_by: dict[int, str]


@dataclass(frozen=True)
class Details:
    """Everything about a run.

    Attributes:
        run: the run as in the list.
        origin: what it was made from.
        nodes: the nodes of its DAG, in order.
        dag: each node with the nodes that it waits for.
        metadata_problem: why ML Metadata can't be read now; '' if it can.
    """

    run: Run
    origin: Origin | None
    nodes: list[Node]
    dag: dict[str, list[str]]
    metadata_problem: str


def read_runs(workdir: Workdir) -> tuple[list[Run], str]:
    """Returns all runs, newest first, and why ML Metadata can't be read now, '' if it can.

    A run whose folder was removed is still in ML Metadata.
    """
    runs: dict[str, Run] = {}
    newest: dict[str, str | None] = {}
    for run_id, run_summary in summary.read_summaries(workdir.runs):
        if not _RUN_ID.fullmatch(run_id):
            continue
        if run_summary is None:
            runs[run_id] = Run(run_id, "", None, summary.UNREADABLE)
            continue
        serving_dir = run_summary.serving_dir
        if run_summary.target == "filesystem" and serving_dir not in newest:
            newest[serving_dir] = summary.find_newest_version(serving_dir)
        live = run_summary.pushed_version is not None and newest.get(serving_dir) == run_summary.pushed_version
        report = (workdir.runs / run_id / "report.html").is_file()
        runs[run_id] = Run(run_id, run_summary.name, run_summary, live=live, report=report)
    problem = ""
    try:
        with metadata_store.open_store(workdir.metadata) as metadata:
            recorded = metadata_store.read_run_ids(metadata) if metadata else {}
        for run_id, pipeline in recorded.items():
            if run_id not in runs and _RUN_ID.fullmatch(run_id):
                runs[run_id] = Run(run_id, pipeline, None, "only ML Metadata knows it: its folder was removed")
    except metadata_store.BusyError as error:
        problem = str(error)
    return [runs[run_id] for run_id in sorted(runs, reverse=True)], problem


def read_details(workdir: Workdir, run: Run) -> Details:
    """Reads everything about one of the runs."""
    origin = provenance.read_origin(workdir.runs / run.id)
    executions: list[metadata_store.Execution] = []
    produced_by: dict[int, str] = {}
    problem = ""
    try:
        with metadata_store.open_store(workdir.metadata) as metadata:
            if metadata:
                executions = metadata_store.read_executions(metadata, run.pipeline, run.id)
                cached = [execution for execution in executions if execution.state == "cached"]
                outputs = {artifact.id for execution in cached for artifact in execution.outputs}
                producers = metadata_store.read_producers(metadata, outputs)
                produced_by = {id_: producer.run for id_, producer in producers.items() if producer.run != run.id}
    except metadata_store.BusyError as error:
        problem = str(error)
    dag = origin.dag if origin else _derive_dag(executions, run.summary)
    return Details(run, origin, _list_nodes(run.summary, dag, executions, produced_by), dag, problem)


def _derive_dag(executions: list[metadata_store.Execution], summary: Summary | None) -> dict[str, list[str]]:
    """Returns the DAG of a run that left no ``run.json``: edges from each artifact's producer to its consumers."""
    producer = {artifact.id: execution.node for execution in executions for artifact in execution.outputs}
    dag = {
        execution.node: sorted({producer[a.id] for a in execution.inputs if a.id in producer} - {execution.node})
        for execution in executions
    }
    return dag or {node.id: [] for node in (summary.nodes if summary else [])}


def _list_nodes(
    summary: Summary | None,
    dag: dict[str, list[str]],
    executions: list[metadata_store.Execution],
    produced_by: dict[int, str],
) -> list[Node]:
    ended = {node.id: node for node in (summary.nodes if summary else [])}
    recorded = {execution.node: execution for execution in executions}
    running = summary is not None and summary.status == "running"
    nodes: list[Node] = []
    for name in dag:
        execution = recorded.get(name)
        if name in ended:
            state, seconds = "cached" if ended[name].cached else "done", ended[name].seconds
        elif execution and execution.state in ("done", "cached", "failed"):
            state, seconds = execution.state, execution.seconds
        elif running:
            is_next = all(earlier in ended for earlier in list(dag)[: list(dag).index(name)])
            state, seconds = ("running" if is_next else "waiting"), None
        else:
            # Killed while it ran, or failed before ML Metadata had it; later nodes were not reached.
            stopped = any(node.state in ("failed", "not reached") for node in nodes)
            failed = summary is not None and summary.status == "failed" and not stopped
            state, seconds = ("failed" if failed else "not reached"), None
        nodes.append(Node(name, state, seconds, execution, produced_by))
    return nodes


def read_node_log(file: Path, node: str) -> tuple[list[str], bool]:
    """Returns the last lines that a node wrote into a log, and whether earlier ones were left out."""
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


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested values as one level, with keys such as ``trainer.epochs``."""
    if not isinstance(values, dict) or not values:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


@dataclass(frozen=True)
class Change:
    """A difference between two runs: a key, and its value in each; None if one of them lacks the key."""

    key: str
    one: Any
    other: Any


def list_changes(one: dict[str, Any], other: dict[str, Any]) -> list[Change]:
    """Returns the keys whose values differ between two runs."""
    keys = [*one, *(key for key in other if key not in one)]
    return [Change(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]
