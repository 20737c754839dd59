"""The parameters, metrics and tags of a run in MLflow, as plain values."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config import MACHINE_SECTIONS
from pipeline.runs.metadata_store import Execution
from pipeline.runs.provenance import Origin
from pipeline.runs.push_outcome import describe_push
from pipeline.runs.summary import Summary

RUN, MODEL, VERSION = "imagepipe.run_id", "imagepipe.model", "imagepipe.version"
"""Tags by which a run, the run that holds a model, and a registered version are found again."""

_LONGEST_VALUE = 6000  # characters of a parameter that an MLflow server takes


def list_params(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns a configuration as parameters: values by dotted key, without credentials.

    The sections about machines and services are left out, and so are the name and password of a URI. A dictionary whose
    keys MLflow does not take as names, such as classes, is one value in JSON.
    """
    settings = {key: value for key, value in config.items() if key not in MACHINE_SECTIONS}
    params = {}
    for name, value in _flatten(settings, ""):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        params[name] = re.sub(r"://[^/@\s]*@", "://", text)[:_LONGEST_VALUE]
    return params


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value and all(re.fullmatch(r"[A-Za-z0-9_-]+", inner) for inner in value):
            yield from _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def list_metrics(summary: Summary) -> dict[str, float]:
    """Returns the candidate's metrics, the ends of their 95% intervals, and the champion's; those that are numbers."""
    metrics = dict(summary.metrics)
    for name, (low, high) in summary.intervals.items():
        metrics |= {f"{name}_low": low, f"{name}_high": high}
    metrics |= {f"champion/{name}": value for name, value in (summary.champion_metrics or {}).items()}
    metrics["seconds"] = summary.seconds
    if summary.serving:
        metrics |= {"latency_median_ms": summary.serving.median_ms, "latency_p95_ms": summary.serving.p95_ms}
    return {name: value for name, value in metrics.items() if value is not None}


def list_tags(summary: Summary, origin: Origin, executions: Sequence[Execution]) -> dict[str, str]:
    """Returns the verdict and the lineage: dataset, commit, and ids in ML Metadata."""
    tags = {
        "mlflow.source.type": "JOB",
        "mlflow.source.name": "imagepipe run",
        "mlflow.note.content": _describe_outcome(summary),
        "imagepipe.task": summary.task,
        "imagepipe.target": summary.target,
        "imagepipe.dataset": origin.dataset.fingerprint,
    }
    if origin.commit:
        changed = {"imagepipe.commit_changed": "true"} if origin.commit.changed else {}
        tags |= {"mlflow.source.git.commit": origin.commit.id} | changed
    if summary.blessed is not None:
        tags["imagepipe.blessed"] = str(summary.blessed).lower()
    if summary.pushed_version:
        tags[VERSION] = summary.pushed_version
    for execution in executions:
        tags[f"mlmd.execution.{execution.node}"] = str(execution.id)
        tags |= {f"mlmd.artifact.{execution.node}.{output.key}": str(output.id) for output in execution.outputs}
    return tags


def _describe_outcome(summary: Summary) -> str:
    if summary.status == "failed":
        return f"failed: {summary.error}"
    problems = summary.serving.problems if summary.serving else ()
    if reasons := [*summary.not_blessed_because, *problems]:
        return f"not blessed: {'; '.join(reasons)}"
    return describe_push(summary) or "not pushed"


def list_curves(history: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """Yields metrics of the training by name, with their values and epochs."""
    for row in history:
        for name, value in row.items():
            if isinstance(value, float):
                split, metric = ("validation", name[4:]) if name.startswith("val_") else ("train", name)
                yield f"{split}/{metric}", value, row["epoch"]
