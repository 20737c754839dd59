import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagepipe.base import workers

ROOT = Path(__file__).resolve().parents[2]

FORKED = """
import os, sys, time
from imagepipe.base.workers import fork
with fork(2) as processes:
    print(*{processes.submit(os.getpid).result() for _ in range(50)}, flush=True)
    assert "apache_beam" not in sys.modules
    time.sleep(float(sys.argv[1]))
"""


# A decoder that dies of files with a mark, in the first reading or, of images that are encoded again, in the second.
DYING = """
import os, signal, sys
from imagepipe.base import images
from imagepipe.ingest.command import ingest

def die_in(name):
    decode = getattr(images, name)
    def decode_or_die(data, **options):
        if b"crash in " + name.encode() in data: os.kill(os.getpid(), signal.SIGSEGV)
        if b"hog in " + name.encode() in data: os.kill(os.getpid(), signal.SIGKILL)
        if b"greed in " + name.encode() in data: raise MemoryError
        if b"exit in " + name.encode() in data: os._exit(3)
        if b"kill the worker" in data: os.kill(os.getppid(), signal.SIGKILL)
        return decode(data, **options)
    setattr(images, name, decode_or_die)

die_in("keep_unchanged")
die_in("normalize")
print(ingest(sys.argv[1], sys.argv[2], workers=2))
"""


class Unpicklable(Exception):  # noqa: N818
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


# Errors and answers that don't get from the child to its parent.
UNSENDABLE = """
from imagepipe.base.workers import fork, map_survivably
from tests.base.test_workers import Unpicklable

class Incomplete(Exception):
    def __init__(self, text, code):
        super().__init__(text)

def raise_unpicklable(item): raise Unpicklable(f"of {item}")
def raise_incomplete(item): raise Incomplete(f"of {item}", 7)
def raise_ordinary(item): raise KeyError(f"of {item}")
def answer_unpicklable(item): return lambda: item
def answer(item): return f"{item} is done"
def map_one(do): return map_survivably(do, lambda item, reason: reason, ["one"])

with fork(1) as processes:
    for do in (raise_unpicklable, raise_incomplete, raise_ordinary, answer_unpicklable, answer):
        try:
            print(*processes.submit(map_one, do).result())
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
"""

FORKED_FOR_LONG = """
import os, signal, time
from imagepipe.base.workers import fork
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in a shell's background ignores it
try:
    with fork(2) as processes:
        for _ in range(9):
            processes.submit(time.sleep, 60)
        print(os.getpid(), *processes._processes, flush=True)
        time.sleep(60)
finally:
    print("tidied up", flush=True)
"""


# A worker of a pool, which multiprocessing lets start no process.
IN_A_POOL = """
from multiprocessing import Pool
from imagepipe.base.workers import fork

def work(_):
    with fork(1) as pool:
        return type(pool).__name__

with Pool(1) as pool:
    print(pool.map(work, range(2)))
"""


def ingest_with_a_dying_decoder(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", DYING, str(folder / "source"), str(folder / "out")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603


def start(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)  # noqa: S603


def end_soon(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_work_beside_this_one_and_end_with_the_block():
    with start(FORKED, "0") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        assert process.pid not in pids
        assert process.wait(timeout=20) == 0
    assert not any(map(alive, pids))


def test_processes_end_when_their_parent_is_killed():
    with start(FORKED, "60") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert end_soon(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_soon_with_a_process_that_is_ended_whatever_they_are_at(number):
    with start(FORKED_FOR_LONG) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert all(map(alive, pids))
        process.send_signal(number)
        if number == signal.SIGINT:
            assert process.stdout.read() == "tidied up\n"
        process.wait(timeout=10)
    assert end_soon(pids)


def test_threads_work_where_other_libraries_may_have_started_some():
    import apache_beam  # noqa: F401

    with workers.fork(2) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()


def test_threads_work_in_a_worker_of_a_pool():
    process = start(IN_A_POOL)
    output, _ = process.communicate(timeout=60)
    assert "['ThreadPoolExecutor', 'ThreadPoolExecutor']" in output


def test_a_file_that_kills_its_decoder_is_quarantined_and_nothing_else(tmp_path, put, crops, encode, photos, lines):
    ways = ("crash", "hog", "greed", "exit")
    for i, data in enumerate(crops(30)):
        put(f"source/{'ab'[i % 2]}/{i:02}.jpg", data)
    for way in ways:
        put(
            f"source/a/0 {way}.jpg",
            encode(photos[0].crop((0, 0, 90, 60)), "JPEG") + f"{way} in keep_unchanged".encode(),
        )
        put(f"source/b/9 {way}.bmp", encode(photos[0].crop((0, 0, 90, 61)), "BMP") + f"{way} in normalize".encode())
    result = ingest_with_a_dying_decoder(tmp_path)
    assert result.stdout == (
        "38 records in = 30 written (30 new, 0 were there already) + 8 quarantined + 0 duplicates\n"
    ), result.stderr
    reasons = {
        Path(entry["path"]).name.split()[1]: entry["reason"] for entry in lines(tmp_path / "out/quarantine.jsonl")
    }
    assert reasons == {
        f"{way}.{kind}": reason
        for kind in ("jpg", "bmp")
        for way, reason in zip(
            ways,
            (
                "the decoder crashed (SIGSEGV)",
                "the decoder crashed (SIGKILL, as when memory runs out)",
                "memory ran out while it was decoded",
                "the decoder ended its process: exit status 3",
            ),
            strict=True,
        )
    }


def test_an_error_or_answer_that_cannot_be_sent_is_an_error_and_not_a_decoder_that_died():
    command = [sys.executable, "-c", UNSENDABLE]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    unpicklable, incomplete, ordinary, answer, following = result.stdout.splitlines()
    assert unpicklable == "RuntimeError: Unpicklable('of one')"
    assert incomplete == "RuntimeError: Incomplete('of one')"
    assert ordinary == "KeyError: 'of one'"
    assert "pickle" in answer
    assert "decoder" not in answer
    assert following == "one is done"
    assert result.stderr == ""


def test_a_worker_that_is_killed_from_outside_is_one_clear_error_and_nothing_is_written(tmp_path, put, crops):
    put("source/a/1.jpg", crops(1)[0] + b"kill the worker")
    result = ingest_with_a_dying_decoder(tmp_path)
    assert "IngestError: A worker process was killed from outside, so nothing was written" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


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
