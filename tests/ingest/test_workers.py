import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagepipe.ingest import workers

ROOT = Path(__file__).resolve().parents[2]

FORKED = """
import os, sys, time
from imagepipe.ingest.workers import fork
with fork(2) as processes:
    print(*{processes.submit(os.getpid).result() for _ in range(50)}, flush=True)
    assert "apache_beam" not in sys.modules
    time.sleep(float(sys.argv[1]))
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

    with workers.fork(2) as processes:
        assert processes is None


def test_work_ahead_is_bounded_and_results_keep_their_order():
    started, lock = 0, threading.Lock()

    def work(item):
        nonlocal started
        with lock:
            started += 1
        time.sleep(0.001 * (item % 3))
        return item

    with ThreadPoolExecutor(3) as pool:
        for taken, item in enumerate(workers.map_in_order(pool, work, range(60), ahead=5)):
            assert item == taken
            assert started <= taken + 5
