"""Unusable arguments are refused before TFX, TensorFlow or Beam is imported, which takes 10 s and more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imagepipe.base import tfrecord
from imagepipe.ingest import dataset
from tests.pipeline.runs.workdirs import Recorder, run_id
from tests.weight_files import write_weights

HEAVY = [
    "tensorflow",
    "tfx",
    "keras",
    "apache_beam",
    "kserve",
    "tensorflow_data_validation",
    "tensorflow_model_analysis",
]

SCRIPT = """
import contextlib, json, sys
from typer.testing import CliRunner
from pipeline.cli import app

for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
    print(json.dumps([arguments, result.exit_code, " ".join(result.output.split()), heavy]), flush=True)
"""


def write_dataset(folder: Path, task: str = "classification") -> None:
    """An empty dataset."""
    options = dataset.Options(task, {"train": 8, "eval": 1}, None, 10**6, None)
    splits = {name: dataset.Split() for name in options.splits}
    folder.mkdir()
    (folder / "dataset.json").write_bytes(dataset.encode(dataset.Dataset(options, dataset.list_features(task), splits)))


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with a configuration, and much that can't be used."""
    example = tfrecord.encode_example({"input": [b"image"], "label": [b"cat"], "width": [1]})
    (tmp_path / "data.tfrecord").write_bytes(tfrecord.frame_record(example))
    (tmp_path / "pipeline.yaml").write_text("name: x\ndata: {path: data.tfrecord}\ntrainer: {weights: none}\n")
    (tmp_path / "noise").write_bytes(b"\x00noise")
    write_weights(tmp_path / "other.h5", "mobilenet_v2")
    write_dataset(tmp_path / "empty")
    write_dataset(tmp_path / "regression", "regression")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "dataset.json").write_bytes(b"{")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"\x12\x00")  # a SavedModel with an empty graph
    Recorder(tmp_path).summarize(0)
    live = tmp_path / "other" / "serving" / "x" / "1000"
    (live / "assets").mkdir(parents=True)
    (live / "assets" / "task").write_text("regression")
    (live / "saved_model.pb").touch()
    return tmp_path


def refuse(project: Path, *commands: list[str]) -> list[str]:
    """Runs commands in one new process, which imports nothing heavy; returns what they say."""
    arguments = [sys.executable, "-c", SCRIPT, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(arguments, cwd=project, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(commands)
    for arguments, status, output, heavy in results:
        assert (status, heavy) == (2, []), (arguments, output)
    return [output for _, _, output, _ in results]


def test_a_run_that_can_not_be_is_refused_without_importing_anything_heavy(project):
    cases = {
        "data.path=missing": "no file matches",
        "data.path=noise": "is not a TFRecord file",
        "data.path=empty": "has no image in its train split",
        "data.path=regression": "was ingested for regression",
        "data.path=damaged": "is damaged",
        "data.features.numeric=[age]": "has a feature 'age'",
        "data.curated_schema=missing": "there is no file",
        "data.curated_schema=noise": "is not a schema",
        "trainer.weights=missing": "there is no file",
        "trainer.weights=noise": "does not hold weights that can be read",
        "trainer.weights=other.h5": "It seems to be of mobilenet_v2: set trainer.backbone",
        "trainer.epochs=none": "trainer.epochs",
        "deploy.path=noise/models": "no model can be written into",
        "deploy.path=gs://models/[1]": "gs://models/[1] has [, * or ? in it, which a store takes for a pattern",
        "deploy.sign=noise": "is no private key to sign models with",
        "unknown=1": "unknown key",
    }
    commands = [["run", "pipeline.yaml", "--set", override] for override in cases]
    commands += [["run", "none.yaml"], ["run", "noise"], ["run", "pipeline.yaml", "--workdir", "other"]]
    phrases = [*cases.values(), "No such file", "is not YAML", "which is live, does regression"]
    for command, output, phrase in zip(commands, refuse(project, *commands), phrases, strict=True):
        assert phrase in output, command
    assert [folder.name for folder in (project / "runs").iterdir()] == [run_id(0)]


def test_so_is_every_other_command(project):
    image = "kubeflow={image: x}"
    commands = {
        "holds no dataset": ["init", "missing", "--out", "new.yaml"],
        "dataset.json is damaged": ["init", "damaged", "--out", "new.yaml"],
        "is neither a dataset": ["schema", "missing"],
        "has no images": ["schema", "empty"],
        "this run did not get as far as DataCheck": ["schema", f"runs/{run_id(0)}"],
        "noise exists": ["schema", "empty", "--freeze", "noise"],
        "kubeflow.image: has to be given": ["compile", "pipeline.yaml"],
        "deploy.path: has to be given": ["compile", "pipeline.yaml", "--set", image],
        "that is the configuration": ["compile", "--out", "./pipeline.yaml"],
        "in its train split": ["compile", *["--set", image, "--set", "deploy.path=m", "--set", "data.path=empty"]],
        "names of pipelines have no underscores": ["submit", "--set", image, "--set", "name=x_y"],
        "missing is neither a SavedModel": ["predict", "missing", "x.jpg"],
        "p*.jpg": ["predict", "model", "p*.jpg"],
        "nothing is neither a SavedModel": ["batch-predict", "nothing", "x", "--out", "o"],
        "b*.jpg": ["batch-predict", "model", "b*.jpg", "--out", "o"],
        "nowhere is neither a SavedModel": ["serve", "nowhere"],
        "is no public key to verify signatures with": ["serve", "model", "--verify", "noise"],
        "none is neither a SavedModel": ["export", "none", "--out", "x.tflite"],
        "there is no file missing": ["weights", "missing"],
        "absent is neither a SavedModel": ["deploy", "absent"],
        "a.yaml: No such file": ["status", "--config", "a.yaml"],
        "b.yaml: No such file": ["rollback", "--config", "b.yaml"],
        "is no run": ["report", "missing"],
        "neither a SavedModel": ["lineage", "missing"],
        "no folder missing": ["dashboard", "missing"],
    }
    outputs = refuse(project, *commands.values())
    for (phrase, command), output in zip(commands.items(), outputs, strict=True):
        assert phrase in output, (command, output)
