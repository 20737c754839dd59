import subprocess
import sys
import time
from pathlib import Path

from imagepipe.ingest import workers

ROOT = Path(__file__).resolve().parents[2]

FORKED = """
import os, sys, time
from imagepipe.ingest.workers import processes, shared
with processes(2):
    print(*{shared().submit(os.getpid).result() for _ in range(50)}, flush=True)
    assert "apache_beam" not in sys.modules
    time.sleep(float(sys.argv[1]))
assert shared() is None
"""


def start(seconds: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FORKED, seconds], cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_work_beside_this_one_and_end_with_the_block():
    with start("0") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        assert process.pid not in pids
        assert process.wait(timeout=20) == 0
    assert not any(map(alive, pids))


def test_processes_end_when_their_parent_is_killed():
    with start("60") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_nothing_is_forked_where_other_libraries_may_have_started_threads():
    import apache_beam  # noqa: F401

    with workers.processes(2):
        assert workers.shared() is None
