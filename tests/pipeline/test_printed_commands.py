"""Commands that are printed to be copied can be pasted, whatever the folders are called."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imagepipe.base.errors import IngestError
from imagepipe.ingest import dataset
from pipeline.cli import app
from pipeline.cli.runs import print_outcome
from pipeline.config_file import read_config
from pipeline.runs.summary import Push
from tests.pipeline.runs.workdirs import Recorder

NAME = "My 'own' $HOME projects; \"x\" & co"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with blanks, quotes and more in its name, and in it an empty dataset."""
    return make_dataset(tmp_path / NAME, monkeypatch)


def make_dataset(folder: Path, monkeypatch) -> Path:
    options = dataset.Options("classification", {"train": 8, "eval": 1}, None, 10**6, None)
    empty = dataset.Dataset(
        options, dataset.list_features("classification"), {name: dataset.Split() for name in options.splits}
    )
    (folder / "dataset").mkdir(parents=True)
    (folder / "dataset" / "dataset.json").write_bytes(dataset.encode(empty))
    monkeypatch.setattr("pipeline.init.is_imagenet_available", lambda: False)
    return folder


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def find_command(text: str) -> str:
    """The last command in what was printed."""
    return re.findall(r"imagepipe [a-z-]+ .*", text)[-1]


def test_what_init_says_is_next_can_be_pasted_into_a_shell(folder):
    written = invoke("init", str(folder / "dataset"))
    command = find_command(written.stdout)
    assert shlex.split(command) == ["imagepipe", "run", str(folder / "pipeline.yaml")]
    assert f"Wrote {folder}/pipeline.yaml." in written.stdout
    script = command.replace("imagepipe", f"{shlex.quote(sys.executable)} -m imagepipe", 1)
    pasted = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)  # noqa: S603, S607
    assert pasted.returncode == 2
    assert f"{folder}/dataset has no image in its train split" in pasted.stderr


def test_no_part_of_a_folders_name_is_taken_for_markup(tmp_path, monkeypatch):
    folder = make_dataset(tmp_path / "photos [red]", monkeypatch)
    written = invoke("init", str(folder / "dataset"))
    assert f"Wrote {folder}/pipeline.yaml." in written.stdout
    assert shlex.split(find_command(written.stdout))[2] == str(folder / "pipeline.yaml")


def test_what_init_says_is_next_is_not_refused_for_the_folders_name(tmp_path, monkeypatch):
    folder = make_dataset(tmp_path / "photos [red]", monkeypatch)
    _, *arguments = shlex.split(find_command(invoke("init", str(folder / "dataset")).stdout))
    assert f"{folder}/dataset has no image in its train split" in invoke(*arguments).stderr


def test_a_missing_dataset_names_the_command_that_makes_it(folder):
    missing = folder / "missing"
    with pytest.raises(IngestError) as raised:
        dataset.load(str(missing))
    assert shlex.split(find_command(str(raised.value)))[-2:] == ["--out", str(missing)]
    assert invoke("init", str(folder / "dataset")).exit_code == 0
    refused = invoke("run", str(folder / "pipeline.yaml"), "--set", f"data.path={missing / 'x'}")
    assert shlex.split(find_command(refused.stderr))[-2:] == ["--out", str(missing / "x")]


@pytest.mark.parametrize("name", ["My models", "a #1", "My: P", "größe 'x' \"y\""])
def test_the_command_that_deploys_a_rolled_back_model_names_run_configuration_and_folder(folder, capsys, name):
    folder = folder / name
    push = Push(outcome="rolled_back", version="7")
    metrics = {"accuracy": 0.9, "example_count": 10.0}
    (folder.parent / "pipeline.yaml").write_text("name: x\ndata: {path: /data/x}\n")
    summary = Recorder(folder).summarize(0, metrics=metrics, push=push, traffic={"3": 100})
    assert print_outcome(summary) == 3
    run = str(Path(summary.log).parent)
    *command, override = shlex.split(find_command(capsys.readouterr().err))
    assert command == ["imagepipe", "deploy", run, "--config", f"{run}/config.yaml", "--set"]
    config = read_config(folder.parent / "pipeline.yaml", [override])
    assert config.deploy.path == summary.serving_dir


@pytest.mark.slow  # compiling imports TFX
def test_what_compile_says_is_next_can_be_pasted(folder):
    config = folder / "a config.yaml"
    config.write_text("name: x\ndata: {path: /data/x}\ndeploy: {path: /models}\nkubeflow: {image: x}\n")
    sets = ["--set", "kubeflow.experiment=a team", "--set", "trainer.epochs=3"]  # the second is compiled in
    compiled = invoke("compile", str(config), "--out", str(folder / "compiled.yaml"), *sets)
    assert shlex.split(find_command(compiled.stdout)) == [
        *["imagepipe", "submit", str(folder / "compiled.yaml")],
        *["--config", str(config), "--target", "kubeflow", *sets[:2]],
    ]
