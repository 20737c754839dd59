"""SIGKILL at any moment: nothing half done is taken for whole, and the same command completes.

A kill takes the whole process group, workers included, as a machine's end does. Of an ingest three moments in the gate,
twenty in ``make test-long``; of a run see ``test_signals`` for the gate.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tensorflow as tf

from tests.faults.conftest import ROOT, check_workdir, imagepipe, run, run_pipeline

MOMENTS = 20


def choose_moments(count: int) -> list[float]:
    """Random shares of a command's duration, spread evenly; a new draw every day."""
    seed = random.Random(time.strftime("%F"))  # noqa: S311 (no secret)
    return [(number + seed.random()) / count for number in range(count)]


def kill_after(seconds: float, *arguments: str | Path) -> bool:
    """Kills a command and its children after some time; returns whether it was still at work."""
    process = subprocess.Popen(  # noqa: S603
        imagepipe(*arguments), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def hash_records(folder: Path) -> dict[str, list[str]]:
    """The hashes of all records by split."""
    splits: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/*.tfrecord")):
        records = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        splits.setdefault(file.parent.name, []).extend(hashlib.sha256(record).hexdigest() for record in records)
    return {split: sorted(hashes) for split, hashes in splits.items()}


@pytest.mark.parametrize(
    "count", [pytest.param(3, marks=pytest.mark.slow), pytest.param(MOMENTS, marks=pytest.mark.long)]
)
def test_a_killed_ingest_is_completed_by_the_next_one(count, digits_folder, tmp_path):
    start = time.monotonic()
    assert run("ingest", digits_folder, "--out", tmp_path / "undisturbed").returncode == 0
    seconds = time.monotonic() - start
    expected = hash_records(tmp_path / "undisturbed")
    assert sum(map(len, expected.values())) == 400
    kills = 0
    for moment in choose_moments(count):
        out = tmp_path / f"{moment:.4f}"
        kills += kill_after(moment * seconds, "ingest", digits_folder, "--out", out)
        start = time.monotonic()
        completed = run("ingest", digits_folder, "--out", out)
        seconds = min(seconds, time.monotonic() - start)  # what runs beside these may have ended
        assert completed.returncode == 0, completed.stderr
        assert "400 records in = 400 written" in completed.stdout
        assert hash_records(out) == expected
        leftovers = [path for path in out.rglob("*") if ".staging" in path.name or path.name.endswith(".part")]
        assert leftovers == []
    print(f"\n{kills} of {count} ingests were killed at work, within {seconds:.1f} s")
    assert kills >= count // 2


@pytest.mark.long
def test_a_killed_run_is_continued_by_the_next_one_and_only_whole_versions_are_live(config, tmp_path):
    workdir = tmp_path / "work"
    arguments = run_pipeline(config, workdir)
    start = time.monotonic()
    assert run(*run_pipeline(config, tmp_path / "undisturbed")).returncode == 0
    seconds = time.monotonic() - start
    kills = 0
    for moment in choose_moments(MOMENTS):
        if not kill_after(moment * seconds, *arguments):
            shutil.rmtree(workdir)  # it had got so far by earlier tries that it ended: from the start
            continue
        kills += 1
        check_workdir(workdir)
    completed = run(*arguments)
    assert completed.returncode == 0, completed.stderr
    summary = json.loads(completed.stdout)
    assert summary["pushed_version"]
    check_workdir(workdir)
    listed = json.loads(run("runs", workdir, "--json").stdout)
    assert {entry["status"] for entry in listed} <= {"done", "failed"}  # none is "running" for ever
    again = json.loads(run(*arguments).stdout)
    assert all(node["cached"] for node in again["nodes"] if node["id"] != "Pusher")
    print(f"\n{kills} of {MOMENTS} runs were killed at work, within {seconds:.0f} s")
    assert kills >= MOMENTS // 2
