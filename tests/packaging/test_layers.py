"""The layers that `make lint` holds: a planted import that breaks them is found, wherever it hides."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("imagepipe", "transform", "trainer", "components", "pipeline")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(checkout: Path) -> tuple[int, str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)  # noqa: S603
    return result.returncode, result.stdout


def test_the_layers_hold(checkout):
    status, output = lint(checkout)
    assert status == 0, output


@pytest.mark.parametrize(
    ("file", "planted", "words"),
    [
        ("imagepipe/base/names.py", "def plant():\n    from pipeline import dag", "not allowed to import pipeline"),
        ("imagepipe/base/names.py", "def plant():\n    import tensorflow", "not allowed to import tensorflow"),
        ("imagepipe/base/names.py", "import apache_beam", "not allowed to import apache_beam"),
        ("imagepipe/deploy/versions.py", "import imagepipe.serving", "not allowed to import imagepipe.serving"),
        ("trainer/tasks.py", "def plant():\n    from tfx import v1", "not allowed to import tfx"),
        ("imagepipe/serving/client.py", "def plant():\n    import tfx", "not allowed to import tfx"),
        ("components/pusher/executor.py", "import imagepipe", "not allowed to import imagepipe"),
        ("pipeline/cli/data.py", "import tensorflow", "not allowed to import tensorflow"),
        (
            "imagepipe/ingest/dataset.py",
            "def plant():\n    from imagepipe.ingest import command",
            "No cycles are allowed",
        ),
    ],
)
def test_a_planted_import_is_found(checkout, file, planted, words):
    path = checkout / file
    original = path.read_text()
    path.write_text(f"{original}\n\n{planted}\n")
    try:
        status, output = lint(checkout)
    finally:
        path.write_text(original)
    assert status == 1
    assert words in output
