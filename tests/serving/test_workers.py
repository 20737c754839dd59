"""Worker processes: what ends them, and with which status. What they do as servers: ``test_serve``."""

import os
import signal
import sys
import time
from functools import partial

import pytest

from imagepipe.serving.workers import run_workers


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Restores what belongs to the whole process."""
    for name in ("LOKY_MAX_CPU_COUNT", "PROMETHEUS_MULTIPROC_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def exit_in_one_worker(turns: str) -> None:
    try:
        os.rmdir(turns)  # noqa: PTH106 (as light as it is)
    except OSError:
        time.sleep(600)
    sys.exit(3)


def test_a_worker_that_ends_by_itself_ends_the_others_and_its_status_is_that_of_all(tmp_path):
    (tmp_path / "turn").mkdir()
    start = time.monotonic()
    assert run_workers(2, partial(exit_in_one_worker, str(tmp_path / "turn"))) == 3
    assert time.monotonic() - start < 300
