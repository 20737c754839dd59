"""What came out of a run, for a program (``summary.json``) and for ``imagepipe runs``. Imports nothing heavy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from components.evaluator.evaluation import Outcome
from imagepipe.base.names import TaskName
from imagepipe.deploy.config import TargetName
from imagepipe.deploy.versions import list_version_folders
from imagepipe.serving.check_report import Report

FILENAME = "summary.json"

Metrics = dict[str, float | None]


class Node(BaseModel):
    """A node of the DAG in a run."""

    id: str
    seconds: float
    cached: bool


class Served(BaseModel):
    """What optimising a network for serving did.

    Attributes:
        precision: of the graph that serves.
        max_difference: of its outputs from the network's, on the eval split, in the unit of the configuration's key of
            that name; null where it is the network itself.
    """

    precision: str
    max_difference: float | None


class Summary(BaseModel):
    """A run.

    Attributes:
        run_id: its name: when it was started, UTC.
        name: the pipeline's.
        task: the pipeline's.
        status: ``done`` also if the model was not blessed.
        error: why it failed.
        data_dir: what DataCheck found; null if the run did not get that far.
        seconds: how long it took so far.
        nodes: those that finished.
        hyperparameters: the best that the Tuner found, by key of the section ``trainer``; empty without a Tuner.
        served: what optimising the network for serving did; null if it did not get that far.
        metrics: of the candidate on the eval split; null for what is not a number.
        intervals: the ends of the metrics' 95 % confidence intervals, of those that have one.
        champion_metrics: of the model that was live; null if none was.
        metrics_by_class: of the candidate, by class or label; empty for a regression.
        test_accuracy: of the pushed model on the test split, where it was asked (the demo does).
        blessed: null if the Evaluator did not get to say.
        rules: what became of each rule of the gate.
        not_blessed_because: the reasons in words, with figures.
        serving: what ServingCheck found; null if it did not get that far.
        pushed_version: null if not pushed.
        target: what serves it, see the configuration's ``deploy.target``.
        serving_dir: the folder of the version folders.
        model_dir: the candidate's SavedModel.
        log: the file with all that TFX and TensorFlow say.
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
    champion_metrics: Metrics | None = None
    metrics_by_class: dict[str, Metrics] = {}
    test_accuracy: float | None = None
    blessed: bool | None = None
    rules: list[Outcome] = []
    not_blessed_because: list[str] = []
    serving: Report | None = None
    pushed_version: str | None = None
    target: TargetName = "filesystem"
    serving_dir: str
    model_dir: str | None = None
    log: str


def write(summary: Summary, run_dir: Path) -> None:
    """Writes ``summary.json``, atomically: others read it while the run goes on."""
    partial = run_dir / f".{FILENAME}"
    partial.write_text(json.dumps(summary.model_dump(), indent=1, allow_nan=False) + "\n")
    partial.replace(run_dir / FILENAME)


def read_each(runs_dir: Path) -> Iterator[tuple[str, Summary | None]]:
    """The runs in a folder by id, newest first; None for one whose summary is damaged, or of another version."""
    for file in sorted(runs_dir.glob(f"*/{FILENAME}"), reverse=True):
        try:
            yield file.parent.name, Summary.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            yield file.parent.name, None


def is_live(summary: Summary) -> bool:
    """Whether a run's model is the newest in its folder; of a cluster or a cloud only `imagepipe status` can tell."""
    newest = list_version_folders(summary.serving_dir)[-1:] if summary.target == "filesystem" else []
    return bool(newest) and newest[0].name == summary.pushed_version


def read_all(runs_dir: Path) -> list[Summary]:
    """The runs in a folder, newest first; none if there is no such folder."""
    files = sorted(runs_dir.glob(f"*/{FILENAME}"), reverse=True)
    return [Summary.model_validate_json(file.read_text()) for file in files]
