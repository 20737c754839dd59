"""A small disk, and commands run as a user does: in a process of their own."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow as tf

from imagepipe.deploy.versions import list_version_folders
from pipeline.logs import MARK
from tests.small_backbone import BACKBONE

ROOT = Path(__file__).resolve().parents[2]

# Whole pipelines in about a minute.
QUICK = ["image.size=[32, 32]", f"trainer.backbone={BACKBONE}", "trainer.weights=none", "trainer.epochs=1"]
QUICK += ["evaluation.intervals=none", "evaluation.thresholds.accuracy=0"]


def imagepipe(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "imagepipe", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(imagepipe(*arguments), capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603


def run_pipeline(config: Path, workdir: Path) -> list[str | Path]:
    """The arguments of ``imagepipe run``."""
    return ["run", config, "--workdir", workdir, "--json", *(part for key in QUICK for part in ("--set", key))]


def start_run(config: Path, workdir: Path, node: str) -> subprocess.Popen[str]:
    """Starts a run in a session of its own; returns its process, whose messages can be read, once it is in a node."""
    earlier = set(workdir.glob("runs/*"))
    process = subprocess.Popen(  # noqa: S603
        imagepipe(*run_pipeline(config, workdir)),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        logs = [folder / "log.txt" for folder in set(workdir.glob("runs/*")) - earlier]
        if any(log.is_file() and f"{MARK}{node}\n" in log.read_text(errors="replace") for log in logs):
            return process
        time.sleep(0.02)
    raise AssertionError(f"the run ended before {node}: {process.communicate()[1]}")


def check_workdir(workdir: Path) -> None:
    """Whatever the moment of a kill: runs can be listed, and a version that is live loads."""
    if not workdir.exists():
        return
    assert run("runs", workdir).returncode == 0
    (serving,) = [*(workdir / "serving").glob("*"), None][:1]
    for version in list_version_folders(serving) if serving else []:
        assert tf.saved_model.load(str(version)).signatures["serving_default"]


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
