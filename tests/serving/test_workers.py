"""Worker processes: what ends them, and with which status. What they do as servers: ``test_serve``."""

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from imagepipe.serving import workers
from imagepipe.serving.telemetry import METRICS_FOLDER
from imagepipe.serving.workers import ReportReady, run_workers


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Restores what belongs to the whole process."""
    for name in ("LOKY_MAX_CPU_COUNT", "IMAGEPIPE_ALL_CPUS", "PROMETHEUS_MULTIPROC_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fail(report_ready: ReportReady) -> None:
    sys.exit(3)


def test_if_all_workers_end_by_themselves_their_status_is_that_of_the_server():
    start = time.monotonic()
    assert run_workers(2, fail) == 3
    assert time.monotonic() - start < 300


def serve_in_one_worker(folder: str, report_ready: ReportReady) -> None:
    """Serves in the first worker, fails in the next two, and ends the server in the fourth."""
    number = next(n for n in range(9) if take(f"{folder}/{n}"))
    if number in (1, 2):
        sys.exit(3)
    report_ready()
    if number:
        print(len(list(Path(os.environ[METRICS_FOLDER]).glob("histogram_*"))), flush=True)
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)


def take(folder: str) -> bool:
    try:
        os.rmdir(folder)  # noqa: PTH106 (as light as it is)
    except OSError:
        return False
    return True


def run_here(folder: str) -> int:
    """Runs the workers of the test below, in a process that may be ended by a signal: pytest's would take it along."""
    logging.basicConfig()
    workers._RETRY_SECONDS = 0.1
    return run_workers(2, partial(serve_in_one_worker, folder))


def test_a_worker_that_ends_by_itself_leaves_the_others_and_is_tried_again(tmp_path):
    for number in range(9):
        (tmp_path / str(number)).mkdir()
    code = f"import sys; from tests.serving.test_workers import run_here; sys.exit(run_here({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603 (ours)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"  # files of metrics: of two that live, and one for all that have ended
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["4", "5", "6", "7", "8"]
    assert done.stderr.count("ended by itself, with status 3; another one is tried") == 2
