"""The summary of a run: ``summary.json``, for programs and for ``imagepipe runs``."""

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, computed_field, model_validator

from components.evaluator.evaluation import RuleOutcome
from imagepipe.base import filesystem
from imagepipe.base.in_use import has_writer
from imagepipe.base.names import SUMMARY, TaskName
from imagepipe.deploy import storage
from imagepipe.deploy.config import TargetName
from imagepipe.deploy.pushing import Outcome
from imagepipe.serving.types import CheckReport

Metrics = dict[str, float | None]

UNREADABLE = f"its {SUMMARY} is missing, damaged or of another version"
"""Why a run has no summary."""

_NO_REASON = "no reason was recorded"


class Node(BaseModel):
    """A node of the DAG in a run."""

    id: str
    seconds: float
    cached: bool


class Served(BaseModel):
    """How the network was optimized for serving.

    Attributes:
        engine: what computes it behind a server of ours, ``tensorflow`` or ``openvino``.
        precision: the precision of what serves.
        max_difference: largest difference of its outputs from the network's, in the unit of the configuration key of
            that name; null if the network itself serves.
        tried: a line for each form that was tried, and why it was refused.
    """

    engine: str = "tensorflow"
    precision: str
    max_difference: float | None
    tried: list[str] = []


class Push(BaseModel):
    """The result of a blessed model's push.

    Attributes:
        outcome: ``pushed``; or, as the target had the model already: ``already_deployed`` if it gets requests,
            ``rolled_back`` or ``replaced`` if somebody took it out of service, which a run does not undo.
        version: the version at the target that is this model.
    """

    outcome: Outcome
    version: str


class Summary(BaseModel):
    """A run.

    Attributes:
        run_id: its name: the time at which it started, UTC.
        name: the pipeline's name.
        task: the pipeline's task.
        status: ``done`` also if the model was not blessed.
        error: why it failed.
        data_dir: folder of the findings of DataCheck or, after it, FeatureCheck; null if the run did not get that far.
        seconds: duration so far.
        nodes: the nodes that have finished.
        hyperparameters: the Tuner's best values, by key of the section ``trainer``; empty without a Tuner.
        served: how the network was optimized for serving; null if the run did not get that far.
        metrics: the candidate's metrics on the eval split; null for a value that is not a number.
        intervals: 95% confidence intervals of the metrics that have one.
        groups: the groups of images that intervals and paired tests count, as text; empty if they count images.
        champion_metrics: the live model's metrics; null if there was none.
        champion_note: why the live model was judged by its SavedModel, not by its form for OpenVINO; '' if it wasn't.
        metrics_by_class: the candidate's metrics by class or label; empty for a regression.
        test_accuracy: the pushed model's accuracy on the test split, if it was measured (the demo does).
        rules: the outcome of each rule of the gate.
        not_blessed_because: the reasons of the refused rules as text, with figures.
        unchecked: why the gate could check nothing; null if it checked something.
        serving: result of ServingCheck; null if the run did not get that far.
        push: the result of the push; null if the model was not blessed.
        pushed_version: the version at the target that is this model, pushed by this run or an earlier one; null if it
            is not in service.
        traffic: percent of the requests by version, of those that get any, and 0 of one in shadow, as the target said
            at the end of the run; null if it could not be asked, or the run failed before the push.
        target: the deploy target, see ``deploy.target`` in the configuration.
        serving_dir: the folder of the version folders.
        model_dir: the candidate's SavedModel.
        log: file with all output of TFX and TensorFlow.
        host: the machine that it ran on; '' in summaries of an earlier version.
    """

    run_id: str
    name: str
    task: TaskName = "classification"  # as it was before a run had a task
    status: Literal["running", "done", "failed"]
    error: str | None = None
    data_dir: str | None = None
    seconds: float = 0
    nodes: list[Node] = []
    hyperparameters: dict[str, bool | int | float | str] = {}
    served: Served | None = None
    metrics: Metrics = {}
    intervals: dict[str, tuple[float, float]] = {}
    groups: str = ""
    champion_metrics: Metrics | None = None
    champion_note: str = ""
    metrics_by_class: dict[str, Metrics] = {}
    test_accuracy: float | None = None
    rules: list[RuleOutcome] = []
    not_blessed_because: list[str] = []
    unchecked: str | None = None
    serving: CheckReport | None = None
    push: Push | None = None
    pushed_version: str | None = None
    traffic: dict[str, int] | None = None
    target: TargetName = "filesystem"
    serving_dir: str
    model_dir: str | None = None
    log: str
    host: str = ""

    @model_validator(mode="before")
    @classmethod
    def _keep_refusal(cls, values: Any) -> Any:
        """Keeps the verdict of summaries that an earlier version wrote, which could refuse a model without a reason."""
        if isinstance(values, dict) and values.get("blessed") is False and not values.get("not_blessed_because"):
            return values | {"not_blessed_because": [_NO_REASON]}
        return values

    @computed_field  # type: ignore[prop-decorator]
    @property
    def blessed(self) -> bool | None:
        """Whether the gate has no reason against the model; null if the run did not get as far as the Evaluator."""
        return not self.not_blessed_because if self.metrics else None


def write_summary(summary: Summary, run_dir: Path) -> None:
    """Writes ``summary.json``, whole and flushed to the disk: others read it during the run."""
    text = json.dumps(summary.model_dump(), indent=1, allow_nan=False) + "\n"
    filesystem.write_whole(str(run_dir / SUMMARY), text.encode())


def read_summaries(runs_dir: Path) -> Iterator[tuple[str, Summary | None]]:
    """Yields the runs in a folder by id, newest first; None for one that ``read_summary`` can't read."""
    folders = [folder for folder in runs_dir.glob("[!.]*") if folder.is_dir()]
    for folder in sorted(folders, reverse=True):
        yield folder.name, read_summary(folder)


def read_summary(folder: Path) -> Summary | None:
    """Returns the summary of the run in a folder (runs/RUN); None if it can't be read, see ``UNREADABLE``.

    One that was killed could not say so itself: where no process of its machine holds the workdir any more, it failed.
    """
    try:
        summary = Summary.model_validate_json((folder / SUMMARY).read_bytes())
    except (OSError, ValidationError):
        return None
    was_here = summary.status == "running" and summary.host == socket.gethostname()
    return mark_killed(summary) if was_here and not has_writer(folder.parent.parent) else summary


def mark_killed(summary: Summary) -> Summary:
    """Returns the summary of a run that never came to an end."""
    return summary.model_copy(update={"status": "failed", "error": "the run was killed"})


def is_live(summary: Summary) -> bool:
    """Returns whether a run's model is the newest in its folder; for clusters and clouds ask `imagepipe status`."""
    if summary.target != "filesystem" or summary.pushed_version is None:
        return False
    return find_newest_version(summary.serving_dir) == summary.pushed_version


def find_newest_version(folder: str) -> str | None:
    """Returns the newest complete version in a folder, by path or URI; None if it has none, or can't be read."""
    with contextlib.suppress(OSError):
        return storage.find_newest_version(folder)
    return None
