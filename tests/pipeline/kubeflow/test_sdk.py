"""The official Kubeflow SDK from PyPI, whose module is called ``kubeflow``, beside this package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
# kubeflow.trainer imports the second; a resolver takes neither, as tfx wants kubernetes<27 and the SDK a newer one.
SDK = ("kubeflow>=0.5", "kubeflow-trainer-api>=2.3")
UNREACHABLE = ("Failed to fetch", "error sending request", "dns error", "Connection", "timed out")


@pytest.fixture(scope="module")
def sdk(tmp_path_factory) -> Path:
    """The SDK in a folder of its own, without its dependencies."""
    folder = tmp_path_factory.mktemp("sdk")
    uv = ROOT / ".uv" / "bin" / "uv"  # where `make` puts it
    binary = str(uv) if uv.is_file() else shutil.which("uv")
    if not binary:
        pytest.skip("there is no uv: `make` installs it into .uv/")
    command = [binary, "pip", "install", "--python", sys.executable, "--no-deps", "--target", str(folder), *SDK]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode and any(words in result.stderr for words in UNREACHABLE):
        pytest.skip(f"PyPI can't be reached: {result.stderr.strip().splitlines()[-1]}")
    assert result.returncode == 0, result.stderr
    return folder


def run_python(code: str, sdk: Path) -> str:
    """Runs code in the project's folder, which has a folder of the module's name, with the SDK on the path."""
    environment = os.environ | {"PYTHONPATH": str(sdk)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_the_sdk_and_our_compiler_are_imported_together(sdk):
    code = """
import kubeflow.trainer, pipeline.kubeflow.compile
print(kubeflow.trainer.TrainerClient.__module__, kubeflow.__file__)
print(pipeline.kubeflow.compile.compile_pipeline.__module__)
"""
    theirs, ours = run_python(code, sdk).splitlines()[-2:]
    assert theirs.startswith("kubeflow.trainer.")
    assert theirs.endswith(str(sdk / "kubeflow" / "__init__.py"))
    assert ours == "pipeline.kubeflow.compile"


def test_our_own_folder_of_that_name_is_no_part_of_the_module(sdk):
    assert not list((ROOT / "kubeflow").rglob("*.py"))
    assert run_python("import kubeflow; print(*kubeflow.__path__)", sdk).strip() == str(sdk / "kubeflow")
