"""Runs in a real MLflow server on loopback: its database, artifacts and model registry, through its own client."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import uuid

import httpx
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from imagepipe.deploy import folder
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.saved_model import FINGERPRINT
from pipeline.cli import app
from pipeline.runs import tracking
from pipeline.runs.summary import write_summary
from pipeline.tracking_config import TrackingConfig
from tests.pipeline.runs.workdirs import Recorder, run_id

pytestmark = pytest.mark.slow  # the server takes some 20 s to start


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an MLflow server that keeps everything in a folder."""
    root = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", f"{root}/artifacts"]
    # Its eight processes for jobs of its own, such as evaluations of language models, are not needed here.
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (root / "log.txt").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 (arguments of our own)
            [sys.executable, "-m", "mlflow", *command],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=root,
            start_new_session=True,  # its workers end with it
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (root / "log.txt").read_text()
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def client(server):
    from pipeline.runs import mlflow_server

    return mlflow_server.connect(server)


class Pipeline:
    """A pipeline whose runs never ran, with real versions in a real folder."""

    def __init__(self, root, server):
        self.name, self.root = f"digits-{uuid.uuid4().hex[:8]}", root
        self.recorder = Recorder(root, self.name)
        self.settings = TrackingConfig(mlflow=server)
        self.deploy = DeployConfig(name=self.name, path=str(root / "serving" / self.name))
        self.config = {"name": self.name, "data": {"path": "/data"}, "tracking": {"mlflow": server}}
        (root / "pipeline.yaml").write_text(yaml.safe_dump(self.config))

    def run(self, number, model, push=True, **values):
        """A run with a model, which is pushed; returns the version."""
        inner = self.root / "artifacts" / "Trainer" / "model" / model / "Format-Serving"
        if not inner.exists():
            inner.mkdir(parents=True)
            (inner / "saved_model.pb").write_bytes(b"graph")
            (inner / FINGERPRINT).write_bytes(model.encode())
            (inner.parent / "training").mkdir()
            (inner.parent / "training" / "history.json").write_text(
                '[{"epoch": 1, "phase": "head", "loss": 0.9, "val_loss": 1.0},'
                ' {"epoch": 2, "phase": "head", "loss": 0.5, "val_loss": 0.7}]'
            )
        version = folder.deploy(str(inner), self.deploy, 100).version if push else None
        self.recorder.record(number)
        summary = self.recorder.summarize(
            number, model_dir=str(inner), pushed_version=version, intervals={"accuracy": (0.8, 0.99)}, **values
        )
        self.recorder.originate(number, config=self.config)
        run_dir = self.root / "runs" / run_id(number)
        (run_dir / "curves.png").write_bytes(b"PNG")
        (run_dir / "report.html").write_text("<h1>Report</h1>")
        write_summary(summary, run_dir)
        return version

    def track(self, number):
        """Does what a run does at its end, and returns what that shows."""
        shown = io.StringIO()
        console = Console(file=shown, width=500)
        tracking.track_after_run(self.settings, self.deploy, self.recorder.workdir, run_id(number), console)
        return shown.getvalue()


@pytest.fixture
def pipeline(tmp_path, server):
    return Pipeline(tmp_path, server)


def read_runs(client, name):
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])} if experiment else {}


def read_live(client, name):
    return client.get_model_version_by_alias(name, "live").tags["imagepipe.version"]


def test_a_run_is_there_with_all_it_left_and_once(pipeline, client, tmp_path):
    version = pipeline.run(0, "one")
    shown = pipeline.track(0)
    (run,) = read_runs(client, pipeline.name).values()
    assert (
        shown == f"MLflow: {pipeline.settings.mlflow}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}\n"
    )
    assert run.info.run_name == run.data.tags["imagepipe.run_id"] == run_id(0)
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 120_500
    assert run.data.params == {"name": pipeline.name, "data.path": "/data"}
    assert (run.data.metrics["accuracy"], run.data.metrics["accuracy_low"]) == (0.9, 0.8)
    history = client.get_metric_history(run.info.run_id, "validation/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.7)]
    assert run.data.tags["imagepipe.version"] == version
    assert run.data.tags["mlmd.artifact.Trainer.model"].isdigit()
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"curves.png", "report.html", "model"}
    copy = client.download_artifacts(run.info.run_id, "model", str(tmp_path))
    assert (tmp_path / "model" / FINGERPRINT).read_bytes() == b"one", copy
    assert read_live(client, pipeline.name) == version

    (pipeline.root / "runs" / run_id(0) / tracking.RECORD).unlink()
    assert pipeline.track(0) == shown
    assert len(read_runs(client, pipeline.name)) == 1
    assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1
    assert len(client.search_model_versions(f"name = '{pipeline.name}'")) == 1


def test_a_model_from_the_cache_is_uploaded_once_and_stays_the_version_that_it_is(pipeline, client):
    version = pipeline.run(0, "one")
    pipeline.track(0)
    assert pipeline.run(1, "one") == version
    pipeline.track(1)
    first, second = (read_runs(client, pipeline.name)[run_id(number)] for number in (0, 1))
    assert second.data.tags["imagepipe.model_in_run"] == first.info.run_id
    assert "model" not in {file.path for file in client.list_artifacts(second.info.run_id)}
    (registered,) = client.search_model_versions(f"name = '{pipeline.name}'")
    assert registered.run_id == first.info.run_id


def test_the_alias_follows_pushes_deployments_and_rollbacks(pipeline, client):
    def call(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--config", str(pipeline.root / "pipeline.yaml")])
        assert result.exit_code == 0, result.output
        return result.stdout, result.stderr

    first = pipeline.run(0, "one")
    pipeline.track(0)
    second = pipeline.run(1, "two")
    pipeline.track(1)
    assert read_live(client, pipeline.name) == second
    assert call("rollback")[1] == f"MLflow: {pipeline.name}@live is version 1 there\n"
    assert read_live(client, pipeline.name) == first
    pipeline.run(2, "refused", push=False, not_blessed_because=["accuracy is 0.5"])
    pipeline.track(2)
    assert read_live(client, pipeline.name) == first
    call("deploy", str(pipeline.root / "runs" / run_id(2)))  # by hand: it becomes a version of the registry now
    registered = client.get_model_version_by_alias(pipeline.name, "live")
    assert registered.run_id == read_runs(client, pipeline.name)[run_id(2)].info.run_id
    foreign = pipeline.root / "foreign"
    foreign.mkdir()
    (foreign / "saved_model.pb").write_bytes(b"graph")
    note = call("deploy", str(foreign))[1]
    assert "has no alias live now" in note
    assert not client.get_registered_model(pipeline.name).aliases


def test_what_a_server_that_was_away_has_missed_is_recorded_by_the_next_run(pipeline, client):
    there, pipeline.settings = pipeline.settings, TrackingConfig(mlflow="http://127.0.0.1:9")
    pipeline.run(0, "one", status="failed", error="Evaluator: no")
    shown = pipeline.track(0)
    assert f"MLflow: the run {run_id(0)} is not recorded: the server at http://127.0.0.1:9 can't be reached" in shown
    pipeline.settings = there
    pipeline.run(1, "two")
    lines = pipeline.track(1).splitlines()
    assert len(lines) == 2
    assert lines[1].endswith(f", the earlier run {run_id(0)}")
    runs = read_runs(client, pipeline.name)
    assert {name: run.info.status for name, run in runs.items()} == {run_id(0): "FAILED", run_id(1): "FINISHED"}
    pipeline.run(2, "two")
    assert len(pipeline.track(2).splitlines()) == 1  # nothing is missing any more


def test_a_run_that_was_written_in_part_is_completed(pipeline, client, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    pipeline.run(0, "one")
    with monkeypatch.context() as patched:

        def go_away(*_):
            raise MlflowException("gone")

        patched.setattr(MlflowClient, "log_artifacts", go_away)
        assert "is not recorded" in pipeline.track(0)
    (half,) = read_runs(client, pipeline.name).values()
    assert half.info.status == "RUNNING"
    pipeline.track(0)
    (whole,) = read_runs(client, pipeline.name).values()
    assert (whole.info.run_id, whole.info.status) == (half.info.run_id, "FINISHED")
    assert "model" in {file.path for file in client.list_artifacts(whole.info.run_id)}
    assert len(client.get_metric_history(whole.info.run_id, "accuracy")) == 1


def test_the_command_records_runs_from_before_there_was_a_server(pipeline, client):
    pipeline.config.pop("tracking")
    version = pipeline.run(0, "one")
    config, run = str(pipeline.root / "pipeline.yaml"), str(pipeline.root / "runs" / run_id(0))
    result = CliRunner().invoke(app, ["track", run, "--config", config])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{run}: {pipeline.settings.mlflow}/#/experiments/")
    assert read_live(client, pipeline.name) == version
    away = ["--set", "tracking.mlflow=http://127.0.0.1:9"]
    result = CliRunner().invoke(app, ["track", run, "--config", config, *away])
    assert result.exit_code == 1
    assert "http://127.0.0.1:9 can't be reached" in result.stderr
