"""Writes runs, and the versions that they pushed, to an MLflow server.

An experiment per pipeline, a run per run; a registered model of the pipeline's name, with a version for each that was
deployed and an alias for the one that is live. Each is found again by a tag, so that writing it twice changes nothing.
"""

import datetime
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

# MLflow would send statistics of its use to its makers; and its own patience with a server that is away is ten minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import RestException

from imagepipe.deploy import storage
from pipeline.runs.metadata_store import Execution
from pipeline.runs.provenance import Origin
from pipeline.runs.summary import Summary
from pipeline.runs.tracked_values import MODEL, RUN, VERSION, list_curves, list_metrics, list_params, list_tags

LIVE = "live"
"""Alias of the version that gets the most requests."""

_FOLDER = "model"  # of the SavedModel among a run's artifacts
_BATCH = 100

Item = TypeVar("Item")


def connect(address: str) -> MlflowClient:
    """Returns a client of the server at an address; nothing is sent yet."""
    return MlflowClient(tracking_uri=address, registry_uri=address)


def write_run(
    client: MlflowClient,
    summary: Summary,
    origin: Origin,
    executions: Sequence[Execution],
    run_dir: Path,
    history: Sequence[Mapping[str, Any]],
) -> Run:
    """Writes a run that has ended, unless the server has it.

    One that was written in part, because the server or this process went away, is completed. A model that several runs
    share, as they took it from the cache, is among the artifacts of one, which the others name in a tag.

    Args:
        client: of the server.
        summary: the run's summary.
        origin: what it was made from.
        executions: its executions in ML Metadata.
        run_dir: its folder, with pictures and the report page.
        history: a row per epoch of the training.

    Returns:
        MLflow's run.

    Raises:
        MlflowException: if the server can't be reached, or refuses.
    """
    experiment = _find_experiment(client, summary.name)
    start = int(datetime.datetime.fromisoformat(origin.started).timestamp() * 1000)
    run = _find_run(client, experiment, f"tags.`{RUN}` = '{summary.run_id}'")
    if run is None:
        run = client.create_run(experiment, start_time=start, run_name=summary.run_id, tags={RUN: summary.run_id})
    elif run.info.status != "RUNNING":
        return run
    key = run.info.run_id
    end = start + int(summary.seconds * 1000)
    for params in _split([Param(name, value) for name, value in list_params(origin.config).items()]):
        client.log_batch(key, params=params)
    metrics = [Metric(name, value, end, 0) for name, value in list_metrics(summary).items()]
    metrics += [Metric(name, value, end, epoch) for name, value, epoch in list_curves(history)]
    for part in _split(metrics):
        client.log_batch(key, metrics=part)
    for file in sorted(path for path in run_dir.iterdir() if path.suffix in (".png", ".html")):
        client.log_artifact(key, str(file))
    tags = list_tags(summary, origin, executions)
    if summary.model_dir and (model := hash_model(summary.model_dir)):
        if holder := _find_run(client, experiment, f"tags.`{MODEL}` = '{model}'"):
            tags["imagepipe.model_in_run"] = holder.info.run_id
        else:
            client.log_artifacts(key, summary.model_dir, _FOLDER)
            tags[MODEL] = model  # only now: the model is there, and whole
    for part in _split([RunTag(name, value) for name, value in tags.items()]):
        client.log_batch(key, tags=part)
    client.set_terminated(key, "FINISHED" if summary.status == "done" else "FAILED", end)
    return run


def register_version(client: MlflowClient, name: str, version: str, model: str) -> ModelVersion | None:
    """Returns a pipeline's version in the model registry; one that is missing is made of the run that holds the model.

    Args:
        client: of the server.
        name: the pipeline's name.
        version: the version at the deploy target.
        model: what ``hash_model`` returns of it.

    Returns:
        The registry's version; None if no run there holds the model.
    """
    for registered in client.search_model_versions(f"name = '{name}' and tag.`{VERSION}` = '{version}'"):
        return registered
    run = _find_run(client, _find_experiment(client, name), f"tags.`{MODEL}` = '{model}'") if model else None
    if run is None:
        return None
    try:
        client.create_registered_model(name)
    except RestException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{run.info.artifact_uri}/{_FOLDER}"
    return client.create_model_version(
        name, source, run.info.run_id, tags={VERSION: version}, description=f"deployed as version {version}"
    )


def set_live(client: MlflowClient, name: str, registered: ModelVersion | None) -> None:
    """Moves the alias ``live`` of a pipeline's registered model to a version; None takes it away."""
    if registered is not None:
        client.set_registered_model_alias(name, LIVE, registered.version)
        return
    try:
        client.delete_registered_model_alias(name, LIVE)
    except RestException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the model, or the alias
            raise


def hash_model(folder: str) -> str:
    """Returns the hash of a SavedModel's fingerprint, the same for all copies of it; '' if it has none or is gone."""
    fingerprint = storage.read_fingerprint(folder)
    return hashlib.sha256(fingerprint).hexdigest() if fingerprint else ""


def _find_experiment(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    return str(experiment.experiment_id if experiment else client.create_experiment(name))


def _find_run(client: MlflowClient, experiment: str, condition: str) -> Run | None:
    return next(iter(client.search_runs([experiment], condition, max_results=1)), None)


def _split(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yields the items in parts, each as many as MLflow takes at once."""
    for first in range(0, len(items), _BATCH):
        yield list(items[first : first + _BATCH])
