import errno
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from tfx.types import standard_artifacts

from components.evaluator.evaluation import Evaluation, Slice
from imagepipe.base.names import OPTIMIZED, TRAINING_FOLDER
from pipeline import execution
from pipeline.config import Config
from pipeline.local_runner import NodeError, NodeResult
from pipeline.runs.report_page import PAGE
from pipeline.source import Source
from tests.pipeline.runs.workdirs import Recorder


@pytest.mark.parametrize(("content", "reason"), [("", "JSONDecodeError"), ("{}", "TypeError"), (None, "No such file")])
def test_results_that_were_damaged_since_name_the_folder_and_the_remedy(tmp_path, content, reason):
    """As after a power cut: ML Metadata has the execution, the cache takes it, and its file is empty."""
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(tmp_path)
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    outputs = {"ServingCheck": {"blessing": [blessing]}}
    message = rf"ServingCheck failed: its blessing can't be read \(.*{reason}.*Delete {tmp_path}"
    with pytest.raises(NodeError, match=message), execution._read(outputs, "ServingCheck", "blessing") as folder:
        execution.CheckReport(**json.loads((Path(folder) / "report.json").read_text()))


@pytest.fixture
def collect(tmp_path, monkeypatch):
    """Collects the results of a run whose artifacts are whole, into the folder of that run, which it returns."""
    evaluation = Evaluation([Slice({}, 8, {}, None, {}, None)], {}, {(0, 0): 8}, {}, {}, [])
    monkeypatch.setattr(execution, "read_evaluation", lambda folder: evaluation)
    files = {
        "Evaluator/evaluation": "",
        "ServingCheck/blessing/report.json": '{"problems": []}',
        "Trainer/model/Format-Serving/assets/labels": "cat\n",
        f"Trainer/model/{TRAINING_FOLDER}/curves.png": "curves",
        f"Trainer/model/{TRAINING_FOLDER}/{OPTIMIZED}": '{"precision": "float32", "max_difference": null}',
        "ModelReport/report": "page",
    }
    outputs = {}
    for name, text in files.items():
        file = tmp_path / "artifacts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        node, key, *_ = name.split("/")
        artifact = standard_artifacts.String()
        artifact.uri = str(tmp_path / "artifacts" / node / key)
        outputs[node] = {key: [artifact]}
    recorder = Recorder(tmp_path)
    summary = recorder.summarize(0)
    folder = Path(summary.log).parent
    return folder, lambda: execution._collect_results(summary, outputs, "label", folder)


def test_what_the_nodes_wrote_for_people_is_copied_into_the_folder_of_the_run(collect):
    folder, run = collect
    run()
    assert ((folder / "curves.png").read_text(), (folder / PAGE).read_text()) == ("curves", "page")
    assert (folder / "confusion_matrix.png").stat().st_size > 0


def test_a_picture_that_can_not_be_drawn_fails_no_run_whose_model_is_live(collect, monkeypatch, caplog):
    folder, run = collect

    def fail(*_):
        raise RuntimeError("raster overflow")

    monkeypatch.setattr(execution.run_metrics, "draw_confusion_matrix", fail)
    run()
    assert (folder / PAGE).read_text() == "page"
    assert "the confusion matrix can't be drawn" in caplog.text


@pytest.mark.parametrize("name", ["curves.png", "confusion_matrix.png", PAGE])
def test_a_run_folder_that_can_not_be_written_is_never_blamed_on_an_artifact(collect, name):
    """Whoever obeyed would delete a model that is whole, and train it anew."""
    folder, run = collect
    (folder / name).mkdir()
    with pytest.raises(IsADirectoryError) as error:
        run()
    assert error.value.filename == str(folder / name)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_nor_is_a_full_disk(tmp_path, code):
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(tmp_path)
    with pytest.raises(OSError, match=os.strerror(code)), execution._read({"A": {"b": [blessing]}}, "A", "b"):
        raise OSError(code, os.strerror(code))


def test_a_run_that_fails_after_the_push_asks_the_target_what_is_live(tmp_path, monkeypatch):
    pushed = standard_artifacts.PushedModel()
    pushed.set_string_custom_property("pushed_version", "7")
    pushed.set_string_custom_property(execution.OUTCOME, "pushed")
    pushed.set_string_custom_property(execution.VERSION, "7")

    def run_nodes(pipeline, run_id, never_cached, on_start, on_end):
        on_end(NodeResult("Pusher", 1, False, {"pushed_model": [pushed]}))
        raise NodeError("ModelReport", "the disk is full")

    monkeypatch.setattr(execution.local_runner, "run_nodes", run_nodes)
    monkeypatch.setattr(execution.provenance, "write_origin", lambda *_, **__: None)
    monkeypatch.setattr(execution, "compute_fingerprint", lambda *_: None)
    recorder = Recorder(tmp_path)
    summary = recorder.summarize(0)
    live = tmp_path / "live"
    (live / "7").mkdir(parents=True)
    (live / "7" / "saved_model.pb").touch()
    config = Config.model_validate({"name": "digits", "data": {"path": str(tmp_path)}})
    source = Source(str(tmp_path), {"train": "a*", "eval": "b*"}, {})
    deploy = config.make_deployment(str(live))
    execution.execute_dag(config, source, deploy, recorder.workdir, summary, Console(quiet=True))
    written = recorder.read(0)
    assert (written.status, written.error) == ("failed", "ModelReport failed: the disk is full")
    assert (written.push.version, written.traffic) == ("7", {"7": 100})


def test_data_that_changes_while_it_is_read_ends_the_run(tmp_path, monkeypatch):
    """Else its lineage would name other data than the model was trained on."""
    fingerprints = iter(["before", "after"])

    def run_nodes(pipeline, run_id, never_cached, on_start, on_end):
        on_end(NodeResult("ImportExampleGen", 1, False, {}))
        raise AssertionError("the next node was run")

    monkeypatch.setattr(execution.local_runner, "run_nodes", run_nodes)
    monkeypatch.setattr(execution.provenance, "write_origin", lambda *_, **__: None)
    monkeypatch.setattr(execution, "compute_fingerprint", lambda *_: next(fingerprints))
    recorder = Recorder(tmp_path)
    summary = recorder.summarize(0)
    config = Config.model_validate({"name": "digits", "data": {"path": str(tmp_path)}})
    source = Source(str(tmp_path), {"train": "a*", "eval": "b*"}, {})
    deploy = config.make_deployment(str(tmp_path / "live"))
    execution.execute_dag(config, source, deploy, recorder.workdir, summary, Console(quiet=True))
    written = recorder.read(0)
    assert (written.status, written.nodes[-1].id) == ("failed", "ImportExampleGen")
    assert written.error == (
        f"ImportExampleGen failed: the data at {tmp_path} changed while it was read, as by an ingest. Run again"
    )
