"""Submitting, by the command line and the real clients, to stand-ins on loopback."""

import json

import pytest
from kfp import compiler, dsl
from typer.testing import CliRunner

from pipeline import cli
from tests.standins import kfp as kubeflow

TOKEN = "eyJhbGciOiJSUzI1NiJ9.secret.part"
CONFIG = """\
name: digits
data: {path: /data/digits}
kubeflow:
"""


@dsl.container_component
def step(epochs: int, note: str):
    return dsl.ContainerSpec(image="example/imagepipe", command=["echo"], args=[epochs, note])


@dsl.pipeline(name="digits", description="Digits.")
def digits(path: str, epochs: int = 3, rate: float = 0.5, verbose: bool = False, names: list = ["a"]):
    gen = step(epochs=epochs, note=path).set_display_name("gen")
    trainer = step(epochs=epochs, note=path).after(gen).set_env_variable("RATE", "1")
    step(epochs=epochs, note=path).after(trainer)


@pytest.fixture(scope="session")
def package(tmp_path_factory):
    """A compiled pipeline: step, step-2 after it, and step-3 after that."""
    path = tmp_path_factory.mktemp("package") / "compiled.yaml"
    compiler.Compiler().compile(digits, str(path))
    return path


@pytest.fixture
def kfp():
    with kubeflow.served() as server:
        yield server


@pytest.fixture
def project(tmp_path, monkeypatch, kfp):
    """A folder with a configuration for the server; nobody else's settings."""
    (tmp_path / "pipeline.yaml").write_text(f"{CONFIG}  host: {kfp.url}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kfp.Client._LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(cli, "_SECONDS_TO_LOOK", 0)
    return tmp_path


@pytest.fixture
def submit(project, package):
    """Calls ``imagepipe submit`` with the package."""

    def call(*args: str, status: int = 0):
        result = CliRunner().invoke(cli.app, ["submit", str(package), "--param", "path=/d", *args])
        said = " ".join(result.stderr.split())
        assert result.exit_code == status, f"{result.exit_code}: {result.output} {result.exception!r}"
        return result.stdout, said

    return call


def test_a_run_of_a_new_version_is_made_and_its_page_is_told(kfp, submit):
    said, _ = submit("--param", "epochs=5", "--run-name", "nightly")
    ((run_id, run),) = kfp.runs.items()
    assert said.strip() == f"Run {run_id} (nightly): {kfp.url}/#/runs/details/{run_id}"
    assert run["runtime_config"]["parameters"] == {"path": "/d", "epochs": 5}
    assert [each["display_name"] for each in kfp.pipelines.values()] == ["digits"]
    assert run["pipeline_version_reference"]["pipeline_version_id"] in kfp.versions
    (experiment,) = kfp.experiments.values()
    assert run["experiment_id"] == experiment["experiment_id"]
