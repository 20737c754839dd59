"""The Python API as its users have it: in a process of its own, from the first import on."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(sys.executable).with_name("imagepipe"))
HEAVY = ("tensorflow", "tfx", "apache_beam", "keras", "kserve", "numpy", "PIL", "pydantic", "mlflow")


def run_command(*command: str, cwd: Path | None = None, **variables: str) -> str:
    process = subprocess.run(command, cwd=cwd, env=os.environ | variables, check=False, capture_output=True, text=True)  # noqa: S603
    assert process.returncode == 0, process.stderr
    return process.stdout


def run_python(code: str, cwd: Path | None = None) -> str:
    return run_command(sys.executable, "-c", code, cwd=cwd)


def test_importing_it_imports_nothing_heavy():
    code = f"import sys, imagepipe; dir(imagepipe); print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(code) == "[]\n"


def test_it_names_what_it_has_and_nothing_else():
    code = """
import imagepipe, json
names = {name: type(getattr(imagepipe, name)).__name__ for name in dir(imagepipe)}
try:
    imagepipe.train
except AttributeError as error:
    print(json.dumps([names, str(error)]))
"""
    names, error = json.loads(run_python(code).splitlines()[-1])
    assert names.keys() == {"Client", "Failure", "Prediction", "Predictor", "__version__", "ingest", "load", "run"}
    assert (names["__version__"], names["run"], names["load"]) == ("str", "function", "function")
    assert error == "module 'imagepipe' has no attribute 'train'"


def test_ingest_is_the_function_whatever_was_imported_first(digits_folder, tmp_path):
    images = tmp_path / "images"
    for path in sorted(digits_folder.glob("*/*.png"))[:12]:
        copy = images / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    code = """
import imagepipe
first = imagepipe.ingest("images", "dataset", workers=1)
import imagepipe.ingest.dataset
second = imagepipe.ingest("images", "dataset", workers=1)
from imagepipe import ingest
from imagepipe.ingest import dataset
third = ingest(source="images", out="dataset", workers=1)
print([first.new, second.already, third.already], dataset.load("dataset").options.task)
"""
    assert run_python(code, tmp_path) == "[12, 12, 12] classification\n"
    code = """
import imagepipe.ingest.dataset
import imagepipe
print(imagepipe.ingest("images", "dataset", workers=1).already)
"""
    assert run_python(code, tmp_path) == "12\n"


def test_a_run_that_can_not_be_is_refused_without_tensorflow_and_leaves_nothing(tmp_path):
    (tmp_path / "pipeline.yaml").write_text("name: x\ndata: {path: missing}\n")
    code = f"""
import sys, imagepipe
try:
    imagepipe.run("pipeline.yaml", overrides=["trainer.weights=none"], workdir="new/work")
except ValueError as error:
    print(type(error).__name__, error)
print([name for name in {HEAVY[:4]} if name in sys.modules])
"""
    error, heavy = run_python(code, tmp_path).splitlines()
    assert error.startswith(f"ConfigError data.path: no file matches {tmp_path}/missing.")
    assert heavy == "[]"
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline.yaml"]


def test_a_run_that_is_refused_leaves_what_was_there(tmp_path):
    from imagepipe.base.errors import ConfigError
    from pipeline.run import run

    (tmp_path / "pipeline.yaml").write_text("name: x\ndata: {path: missing}\n")
    (tmp_path / "work" / "runs" / "1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for workdir, left in ((None, ["empty", "pipeline.yaml", "work"]), ("work", ["runs"]), ("empty", [])):
        folder = tmp_path / (workdir or ".")
        with pytest.raises(ConfigError, match="no file matches"):
            run(tmp_path / "pipeline.yaml", workdir=workdir and folder)
        assert sorted(path.name for path in folder.iterdir()) == left
    assert (tmp_path / "work" / "runs" / "1").exists()


def test_a_configuration_in_place_of_a_file_needs_a_workdir(tmp_path, monkeypatch):
    from imagepipe.base.errors import ConfigError
    from pipeline.config import Config
    from pipeline.run import run

    monkeypatch.chdir(tmp_path)
    config = Config.model_validate({"name": "x", "data": {"path": "missing"}})
    with pytest.raises(ConfigError, match="needs a workdir"):
        run(config)
    with pytest.raises(ConfigError, match="takes no overrides"):
        run(config, overrides=["trainer.epochs=1"], workdir=tmp_path)
    with pytest.raises(ConfigError, match=re.escape(f"no file matches {tmp_path}/missing")):  # relative to this folder
        run(config, workdir=tmp_path / "work")


def test_of_a_configuration_that_is_a_link_all_is_beside_the_link(tmp_path):
    from imagepipe.base.errors import ConfigError
    from imagepipe.base.locks import lock_folder
    from pipeline.cli.shared import read_deployment
    from pipeline.run import run

    (tmp_path / "shared.yaml").write_text("name: x\ndata: {path: missing}\n")
    (tmp_path / "a").mkdir()
    link = tmp_path / "a" / "pipeline.yaml"
    link.symlink_to(tmp_path / "shared.yaml")
    with pytest.raises(ConfigError, match=re.escape(f"no file matches {tmp_path}/a/missing")):
        run(link, overrides=["trainer.weights=none"])
    assert {path.name for path in tmp_path.iterdir()} == {"a", "shared.yaml"}
    with (
        lock_folder(tmp_path / "a", RuntimeError()),
        pytest.raises(ConfigError, match=re.escape(f"is using {tmp_path}/a;")),
    ):
        run(link, overrides=["trainer.weights=none"])
    assert read_deployment(link, None, None).path == str(tmp_path / "a" / "serving" / "x")


@pytest.mark.slow  # a minute or more without a cache: mypy reads half of the project
def test_type_checkers_see_the_signatures(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""\
import imagepipe.ingest.dataset
import imagepipe
from imagepipe import ingest

result = imagepipe.ingest("photos", "dataset", task="multilabel")
reveal_type(result.quarantined)
reveal_type(ingest("photos", "dataset"))
imagepipe.ingest("photos")
imagepipe.ingest("photos", "dataset", task="detection")
summary = imagepipe.run("pipeline.yaml", overrides=["trainer.epochs=1"])
reveal_type(summary.pushed_version)
imagepipe.run("pipeline.yaml", epochs=1)
reveal_type(imagepipe.load("model").predict(["a.jpg", b"bytes"]))
reveal_type(imagepipe.Client("http://127.0.0.1:8080"))
reveal_type(imagepipe.__version__)
""")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(script)]
    output = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True).stdout  # noqa: S603
    messages = re.findall(r"script\.py:(\d+): (?:note|error): (.+)", output)
    notes = dict(reversed(messages))  # the first of each line; others say where a name is defined
    expected = {
        "6": 'Revealed type is "int"',
        "7": 'Revealed type is "imagepipe.ingest.outcomes.IngestResult"',
        "8": 'Missing positional argument "out"',
        "9": 'Argument "task" to "ingest" has incompatible type',
        "11": 'Revealed type is "str | None"',
        "12": 'Unexpected keyword argument "epochs"',
        "13": "Prediction | ",
        "14": 'Revealed type is "imagepipe.serving.client.Client"',
        "15": 'Revealed type is "str"',
    }
    assert notes.keys() == expected.keys(), output
    for line, text in expected.items():
        assert text in notes[line]


def test_the_version_is_that_of_the_installed_package():
    version = metadata.version("imagepipe-tfx")
    assert run_python("import imagepipe; print(imagepipe.__version__)") == f"{version}\n"
    for command in ([sys.executable, "-m", "imagepipe"], [SCRIPT]):
        assert run_command(*command, "--version") == f"imagepipe {version}\n"


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("imagepipe in", ["ingest", "init"]),
        ("imagepipe run --wo", ["--workdir"]),
        ("imagepipe compile --target v", ["vertex"]),
    ],
)
def test_a_shell_completes_commands_and_options(words, completions):
    variables = {"_IMAGEPIPE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    process = subprocess.run([SCRIPT], env=os.environ | variables, check=False, capture_output=True, text=True)  # noqa: S603
    assert process.stdout.split() == completions


def test_completion_is_offered():
    assert "--install-completion" in run_command(SCRIPT, "--help")
    assert "_IMAGEPIPE_COMPLETE=complete_bash" in run_command("bash", "-c", f"{SCRIPT} --show-completion; true")
