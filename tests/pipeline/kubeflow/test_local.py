"""The digits' whole pipeline as compiled for Kubeflow, driven by kfp's own local engine. See ``containers``."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from kfp import components, local

from imagepipe.deploy.versions import list_version_folders
from imagepipe.monitoring.reference import find_own_reference
from imagepipe.serving.predictor import load
from imagepipe.serving.request_files import read_requests
from pipeline import demo
from pipeline.config_file import read_config
from pipeline.kubeflow.compilation_check import check_and_compile
from tests.pipeline.kubeflow import containers
from tests.small_backbone import BACKBONE

pytestmark = pytest.mark.slow  # what needs a second run is long, and `make test-slow` leaves that out

DISK = Path("/minio")
REPORT = "components.model_report.executor.Executor"
CONFIG = f"""\
name: digits
data: {{path: dataset}}
image: {{size: [32, 32]}}
trainer:
  {{backbone: {BACKBONE}, weights: none, epochs: 8, batch_size: 32, augmentation: {{horizontal_flip: false}}}}
evaluation: {{thresholds: {{accuracy: 0.7}}, margin: 1, intervals: none}}
deploy: {{path: serving}}
kubeflow: {{image: example/imagepipe}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The digits, ingested; and the compiled pipeline."""
    root = tmp_path_factory.mktemp("kubeflow")
    demo.write_images(root)
    demo.ingest_images(root)
    (root / "pipeline.yaml").write_text(CONFIG)
    (root / "compiled.yaml").write_text(check_and_compile(read_config(root / "pipeline.yaml"), "kubeflow"))
    return root


def run_pipeline(project: Path, name: str, launcher: containers.Launcher, **parameters) -> containers.Containers:
    logs = project / name / "logs"
    logs.mkdir(parents=True)
    started = containers.Containers(logs)
    with containers.replace_docker(lambda command: launcher(command, started.run)):
        local.init(
            runner=local.DockerRunner(),
            pipeline_root=str(project / name),
            raise_on_error=True,
            enable_caching=True,
            cache_root=str(project / "cache"),
        )
        try:
            components.load_component_from_file(str(project / "compiled.yaml"))(**parameters)
        except RuntimeError as error:
            raise AssertionError(f"{error}\n{started.logs[-1][-4000:]}") from error
        finally:
            started.close()
    return started


@pytest.fixture(scope="module")
def launcher(project) -> containers.Launcher:
    """Artifacts are in MinIO; where the launcher's folder for them can't be made, they are folders on this machine."""
    try:
        DISK.mkdir(exist_ok=True)
    except OSError:
        return containers.launch_unchanged
    return containers.create_launcher(project, DISK) if os.access(DISK, os.W_OK) else containers.launch_unchanged


@pytest.fixture(scope="module")
def first(project, launcher) -> containers.Containers:
    """Nothing is live yet. Batch size and threshold are parameters of the run."""
    return run_pipeline(project, "first", launcher, batch_size=24, threshold_accuracy=0.6)


@pytest.fixture(scope="module")
def second(project, launcher, first) -> containers.Containers:
    """The first one's model is live."""
    return run_pipeline(project, "second", launcher, batch_size=16, threshold_accuracy=0.6)


def measure_accuracy(project: Path, model: Path) -> float:
    requests = [r for file in sorted((project / "dataset" / "test").glob("*.tfrecord")) for r in read_requests(file)]
    answers = load(model).predict_requests(requests)
    return sum(answer.label == answer.id.partition("/")[0] for answer in answers) / len(requests)


def read_outputs(started: containers.Containers, executor: str) -> dict:
    """Returns the artifact that an executor wrote, by output."""
    (command,) = [c for c in started.commands if executor in c]
    invocation = json.loads(command[command.index("--json_serialized_invocation_args") + 1])
    output = json.loads(Path(invocation["outputs"]["outputFile"]).read_text())
    return {key: entry["artifacts"][0] for key, entry in output["artifacts"].items()}


def test_each_container_runs_the_command_of_the_compiled_file(project, first):
    executors = yaml.safe_load((project / "compiled.yaml").read_text())["deploymentSpec"]["executors"]
    compiled = {e["container"]["args"][1]: e["container"] for e in executors.values()}
    assert len(first.commands) == len(executors) == 16
    started = [command for command in first.commands if command[2] == "pipeline.kubeflow.entrypoint"]
    assert {command[3] for command in first.commands if command not in started} == {"data", "target"}
    for command in started:
        container = compiled[command[4]]
        assert command[:3] == container["command"] == ["python", "-m", "pipeline.kubeflow.entrypoint"]
        placeholder = container["args"].index("{{$}}")
        assert command[3 + placeholder + 1 :] == container["args"][placeholder + 1 :]


def test_a_pipeline_on_kubeflow_pushes_a_model_that_predicts_right(project, first):
    (version,) = list_version_folders(project / "serving")[:1]
    assert measure_accuracy(project, version) > 0.7
    reference = find_own_reference(str(version))
    assert reference.version == version.name
    assert len(reference.trained.numbers["brightness"]) > len(reference.evaluated.embedding) > 0
    assert read_outputs(first, "components.champion.executor.Executor")["champion"]["metadata"]["version"] == ""
    assert "Blessed" in Path(read_outputs(first, REPORT)["report"]["uri"]).read_text()


def test_examples_carry_the_fingerprint_of_what_was_read(first):
    examples = read_outputs(first, "tfx.components.example_gen.import_example_gen.executor.Executor")["examples"]
    assert "train" in examples["metadata"]["split_names"]
    assert "num_files:1" in examples["metadata"]["input_fingerprint"]


@pytest.mark.long
def test_a_second_run_beats_what_is_live_and_takes_its_place(project, first, second):
    older, newer = list_version_folders(project / "serving")
    assert measure_accuracy(project, newer) > 0.7
    champion = read_outputs(second, "components.champion.executor.Executor")["champion"]
    assert champion["metadata"]["version"] == older.name
    assert "baseline_model_id" in read_outputs(second, "components.evaluator.executor.Executor")["blessing"]["metadata"]


@pytest.mark.parametrize("run", ["first", pytest.param("second", marks=pytest.mark.long)])
def test_kubeflows_page_finds_the_report_as_a_file_the_figures_the_matrix_and_the_curve(project, run, request):
    artifacts = read_outputs(request.getfixturevalue(run), REPORT)
    assert Path(artifacts["report"]["uri"]).read_text().lstrip().startswith("<!DOCTYPE html>")

    metrics = artifacts["metrics"]["metadata"]
    assert all(isinstance(value, float) for value in metrics.values())
    assert metrics["blessed"] == 1
    assert metrics["accuracy"] > 0.7
    assert ("champion_accuracy" in metrics) == (run == "second")

    shown = artifacts["classification_metrics"]["metadata"]
    categories = [spec["displayName"] for spec in shown["confusionMatrix"]["annotationSpecs"]]
    matrix = np.array([row["row"] for row in shown["confusionMatrix"]["rows"]])
    assert categories == [str(digit) for digit in range(10)]
    assert matrix.sum() == metrics["example_count"]
    assert matrix.trace() / matrix.sum() == pytest.approx(metrics["accuracy"])
    keys = ("confidenceThreshold", "falsePositiveRate", "recall")
    points = np.array([[point[key] for key in keys] for point in shown["confidenceMetrics"]])
    assert points[[0, -1]].tolist() == [[1, 0, 0], [0, 1, 1]]
    thresholds, wrong, right = points.T
    assert all(np.diff(thresholds) < 0)
    assert all(np.diff(wrong) >= 0)
    assert np.trapezoid(right, wrong) > 0.95


def test_parameters_of_a_run_reach_the_trainer_and_the_gate(first):
    model = read_outputs(first, "components.trainer.executor.TrainerExecutor")["model"]["uri"]
    settings = json.loads((Path(model) / "training" / "config.json").read_text())["trainer"]
    assert (settings["batch_size"], settings["epochs"]) == (24, 8)
    (evaluator,) = [c for c in first.commands if "components.evaluator.executor.Executor" in c]
    invocation = json.loads(evaluator[evaluator.index("--json_serialized_invocation_args") + 1])
    assert invocation["inputs"]["parameterValues"]["threshold_accuracy"] == 0.6


def test_logs_and_compiled_files_hold_no_bytes_of_images(project, first):
    texts = [*first.logs, (project / "compiled.yaml").read_text()]
    assert all(texts)
    for text in texts:
        assert "PNG\\r\\n" not in text  # as Python shows bytes
        assert "\x89PNG" not in text
        assert "iVBORw0KGgo" not in text  # in base64
