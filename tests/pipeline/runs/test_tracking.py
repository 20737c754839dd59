"""The records of runs in MLflow, without a server."""

import importlib.util
import io
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from imagepipe.deploy.config import DeployConfig
from pipeline.cli import app
from pipeline.runs.provenance import Commit, DatasetOrigin, Origin
from pipeline.runs.summary import Summary, write_summary
from pipeline.runs.tracked_values import list_metrics, list_params, list_tags
from pipeline.runs.tracking import track_after_run
from pipeline.tracking_config import TrackingConfig
from pipeline.workdir import Workdir


def make_summary(**values):
    return Summary(
        **{"run_id": "20260101-020000-000", "name": "x", "status": "done", "serving_dir": "", "log": ""} | values
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://me:secret@mlflow.example.com", "Credentials go into the environment"),
        ("https://mlflow.example.com/?token=secret", "Credentials go into the environment"),
        ("postgresql://me:secret@db/mlflow", "Credentials go into the environment"),
        ("mlruns", "expected the address of an MLflow server"),
    ],
)
def test_an_address_with_credentials_or_of_no_server_is_refused_without_repeating_it(tmp_path, address, message):
    (tmp_path / "pipeline.yaml").write_text(f"name: x\ndata: {{path: {tmp_path}}}\ntracking: {{mlflow: '{address}'}}\n")
    result = CliRunner().invoke(app, ["run", str(tmp_path / "pipeline.yaml")])
    assert result.exit_code == 2
    assert message in result.output
    assert "secret" not in result.output
    assert not (tmp_path / "runs").exists()


def test_without_the_extra_a_run_is_refused_with_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "pipeline.yaml").write_text("name: x\ndata: {path: data}\ntracking: {mlflow: 'http://mlflow'}\n")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as where there is no mlflow
    result = CliRunner().invoke(app, ["run", str(tmp_path / "pipeline.yaml")])
    assert result.exit_code == 2
    assert "tracking.mlflow needs a package that is not installed: pip install 'imagepipe-tfx[mlflow]'" in result.output
    assert not (tmp_path / "runs").exists()


def test_parameters_are_the_configuration_without_machines_and_credentials():
    config = {
        "name": "flowers",
        "data": {"path": "https://me:secret@host/data", "curated_schema": None},
        "trainer": {"epochs": 3, "class_weights": {"Gänseblümchen": 2.0, "a b": 1.0}, "augmentation": {"flip": True}},
        "beam": {"options": {"password": "secret"}},
        "kubeflow": {"host": "https://kubeflow"},
        "run": {"keep": 3},
        "tracking": {"mlflow": "http://mlflow"},
    }
    assert list_params(config) == {
        "name": "flowers",
        "data.path": "https://host/data",
        "trainer.epochs": "3",
        "trainer.class_weights": '{"Gänseblümchen": 2.0, "a b": 1.0}',
        "trainer.augmentation.flip": "true",
    }


def test_metrics_have_their_intervals_and_the_champions_beside_them():
    summary = make_summary(
        seconds=120.5,
        metrics={"accuracy": 0.9, "log_loss": None, "example_count": 10.0},
        intervals={"accuracy": (0.8, 0.95)},
        champion_metrics={"accuracy": 0.7},
    )
    assert list_metrics(summary) == {
        "accuracy": 0.9,
        "accuracy_low": 0.8,
        "accuracy_high": 0.95,
        "example_count": 10.0,
        "champion/accuracy": 0.7,
        "seconds": 120.5,
    }


def test_tags_say_the_verdict_with_its_reasons_and_what_it_was_made_from():
    refused = make_summary(metrics={"accuracy": 0.5}, not_blessed_because=["accuracy is 0.5, below 0.8"])
    origin = Origin(
        run_id=refused.run_id,
        started="2026-01-01T02:00:00+00:00",
        config={},
        commit=Commit(id="c0ffee", changed=True),
        packages={},
        dataset=DatasetOrigin(path="/data", fingerprint="f" * 64, of="content"),
        dag={},
    )
    tags = list_tags(refused, origin, [])
    assert tags["mlflow.note.content"] == "not blessed: accuracy is 0.5, below 0.8"
    assert tags["imagepipe.blessed"] == "false"
    assert tags["imagepipe.dataset"] == "f" * 64
    assert (tags["mlflow.source.git.commit"], tags["imagepipe.commit_changed"]) == ("c0ffee", "true")
    failed = list_tags(make_summary(status="failed", error="Trainer: no"), origin, [])
    assert failed["mlflow.note.content"] == "failed: Trainer: no"


def test_a_failure_to_record_is_shown_and_fails_nothing(tmp_path):
    """Here for want of run.json; the server is asked only after it."""
    summary, shown = make_summary(), io.StringIO()
    (tmp_path / "runs" / summary.run_id).mkdir(parents=True)
    write_summary(summary, tmp_path / "runs" / summary.run_id)
    settings, deploy = (
        TrackingConfig(mlflow="http://127.0.0.1:9"),
        DeployConfig(name="x", path=str(tmp_path / "serving")),
    )
    track_after_run(settings, deploy, Workdir(tmp_path), summary.run_id, Console(file=shown, width=500))
    assert re.fullmatch(r"MLflow: the run \S+ is not recorded: \S+ has no run\.json, .*\n", shown.getvalue())
    track_after_run(TrackingConfig(), deploy, Workdir(tmp_path), summary.run_id, Console(file=shown, width=500))
    assert len(shown.getvalue().splitlines()) == 1  # without a server nothing is done
