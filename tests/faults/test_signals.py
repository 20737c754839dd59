"""SIGTERM, Ctrl+C and SIGKILL during a run: it ends soon, its summary says so, and the next run continues."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import check_workdir, run, run_pipeline, start_run

SOON = 60.0  # seconds, on a busy machine; what a node's native code does can't be interrupted


def stop_run(config: Path, workdir: Path, number: signal.Signals, node: str) -> tuple[str, dict]:
    """Sends a signal to a run once it is in a node; returns its messages and its summary."""
    process = start_run(config, workdir, node)
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


@pytest.mark.long
def test_a_run_that_is_stopped_and_killed_in_turn_says_so_and_is_completed_with_whole_versions_only(config, tmp_path):
    workdir = tmp_path / "work"
    messages, summary = stop_run(config, workdir, signal.SIGTERM, "StatisticsGen")
    expected = "stopped by SIGTERM in StatisticsGen; the next run continues from there"
    assert expected in messages
    assert (summary["status"], summary["error"]) == ("failed", expected)
    process = start_run(config, workdir, "Trainer")
    time.sleep(random.random())  # noqa: S311 (no secret)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    check_workdir(workdir)
    check_completion(config, workdir)
    check_workdir(workdir)
    listed = json.loads(run("runs", workdir, "--json").stdout)
    assert sorted(entry["status"] for entry in listed) == ["done", "failed", "failed"]  # none is "running" for ever


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_can_be_stopped_in_each_of_its_nodes_and_the_last_one_completes(config, tmp_path, number):
    nodes = check_completion(config, tmp_path / "reference")["nodes"]
    for node in nodes[:-1]:  # a short one may end first: then the next one is stopped
        _, summary = stop_run(config, tmp_path / "work", number, node["id"])
        assert summary["error"].startswith(f"stopped by {number.name}")
    check_completion(config, tmp_path / "work")
