"""Wheel and sdist as they are uploaded, and an installation by pip alone."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = ROOT / ".uv" / "bin" / "uv"

EXTRAS = ("grpc", "openvino", "nncf", "onnx", "mlflow")  # of modules that only an extra's users import
IMPORT_ALL = f"""
import importlib, pkgutil
from imagepipe.base.errors import ConfigError
for package in ("imagepipe", "transform", "trainer", "components", "pipeline"):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ConfigError as error:
            assert "pip install 'imagepipe-tfx[" in str(error)
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] not in {EXTRAS}:
                raise
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)  # noqa: S603
    assert result.returncode == 0, (command, result.stdout[-3000:], result.stderr[-3000:])
    return result.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of the tracked files: builds leave their work in the folder that they are given."""
    folder = tmp_path_factory.mktemp("sources")
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def build(sources: Path, folder: Path) -> tuple[Path, Path]:
    """Builds the sdist, and the wheel from it."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=sources)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def distributions(sources, tmp_path_factory) -> tuple[Path, Path]:
    return build(sources, tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_wheel_and_sdist_pass_the_checks_of_the_index(distributions):
    checked = run(sys.executable, "-m", "twine", "check", "--strict", *distributions, cwd=ROOT)
    assert checked.count("PASSED") == 2


@pytest.mark.slow
def test_the_wheel_has_all_our_packages_and_their_pages_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"components", "imagepipe", "pipeline", "trainer", "transform"}  # no module kubeflow, no tests
    assert names == set(run("git", "ls-files", *tops, cwd=ROOT).splitlines())


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(distributions, tmp_path):
    with tarfile.open(distributions[0]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    _, wheel = build(folder, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(distributions[1]) as other:
        assert set(one.namelist()) == set(other.namelist())


@pytest.mark.slow
def test_all_our_modules_can_be_imported_with_the_locked_packages_alone(sources, tmp_path):
    """Those that a user installs: neither extras nor what the tests need."""
    environment = tmp_path / "venv"
    run(UV, "venv", "--python", sys.executable, environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    install = (UV, "pip", "install", "--python", python, "--no-deps")
    run(*install, "--require-hashes", "-r", sources / "requirements.txt", cwd=tmp_path)
    run(*install, sources, cwd=tmp_path)
    run(python, "-c", IMPORT_ALL, cwd=tmp_path)


# The demo as it is trained in a minute: `make demo` trains the whole. Its configuration is kept if there is one.
QUICK = """\
name: digits
data: {path: dataset}
image: {size: [32, 32]}
trainer: {backbone: mobilenet_v2, weights: none, epochs: 1}
evaluation: {thresholds: {accuracy: 0}, intervals: none}
"""


@pytest.mark.long
def test_pip_alone_installs_the_lock_and_the_demo_runs(sources, tmp_path):
    """As the documentation says: a fresh venv, pip and requirements.txt, neither make nor uv."""
    scripts = tmp_path / "venv" / "bin"
    # Bytecode of all that is installed would take minutes of a core, and most of it is never imported.
    install = (scripts / "python", "-m", "pip", "install", "-q", "--no-deps", "--no-compile")
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    run(*install, "--require-hashes", "-r", sources / "requirements.txt", cwd=tmp_path)
    run(*install, sources, cwd=tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "pipeline.yaml").write_text(QUICK)
    run(scripts / "imagepipe", "demo", "--workdir", tmp_path / "demo", cwd=tmp_path)
    (summary,) = (tmp_path / "demo" / "runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["pushed_version"]
