"""Records runs in MLflow (``tracking.mlflow``): each after its end, and again by `imagepipe track`.

A server that is away loses nothing: a run that ended is not failed by it, and the next run writes what is missing.
"""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from imagepipe.base import filesystem
from imagepipe.base.console import quote
from imagepipe.base.errors import ConfigError, ModelError, UnavailableError, describe_error
from imagepipe.base.names import TRAINING_FOLDER
from imagepipe.deploy import targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import sort_by_traffic
from pipeline.logs import hide_output
from pipeline.runs import metadata_store, provenance
from pipeline.runs.summary import UNREADABLE, Summary, read_summaries, read_summary
from pipeline.tracking_config import TrackingConfig
from pipeline.workdir import Workdir

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD = "mlflow.json"
"""File of a run's folder: where the run is in MLflow. A run that lacks it is written by the next one."""

_MAX_REASON = 300  # characters; MLflow's messages hold a client's whole history


def check_tracking(settings: TrackingConfig) -> None:
    """Checks that runs can be recorded as configured, as far as that can be told without asking the server.

    Raises:
        ConfigError: if MLflow is not installed.
    """
    if settings.mlflow and importlib.util.find_spec("mlflow") is None:
        raise ConfigError("tracking.mlflow needs a package that is not installed: pip install 'imagepipe-tfx[mlflow]'")


def track_after_run(
    settings: TrackingConfig, deploy: DeployConfig, workdir: Workdir, run_id: str, shown: Console
) -> None:
    """Records the run that ended and those that a server was away for, and what is live; an error is shown.

    Args:
        settings: the section ``tracking``; without a server nothing is done.
        deploy: the section ``deploy``, with name and path.
        workdir: the pipeline's folders.
        run_id: the run that ended.
        shown: where it is said.
    """
    if not settings.mlflow:
        return
    written: dict[str, str] = {}
    try:
        for summary in _list_missing(workdir, run_id):
            written[summary.run_id] = record_run(settings, workdir, summary)
        follow_live(settings, deploy, summary.name)
    except Exception as error:  # the run is done, whatever happens here
        missing = f"the run {run_id} is not recorded" if run_id not in written else "not all is recorded"
        shown.print(
            f"[yellow]MLflow:[/] {missing}: {quote(describe_error(error))}. The next run does it, or imagepipe track"
        )
    for run, address in written.items():
        shown.print(f"MLflow: {quote(address if run == run_id else f'{address}, the earlier run {run}')}")


def _list_missing(workdir: Workdir, run_id: str) -> Iterator[Summary]:
    """Yields the run that ended, then earlier ones that were to be recorded and are not, newest first."""
    summaries = {run: summary for run, summary in read_summaries(workdir.runs) if summary}
    yield summaries.pop(run_id)
    for run, summary in summaries.items():
        folder = workdir.runs / run
        if summary.status != "running" and not (folder / RECORD).exists():
            origin = provenance.read_origin(folder)
            if origin and (origin.config.get("tracking") or {}).get("mlflow"):
                yield summary


def track_runs(settings: TrackingConfig, deploy: DeployConfig, runs: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Records runs, and what is live; yields each run's folder and its address in MLflow.

    Raises:
        ConfigError: if one of them can't be recorded.
        UnavailableError: if MLflow or the deploy target can't be asked.
    """
    check_tracking(settings)
    if not settings.mlflow:
        raise ConfigError("tracking.mlflow: has to be given, the address of an MLflow server")
    name = ""
    for run in runs:
        workdir = Workdir(run.resolve().parent.parent)
        summary = read_summary(run.resolve())
        if summary is None:
            raise ConfigError(f"{run} is no run (runs/RUN), or {UNREADABLE}; `imagepipe runs` lists them")
        if summary.status == "running":
            raise ConfigError(f"{run} has not ended yet; it is recorded when it does")
        yield run, record_run(settings, workdir, summary)
        name = summary.name
    if name:
        follow_live(settings, deploy, name)


def record_run(settings: TrackingConfig, workdir: Workdir, summary: Summary) -> str:
    """Writes a run to MLflow, unless it is there; returns its address in MLflow's pages.

    Raises:
        ConfigError: if the run has not left what it takes.
        UnavailableError: if the server can't be reached, or refuses.
    """
    folder = workdir.runs / summary.run_id
    origin = provenance.read_origin(folder)
    if origin is None:
        raise ConfigError(f"{folder} has no {provenance.FILENAME}, or a damaged one, and so can't be recorded")
    try:
        with metadata_store.open_store(workdir.metadata) as opened:
            executions = metadata_store.read_executions(opened, summary.name, summary.run_id) if opened else []
    except metadata_store.BusyError as error:
        raise UnavailableError(str(error)) from error
    history = Path(summary.model_dir or "").parent / TRAINING_FOLDER / "history.json"
    rows = json.loads(history.read_text(encoding="utf-8")) if summary.model_dir and history.is_file() else []
    with _open_server(settings) as client:
        from pipeline.runs import mlflow_server

        run = mlflow_server.write_run(client, summary, origin, executions, folder, rows).info
        if summary.pushed_version:
            model = mlflow_server.hash_model(summary.model_dir or "")
            mlflow_server.register_version(client, summary.name, summary.pushed_version, model)
    page = f"{settings.mlflow}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    filesystem.write_whole(str(folder / RECORD), f"{json.dumps({'run': run.run_id, 'page': page})}\n".encode())
    return page


def follow_live(settings: TrackingConfig, deploy: DeployConfig, name: str) -> str:
    """Moves the alias of a pipeline's registered model to the version that gets the most requests.

    Args:
        settings: the section ``tracking``.
        deploy: the section ``deploy``, with name and path.
        name: the pipeline's name.

    Returns:
        What was done, as text; '' without a server.

    Raises:
        ModelError: if the target can't be asked.
        UnavailableError: if MLflow can't be reached, or refuses.
    """
    if not settings.mlflow:
        return ""
    check_tracking(settings)
    live = next(
        (version for version in sort_by_traffic(targets.load_target(deploy).status(deploy)) if version.traffic), None
    )
    with _open_server(settings) as client:
        from pipeline.runs import mlflow_server

        model = mlflow_server.hash_model(live.uri) if live else ""
        registered = mlflow_server.register_version(client, name, live.version, model) if live else None
        mlflow_server.set_live(client, name, registered)
    if registered:
        return f"MLflow: {name}@live is version {registered.version} there"
    what = f"version {live.version} is of no run there" if live else "nothing is live"
    return f"MLflow: {name} has no alias live now, as {what}"


def report_live(settings: TrackingConfig, deploy: DeployConfig, name: str) -> str:
    """Does the same after a deployment, which stays done if this fails; returns what was done, or why not."""
    try:
        return follow_live(settings, deploy, name)
    except (ModelError, ConfigError, OSError) as error:
        return f"MLflow: the alias live was not moved: {describe_error(error)}. The next run does it"


@contextmanager
def _open_server(settings: TrackingConfig) -> "Iterator[MlflowClient]":
    """Yields a client of the server, and names the server in what goes wrong with it."""
    with hide_output():
        from mlflow.exceptions import MlflowException

        from pipeline.runs import mlflow_server

        try:
            yield mlflow_server.connect(str(settings.mlflow))
        except MlflowException as error:
            reason = " ".join(str(error).split())[:_MAX_REASON]
            raise UnavailableError(f"the server at {settings.mlflow} can't be reached, or refuses: {reason}") from error
