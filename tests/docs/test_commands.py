import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from pipeline import cli
from pipeline.config import Config
from tests.docs.documents import ROOT, list_blocks, list_commands

# Other programs that the documents tell to call. `_check_...` below looks at what can be looked at.
_TOOLS = {
    "airflow",
    "curl",
    "docker",
    "export",
    "chmod",
    "grpcurl",
    "gsutil",
    "openssl",
    "kubectl",
    "mlflow",
    "pre-commit",
    "saved_model_cli",
    "source",
}
_PLACES = [f"{place} {command[:60]}" for place, command in list_commands()]


@pytest.mark.parametrize("command", [command for _, command in list_commands()], ids=_PLACES)
def test_a_command_of_the_documents_is_understood(command):
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Za-z_]+=.*", words[0]):
        words = words[1:] or ["true"]
    match Path(words[0]).name, words[1:]:
        case "imagepipe", ["--help" | "--version" | "--install-completion"]:
            pass
        case "imagepipe", [name]:  # in prose
            assert name in typer.main.get_command(cli.app).commands
        case "imagepipe", [name, *arguments]:
            typer.main.get_command(cli.app).commands[name].make_context(name, arguments)
        case "make", arguments:
            _check_make(arguments)
        case "python" | "python3.11", ["-m", module, *_]:
            _check_module(module)
        case "python", ["-c", code]:
            _check_imports(code)
        case "pip", ["install", *arguments]:
            _check_pip(arguments)
        case "pytest", [path]:
            assert (ROOT / path).is_dir()
        case "uv", ["pip", "install", *arguments]:
            _check_pip(arguments)
        case "uv", ["sync" | "lock", *arguments]:
            assert set(arguments) <= {"--frozen", "--extra", "gpu", "s3"}
        case "true", []:
            pass
        case tool, _:
            assert tool in _TOOLS, f"{tool}: nobody checks this command; teach the test how"


def _check_make(arguments):
    targets = [word for word in arguments if "=" not in word]
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    for variable in (word.partition("=")[0] for word in arguments if "=" in word):
        assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), variable


def _check_module(module):
    if module in ("venv", "benchmarks.NAME"):  # Python's own; any of the folder
        return
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def _check_imports(code):
    (statement,) = ast.parse(code).body
    assert isinstance(statement, ast.Import)
    for name in statement.names:
        path = ROOT / name.name.replace(".", "/")
        is_ours = (path / "__init__.py").is_file() or path.with_suffix(".py").is_file()
        assert is_ours or name.name == "kubeflow.trainer", name.name


def _check_pip(arguments):
    options = {"--no-deps", "--require-hashes", "-r", "--target"}
    names = [word for word in arguments if word not in options]
    assert {word for word in arguments if word.startswith("-")} <= options
    assert set(names) <= {".", "requirements.txt", "kubeflow", "kubeflow-trainer-api", "sdk"}
    assert "requirements.txt" not in names or (ROOT / "requirements.txt").is_file()


def test_there_are_commands_in_the_documents():
    names = {
        shlex.split(command, comments=True)[1] for _, command in list_commands() if command.startswith("imagepipe")
    }
    missing = set(typer.main.get_command(cli.app).commands) - names
    assert not missing, f"no document shows how to call {missing}"


@pytest.mark.parametrize("block", list_blocks("sh"), ids=lambda block: block.place)
def test_a_script_of_the_documents_is_valid_shell(block):
    subprocess.run([shutil.which("bash"), "-n"], input=block.text, text=True, check=True)  # noqa: S603 (our own pages)


@pytest.mark.parametrize("block", list_blocks("yaml"), ids=lambda block: block.place)
def test_a_configuration_of_the_documents_is_valid(block, tmp_path, monkeypatch):
    package = tmp_path / "my_package"  # which one of them names
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "docs" / "examples" / "vision_transformer.py", package / "networks.py")
    monkeypatch.syspath_prepend(tmp_path)
    snippet = yaml.safe_load(block.text)
    Config.model_validate({"name": "flowers"} | snippet | {"data": {"path": "/data"} | snippet.get("data", {})})


def test_there_are_configurations_in_the_documents():
    sections = {key for block in list_blocks("yaml") for key in yaml.safe_load(block.text)}
    assert sections >= {"data", "tuner", "evaluation", "serving", "deploy", "beam", "kubeflow"}
