"""SIGTERM and Ctrl+C during a run: it ends soon, its summary says so, and the next run continues."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.logs import MARK
from tests.faults.conftest import ROOT, imagepipe, run, run_pipeline

SOON = 60.0  # seconds, on a busy machine; what a node's native code does can't be interrupted


def wait_for(path: Path, pattern: str, text: str, process: subprocess.Popen) -> None:
    """Waits until the newest of the files that match a pattern has a text."""
    while process.poll() is None:
        files = sorted(path.glob(pattern))
        if files and text in files[-1].read_text(errors="replace"):
            return
        time.sleep(0.02)
    raise AssertionError(f"the run ended without '{text}'")


def stop_run(config: Path, workdir: Path, number: signal.Signals, text: str) -> tuple[str, dict]:
    """Sends a signal to a run once its log has a text; returns its messages and its summary."""
    command = imagepipe(*run_pipeline(config, workdir))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)  # noqa: S603
    earlier = set(workdir.glob("runs/*"))
    while process.poll() is None and set(workdir.glob("runs/*")) == earlier:
        time.sleep(0.02)
    wait_for(workdir, "runs/*/log.txt", text, process)
    process.send_signal(number)
    start = time.monotonic()
    _, messages = process.communicate(timeout=5 * SOON)
    assert time.monotonic() - start < SOON
    assert process.returncode == 128 + number, messages
    assert f"stopped by {number.name}" in messages
    assert "Traceback" not in messages
    return messages, json.loads(max(workdir.glob("runs/*/summary.json")).read_text())


def check_completion(config: Path, workdir: Path) -> dict:
    completed = run(*run_pipeline(config, workdir))
    assert completed.returncode == 0, completed.stderr
    summary = json.loads(completed.stdout)
    assert summary["pushed_version"]
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(("node", "number"), [("StatisticsGen", signal.SIGTERM), ("Trainer", signal.SIGINT)])
def test_a_run_that_is_stopped_in_a_node_ends_soon_and_says_so(config, tmp_path, node, number):
    messages, summary = stop_run(config, tmp_path / "work", number, f"{MARK}{node}\n")
    expected = f"stopped by {number.name} in {node}; the next run continues from there"
    assert expected in messages
    assert (summary["status"], summary["error"]) == ("failed", expected)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_can_be_stopped_in_each_of_its_nodes_and_the_last_one_completes(config, tmp_path, number):
    nodes = check_completion(config, tmp_path / "reference")["nodes"]
    for node in nodes[:-1]:  # a short one may end first: then the next one is stopped
        _, summary = stop_run(config, tmp_path / "work", number, f"{MARK}{node['id']}\n")
        assert summary["error"].startswith(f"stopped by {number.name}")
    check_completion(config, tmp_path / "work")
