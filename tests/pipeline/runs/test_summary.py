"""Runs whose files are damaged stop no other, and a run that failed says why, wherever it failed."""

import errno
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.locks import lock_folder
from imagepipe.base.names import SUMMARY
from imagepipe.base.signals import Stopped, end_on_signals
from imagepipe.serving.access import EVERYBODY
from pipeline import run as run_module
from pipeline.cli import app
from pipeline.runs.dashboard.server import make_app
from pipeline.runs.summary import read_summaries, write_summary
from pipeline.workdir import Workdir
from tests.pipeline.runs.workdirs import Recorder, run_id

DAMAGE = {
    "empty": b"",
    "half": b'{"run_id": "2026',
    "noise": b"\x00\xff\xfe" * 20,
    "list": b"[]",
    "old": b'{"accuracy": 0.9}',
    "missing": None,
}


def invoke(*arguments: str):
    """Runs a command; what is no message but a traceback fails the test."""
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A configuration whose data is there, and whose deploy target can't be asked."""
    for variable in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    record = tfrecord.frame_record(tfrecord.encode_example({"input": [b"image"], "label": [b"cat"]}))
    (tmp_path / "data.tfrecord").write_bytes(record)
    config = {
        "name": "digits",
        "data": {"path": "data.tfrecord"},
        "trainer": {"weights": "none"},
        "deploy": {"target": "kserve", "path": str(tmp_path / "models")},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.fixture(params=DAMAGE)
def damaged(request, project) -> Path:
    """The folder of a run whose summary is damaged, between two others."""
    recorder = Recorder(project)
    for number in range(3):
        recorder.summarize(number)
    folder = recorder.workdir.runs / run_id(1)
    (folder / SUMMARY).unlink()
    if DAMAGE[request.param] is not None:
        (folder / SUMMARY).write_bytes(DAMAGE[request.param])
    return folder


def test_a_damaged_summary_is_listed_as_damaged_and_hides_no_other_run(damaged, project):
    listed = json.loads(invoke("runs", str(project), "--json").stdout)
    assert [(row["run_id"], row["status"]) for row in listed] == [
        (run_id(2), "done"),
        (run_id(1), "damaged"),
        (run_id(0), "done"),
    ]
    table = invoke("runs", str(project)).stdout
    assert f"{run_id(1)}: its summary.json is missing, damaged" in table
    shown = TestClient(make_app(Workdir(project), EVERYBODY, "127.0.0.1"), base_url="http://127.0.0.1").get("/").text
    assert all(run_id(number) in shown for number in range(3))
    assert "its summary.json is missing, damaged or of another version" in shown


def test_a_folder_among_the_runs_is_listed_by_the_name_that_it_has(project):
    (project / "runs" / "[red]x[link=y]").mkdir(parents=True)
    *table, line = invoke("runs", str(project)).stdout.splitlines()
    assert "[red]x[link=y]" in "".join(table)
    assert line.startswith("[red]x[link=y]: its summary.json is missing")


def test_a_damaged_summary_does_not_stop_the_next_run(damaged, project):
    result = invoke("run", str(project / "pipeline.yaml"))
    assert (result.exit_code, "no way to a Kubernetes cluster" in result.stderr) == (1, True)
    assert [summary and summary.status for _, summary in read_summaries(project / "runs")] == [
        "failed",
        "done",
        None,
        "done",
    ]


def test_each_command_that_is_given_a_run_with_a_damaged_summary_says_so(damaged, project):
    other = project / "serving" / "digits" / "1000"
    other.mkdir(parents=True)
    (other / "saved_model.pb").touch()
    for arguments, phrase in (
        (["predict", str(damaged), "x.jpg"], "summary.json is missing or damaged"),
        (["export", str(damaged), "--out", str(project / "x.tflite")], "summary.json is missing or damaged"),
        (["deploy", str(damaged), "--config", str(project / "pipeline.yaml")], "summary.json is missing or damaged"),
        (["serve", str(damaged)], "summary.json is missing or damaged"),
        (["schema", str(damaged)], "summary.json is missing or damaged"),
        (["report", str(damaged)], "summary.json is missing or damaged"),
        (["lineage", str(damaged)], "summary.json is missing or damaged"),
        (["lineage", str(other)], f"Run {run_id(1)}: its summary.json is missing, damaged"),
    ):
        if (damaged / SUMMARY).exists() or arguments[1] == str(other):
            result = invoke(*arguments)
            assert (result.exit_code, phrase in " ".join(result.stderr.split())) == (2, True), result.output


@pytest.mark.parametrize("because", [[], ["accuracy is 0.5, below the threshold of 0.8"]])
def test_a_model_that_an_earlier_version_refused_stays_refused(tmp_path, because):
    """It could refuse a model without a reason."""
    recorder = Recorder(tmp_path)
    recorder.summarize(0)
    file = recorder.workdir.runs / run_id(0) / SUMMARY
    file.write_text(json.dumps(json.loads(file.read_text()) | {"blessed": False, "not_blessed_because": because}))
    (row,) = json.loads(invoke("runs", str(tmp_path), "--json").stdout)
    assert (row["blessed"], row["not_blessed_because"]) == (False, because or ["no reason was recorded"])


@pytest.mark.parametrize("file", ["run.json", "config.yaml"])
def test_a_damaged_run_json_or_configuration_is_a_message(project, file):
    recorder = Recorder(project)
    recorder.summarize(0, pushed_version="1000")
    recorder.originate(0)
    (recorder.workdir.runs / run_id(0) / file).write_bytes(b"\x00{")
    version = project / "serving" / "digits" / "1000"
    version.mkdir(parents=True)
    (version / "saved_model.pb").touch()
    traced = invoke("lineage", str(version))
    assert traced.exit_code == 0
    assert ("or it was removed or damaged" in traced.stdout) == (file == "run.json")
    assert invoke("report", str(recorder.workdir.runs / run_id(0))).exit_code == 2
    assert (
        TestClient(make_app(Workdir(project), EVERYBODY, "127.0.0.1"), base_url="http://127.0.0.1")
        .get(f"/runs/{run_id(0)}/index.html")
        .status_code
        == 200
    )


def test_a_target_that_can_not_be_asked_leaves_a_failed_run_with_the_reason(project):
    result = invoke("run", str(project / "pipeline.yaml"))
    assert result.exit_code == 1
    ((name, summary),) = read_summaries(project / "runs")
    assert summary.status == "failed"
    assert "no way to a Kubernetes cluster" in summary.error
    assert f"{name}: no way to a Kubernetes cluster" in invoke("runs", str(project)).stdout
    asked = TestClient(make_app(Workdir(project), EVERYBODY, "127.0.0.1"), base_url="http://127.0.0.1")
    assert "failed" in asked.get("/").text
    assert "no way to a Kubernetes cluster" in asked.get(f"/runs/{name}/index.html").text
    assert "DeployError" in Path(summary.log).read_text()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "interrupted by Ctrl-C or a signal"),
        (OSError(5, "Input/output error", "/data/x"), "/data/x: Input/output error"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_ends_a_run_its_summary_says_so(project, monkeypatch, error, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(run_module, "check_run", fail)
    with pytest.raises(type(error)):
        run_module.run(project / "pipeline.yaml")
    ((_, summary),) = read_summaries(project / "runs")
    assert (summary.status, summary.error) == ("failed", reason)


def test_a_refused_configuration_leaves_nothing(project):
    (project / "data.tfrecord").write_bytes(b"no records")
    assert invoke("run", str(project / "pipeline.yaml")).exit_code == 2
    assert list(read_summaries(project / "runs")) == []


def test_a_run_without_room_for_its_first_summary_leaves_nothing(project, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_module, "write_summary", fail)
    with pytest.raises(OSError, match="No space left on device"):
        run_module.run(project / "pipeline.yaml")
    assert list((project / "runs").iterdir()) == []


@pytest.mark.parametrize(("status", "error"), [("done", None), ("failed", "Trainer failed: the loss is not finite")])
def test_a_signal_at_the_end_of_a_run_changes_nothing_of_its_result(tmp_path, status, error):
    recorder = Recorder(tmp_path)
    summary = recorder.summarize(0).model_copy(update={"run_id": run_id(1), "status": "running"})

    def end() -> None:
        with run_module._record_run(summary, recorder.workdir.runs / run_id(1)), end_on_signals():
            summary.status, summary.error = status, error
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        end()
    written = recorder.read(1)
    assert (written.status, written.error) == (status, error)


def test_a_summary_is_on_the_disk_before_and_after_it_gets_its_name(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path)
    summary = recorder.summarize(0)
    calls = []
    flush, replace = os.fsync, Path.replace

    def record_flush(handle: int) -> None:
        calls.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        flush(handle)

    def record_replace(self: Path, target: Path) -> Path:
        calls.append("replace")
        return replace(self, target)

    monkeypatch.setattr(filesystem.os, "fsync", record_flush)
    monkeypatch.setattr(Path, "replace", record_replace)
    write_summary(summary, recorder.workdir.runs / run_id(0))
    assert len(calls) == 3
    assert calls[0].startswith(filesystem.PARTIAL)
    assert calls[1:] == ["replace", run_id(0)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_a_signal_stopped_says_so_and_ends_with_the_signals_status(project, monkeypatch, number):
    def interrupt(*_):
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(run_module, "check_run", interrupt)
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    result = invoke("run", str(project / "pipeline.yaml"))
    assert result.exit_code == 128 + number
    assert result.stderr.splitlines()[-1] == f"imagepipe: stopped by {number.name}"
    (row,) = json.loads(invoke("runs", str(project), "--json").stdout)
    assert (row["status"], row["error"]) == ("failed", f"stopped by {number.name}")
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_run_that_was_killed_is_not_shown_as_running(project):
    workdir = Workdir(project)
    recorder = Recorder(project)
    summary = recorder.summarize(0).model_copy(update={"status": "running", "host": socket.gethostname()})
    write_summary(summary, workdir.runs / run_id(0))

    def list_runs() -> list[tuple[str, str | None]]:
        return [(run["status"], run["error"]) for run in json.loads(invoke("runs", str(project), "--json").stdout)]

    with lock_folder(project, RuntimeError()):
        assert list_runs() == [("running", None)]
    assert list_runs() == [("failed", "the run was killed")]
    write_summary(summary.model_copy(update={"host": "another machine"}), workdir.runs / run_id(0))
    assert list_runs() == [("running", None)]  # whose locks may not be seen here
