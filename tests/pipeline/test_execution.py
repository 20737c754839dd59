import errno
import json
import os
from pathlib import Path

import pytest
from tfx.types import standard_artifacts

from components.evaluator.evaluation import Evaluation, Slice
from imagepipe.base.names import OPTIMIZED, TRAINING_FOLDER
from pipeline import execution
from pipeline.local_runner import NodeError
from pipeline.runs.report_page import PAGE
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
