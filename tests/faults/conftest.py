"""A small disk, and commands run as a user does: in a process of their own."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Whole pipelines in about a minute.
QUICK = ["image.size=[75, 75]", "trainer.backbone=mobilenet_v3_small", "trainer.weights=none", "trainer.epochs=1"]
QUICK += ["evaluation.intervals=none", "evaluation.thresholds.accuracy=0"]


def imagepipe(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "imagepipe", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(imagepipe(*arguments), capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603


def run_pipeline(config: Path, workdir: Path) -> list[str | Path]:
    """The arguments of ``imagepipe run``."""
    return ["run", config, "--workdir", workdir, "--json", *(part for key in QUICK for part in ("--set", key))]


@pytest.fixture(scope="module")
def config(digits_folder, tmp_path_factory) -> Path:
    """The configuration of an ingested dataset of 400 digits."""
    folder = tmp_path_factory.mktemp("project")
    assert run("ingest", digits_folder, "--out", folder / "dataset").returncode == 0
    assert run("init", folder / "dataset").returncode == 0
    return folder / "pipeline.yaml"


class SmallDisk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, folder: Path, size: str):
        self.folder = folder
        self._mount("size=" + size)

    def resize(self, size: str) -> None:
        self._mount("remount,size=" + size)

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", self.folder], check=True, capture_output=True)  # noqa: S603, S607


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], SmallDisk]]:
    """Mounts a disk of a size such as ``200k``; skips where that isn't allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> SmallDisk:
        try:
            return SmallDisk(folder, size)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"a small disk can't be mounted here: {error}")

    yield mount
    subprocess.run(["umount", "-l", folder], check=False, capture_output=True)  # noqa: S603, S607
