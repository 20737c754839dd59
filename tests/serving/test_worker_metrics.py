"""Metrics of several processes: one live version for all, and totals that outlive those that have ended."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from imagepipe.serving import worker_metrics
from imagepipe.serving.worker_metrics import keep_totals, read_metrics

WORKER = """
import os, sys
from imagepipe.serving.telemetry import BATCH_SIZES, REFUSED, VERSION
for kind in sys.argv[2:]:
    REFUSED.labels(kind).inc()
    BATCH_SIZES.observe(len(kind))
if sys.argv[1]:
    VERSION.set(int(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(folder):
    """Starts processes with metrics of their own; yields a function that takes their version and their refusals."""
    processes = []

    def start(version: str, *kinds: str) -> int:
        command = [sys.executable, "-c", WORKER, version, *kinds]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        processes.append(process)
        return int(process.stdout.readline())

    yield start
    for process in processes:
        process.communicate("", timeout=60)


def read_samples() -> dict[str, float]:
    text, kind = read_metrics("")
    assert kind.startswith("text/plain")
    pairs = (line.rsplit(" ", 1) for line in text.decode().splitlines() if line.startswith("imagepipe_"))
    return {name: float(value) for name, value in pairs}


def test_a_worker_that_has_no_model_yet_is_no_older_version(start):
    start("7")
    start("8")
    start("")
    assert read_samples()["imagepipe_model_version"] == 7


def test_files_of_workers_that_have_ended_become_one_and_no_total_changes(start, folder):
    pids = [start("7", "late", "late"), start("7", "late", "other"), start("7")]
    living = start("7", "late")
    (folder / f"counter_{pids[2]}.db").write_bytes(b"")  # as one leaves it that is killed at once
    for file in folder.glob(f"*_{pids[2]}.db"):
        file.write_bytes(b"")
    earlier = read_samples_without(folder, pids[2])
    for _ in range(2):
        keep_totals(str(folder), pids)
        assert {name: value for name, value in read_samples().items() if "private" not in name} == earlier
    assert earlier['imagepipe_refused_total{reason="late"}'] == 4
    assert earlier["imagepipe_batch_size_sum"] == 4 + 4 + 4 + 5 + 4
    assert sorted(file.name for file in folder.glob("*.db")) == sorted(
        [f"{kind}_{end}.db" for kind in ("counter", "histogram") for end in (living, "ended")]
        + [f"gauge_livemin_{living}.db"]
    )


def read_samples_without(folder: Path, pid: int) -> dict[str, float]:
    aside = [file.rename(file.with_suffix(".aside")) for file in folder.glob(f"*_{pid}.db")]
    samples = {name: value for name, value in read_samples().items() if "private" not in name}
    for file in aside:
        file.rename(file.with_suffix(".db"))
    return samples


def test_nothing_is_moved_while_somebody_reads(start, folder):
    pids = [start("7", "late")]
    with (folder / worker_metrics.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert keep_totals(str(folder), pids) is False
        assert read_samples()['imagepipe_refused_total{reason="late"}'] == 1
        assert (folder / f"counter_{pids[0]}.db").exists()
    assert keep_totals(str(folder), pids) is True
    assert read_samples()['imagepipe_refused_total{reason="late"}'] == 1


def test_an_error_loses_no_total_counts_none_twice_and_leaves_no_gauge_behind(start, folder, monkeypatch, caplog):
    pids = [start("7", "late"), start("8", "late", "other")]
    earlier = read_samples()
    replace, has_space = os.replace, iter([True, False, False, True])

    def replace_if_there_is_space(*files) -> None:
        if not next(has_space):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(*files)

    monkeypatch.setattr(os, "replace", replace_if_there_is_space)
    keep_totals(str(folder), pids)
    samples = read_samples()
    for name in ('imagepipe_refused_total{reason="late"}', "imagepipe_batch_size_sum", "imagepipe_batch_size_count"):
        assert samples[name] == earlier[name], name
    assert not list(folder.glob("gauge_live*"))
    assert not list(folder.glob("*.new"))
    assert len(list(folder.glob("counter_*"))) == len(list(folder.glob("histogram_*"))) == 2
    assert caplog.text.count("No space left") == 2


def test_the_file_of_totals_has_all_its_blocks(start, folder):
    """A worker's own file has holes: who writes there on a full disk is killed, and that is all workers' parent."""
    keep_totals(str(folder), [start("7", "late")])
    for file in folder.glob("*_ended.db"):
        state = file.stat()
        assert state.st_blocks * 512 >= state.st_size
        assert list(MmapedDict.read_all_values_from_file(file))
