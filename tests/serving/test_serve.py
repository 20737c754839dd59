"""The server as a process: a soak with bad requests and changing versions, and its end."""

import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from imagepipe.capture import files
from tests.serving.conftest import save_brightness
from tests.serving.test_server import PREDICT, b64, gray, instance

pytestmark = pytest.mark.slow

REQUESTS, CALLERS = 10_000, 16
BAD = {
    "not JSON": b"{",
    "'x' is not known": {"instances": [instance(gray(1), x=1)]},
    "nothing to predict": {"instances": []},
    "'input' is missing": {"instances": [{"metadata": "x"}]},
    "has to be a string": {"instances": [instance(gray(1), metadata=1)]},
    "not valid base64": {"instances": [{"input": {"b64": "é"}}]},
    "not an image": {"instances": [instance(b"text")]},
    "truncated image": {"instances": [instance(gray(1)[:-20])]},
}


@contextmanager
def serving(
    folder: Path, *options: str, program: Sequence[str] = ("-m", "imagepipe")
) -> Iterator[tuple[subprocess.Popen, str]]:
    """Runs ``imagepipe serve`` on any free port; yields the process and its URL once it listens.

    Args:
        folder: of the versions.
        options: of the command.
        program: arguments for Python that make it the command line.
    """
    command = [sys.executable, *program, "serve", str(folder), "--port", "0", *options]
    with (folder.parent / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 (our own command)
        try:
            deadline = time.monotonic() + 300
            while not (listening := [line for line in lines(log.name) if line["message"].startswith("listening")]):
                assert process.poll() is None, Path(log.name).read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            scheme = "https" if "--certificate" in options else "http"
            yield process, f"{scheme}://127.0.0.1:{listening[0]['port']}"
        finally:
            process.kill()
            process.wait()


def lines(log: str) -> list[dict]:
    return [json.loads(line) for line in Path(log).read_text().splitlines() if line.startswith("{")]


def add_version(folder: Path, version: int) -> None:
    names = (f"dark{version}", f"light{version}")
    saved = save_brightness(folder.parent / f"saved-{version}", folder.parent / "assets", names)
    saved.rename(folder / str(version))


def hurry_shadow(server: int) -> None:
    """Gives the version in shadow the usual priority: else it waits for other tests, which may take all CPUs."""
    (behind,) = (p for p in psutil.Process(server).children() if "spawn_main" in " ".join(p.cmdline()))
    assert os.sched_getscheduler(behind.pid) == os.SCHED_IDLE
    for thread in behind.threads():
        os.sched_setscheduler(thread.id, os.SCHED_OTHER, os.sched_param(0))


def test_a_soak_with_bad_requests_while_versions_change(tmp_path):
    folder = tmp_path / "brightness"
    folder.mkdir()
    add_version(folder, 1)
    outcomes: Counter[str] = Counter()
    memory = []
    with serving(folder) as (process, url), httpx.Client(base_url=url, timeout=60) as http:
        server = psutil.Process(process.pid)

        def live() -> int:
            return int(http.get("/v1/models/brightness").json()["model_version_status"][0]["version"])

        confirmed = live()
        done = itertools.count(1)
        bad = itertools.cycle(BAD.items())
        images = {"dark": b64(gray(10)), "light": b64(gray(250))}
        lock = threading.Lock()

        def ask(number: int) -> None:
            nonlocal confirmed
            if number % 20 == 0:
                with lock:
                    reason, body = next(bad)
                response = http.post(PREDICT, **{"content" if isinstance(body, bytes) else "json": body})
                assert (response.status_code, reason in response.json()["error"]) == (400, True), response.text
                outcomes[reason] += 1
            else:
                expected, at_least = ("dark", "light")[number % 2], confirmed
                response = http.post(
                    PREDICT, json={"instances": [{"input": images[expected], "metadata": str(number)}]}
                )
                assert response.status_code == 200, response.text
                (row,) = response.json()["predictions"]
                assert row["metadata"] == str(number)
                assert row["label"].rstrip("0123456789") == expected
                assert int(row["label"].removeprefix(expected)) >= at_least
                outcomes["answered"] += 1
            if (count := next(done)) % 1000 == 0:
                memory.append((count, server.memory_info().rss / 2**20))

        def change_versions() -> None:
            nonlocal confirmed
            for version in (2, 3, 4):
                start = sum(outcomes.values())
                while sum(outcomes.values()) < start + 1500:
                    time.sleep(0.01)
                add_version(folder, version)
                while live() != version:
                    time.sleep(0.05)
                confirmed = version

        changing = threading.Thread(target=change_versions, daemon=True)
        changing.start()
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(ask, range(REQUESTS)))
        changing.join(60)
        assert confirmed == 4
        assert http.post(PREDICT, json={"instances": [instance(gray(250))]}).json()["predictions"][0]["label"] == (
            "light4"
        )
    print("memory, MiB by requests:", memory)
    assert outcomes == {"answered": REQUESTS * 19 // 20} | dict.fromkeys(BAD, 0) | Counter(
        itertools.islice(itertools.cycle(BAD), REQUESTS // 20)
    )
    # TensorFlow's allocator keeps some memory of the last version's load; a leak of one image per request would be
    # 4 MiB, of one batch's tensors more.
    assert memory[-1][1] - memory[1][1] < 150


def test_sigterm_finishes_pending_requests_and_refuses_new_ones(tmp_path):
    folder = tmp_path / "brightness"
    folder.mkdir()
    save_brightness(folder / "1", tmp_path / "assets", rounds=1000)
    with (
        serving(folder) as (process, url),
        httpx.Client(base_url=url, timeout=60) as http,
        ThreadPoolExecutor(4) as pool,
    ):
        # Two seconds of work, and less than GRACE_SECONDS on a machine that is slow.
        asked = [pool.submit(http.post, PREDICT, json={"instances": [instance(gray(250))] * 32}) for _ in range(3)]
        time.sleep(0.5)
        assert not [future.result() for future in asked if future.done()]
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.post(url + PREDICT, json={"instances": [instance(gray(1))]})
        for future in asked:
            assert [row["label"] for row in future.result().json()["predictions"]] == ["light"] * 32
        assert process.wait(30) in (0, -signal.SIGTERM)


def test_a_client_that_stops_in_the_middle_delays_no_end_and_what_was_answered_is_captured(model, tmp_path):
    """Kubernetes waits 30 s for all of it."""
    (tmp_path / "brightness").mkdir()
    (tmp_path / "brightness" / "7").symlink_to(model)
    capture = tmp_path / "traffic"
    options = ("--grpc-port", "0", "--capture", str(capture), "--capture-rate", "1")
    with serving(tmp_path / "brightness", *options) as (process, url), socket.socket() as stalled:
        (listening,) = [line for line in lines(str(tmp_path / "log")) if line["message"].startswith("listening")]
        stalled.connect(("127.0.0.1", listening["port"]))
        stalled.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{".encode())
        assert httpx.post(url + PREDICT, json={"instances": [instance(gray(250))]}, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        with grpc.insecure_channel(listening["grpc"]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.RpcError):  # noqa: PT012 (right after the signal it may still be answered)
                while time.monotonic() < start + 60:
                    health.Check(health_pb2.HealthCheckRequest(), timeout=60)
                    time.sleep(0.05)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert time.monotonic() - start < 28
    (part,) = files.list_parts(str(capture))
    assert pq.read_table(part, partitioning=None).num_rows == 1
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert [line["status"] for line in lines(str(tmp_path / "log")) if line["message"] == "request"] == [200, 499]


def test_readmes_curl_line_is_answered_for_a_large_photo_at_addresses_of_both_kinds(model, tmp_path):
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers" / "7").symlink_to(model)
    pixels = np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").stat().st_size > 2**21
    (line,) = [line for line in Path("README.md").read_text().splitlines() if line.startswith("curl ")]
    with serving(tmp_path / "flowers", "--host", "::") as (_, url):
        port = url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            assert "127.0.0.1:8080" in line
            command = shlex.split(line.replace("127.0.0.1:8080", f"{host}:{port}"))
            done = subprocess.run([*command, "-sg"], cwd=tmp_path, capture_output=True, check=True)  # noqa: S603
            assert json.loads(done.stdout)["predictions"][0]["label"] in ("dark", "light")
    (announced,) = [entry["message"] for entry in lines(str(tmp_path / "log")) if entry["message"].startswith("listen")]
    assert announced == f"listening on http://[::]:{port}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}"], "neither a SavedModel"),
        ([], "give a model"),
        (["{model}", "--port", "{taken}"], "can't listen on 127.0.0.1"),
    ],
)
def test_a_server_that_cannot_start_gives_the_reason_without_a_traceback(model, tmp_path, arguments, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"model": str(model), "folder": str(tmp_path), "taken": taken.getsockname()[1]}
        command = [
            sys.executable,
            "-m",
            "imagepipe",
            "serve",
            *(argument.format(**values) for argument in arguments),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_answered_before_sigterm_is_captured_and_what_another_version_answers_in_shadow(model, tmp_path):
    """By the whole way: the command line, a request, the writer, its end, and the metrics meanwhile."""
    capture = tmp_path / "traffic"
    (tmp_path / "brightness").mkdir()
    (tmp_path / "brightness" / "7").symlink_to(model)
    (tmp_path / "brightness" / "shadow").mkdir()
    add_version(tmp_path / "brightness" / "shadow", 8)
    options = ("--capture", str(capture), "--capture-rate", "1", "--capture-images", "thumbnail", "--shadow", "newest")
    with serving(tmp_path / "brightness", *options) as (process, url), httpx.Client(base_url=url, timeout=60) as http:
        body = {"instances": [instance(gray(value), metadata=f"id-{value}") for value in (10, 250)]}
        answer = http.post(PREDICT, json=body)
        assert 'imagepipe_answers_total{label="dark",version="7"} 1.0' in http.get("/metrics").text
        answered = 'imagepipe_shadow_images_total{outcome="answered",version="8"} 2.0'
        hurry_shadow(process.pid)
        deadline = time.monotonic() + 300
        while answered not in http.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    part, shadows = files.list_parts(str(capture))
    rows, others = (pq.read_table(p, partitioning=None).to_pylist() for p in (part, shadows))
    assert [row["label"] for row in others] == ["dark8", "light8"]
    assert [(row["version"], row["shadow"], row["image"]) for row in others] == [("8", True, None)] * 2
    for name in ("request_id", "sha256", "metadata"):
        assert [row[name] for row in others] == [row[name] for row in rows]
    assert {row["request_id"] for row in rows} == {answer.headers["x-request-id"]}
    for row, prediction in zip(rows, answer.json()["predictions"], strict=True):
        assert row["metadata"].decode() == prediction["metadata"]
        assert row["label"] == prediction["label"]
        assert row["classes"] == pytest.approx(prediction["classes"])
        assert row["novelty"] == pytest.approx(prediction["novelty"])
        assert row["image"].startswith(b"\xff\xd8")
        assert (row["width"], row["height"]) == (20, 20)


def test_workers_share_the_port_their_metrics_are_added_up_and_they_end_with_their_parent(tmp_path):
    folder = tmp_path / "brightness"
    folder.mkdir()
    add_version(folder, 1)
    with serving(folder, "--workers", "2", "--grpc-port", "0") as (process, url):
        parent = psutil.Process(process.pid)

        def wait_for(count: int) -> list[psutil.Process]:
            """Waits until so many workers have listened, dead ones included; returns those that are alive."""
            deadline = time.monotonic() + 300
            while sum(line["message"].startswith("listening") for line in lines(str(tmp_path / "log"))) < count:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            return [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]

        def ask(number: int) -> str:
            response = httpx.post(url + PREDICT, json={"instances": [instance(gray(250))]}, timeout=60)
            return response.json()["predictions"][0]["label"]

        def count_answers() -> float:
            figures = httpx.get(f"{url}/metrics", timeout=60).text
            (line,) = [line for line in figures.splitlines() if line.startswith("imagepipe_batch_size_sum")]
            assert "imagepipe_model_version 1.0" in figures
            memory = re.findall(r'^imagepipe_private_memory_bytes{pid="(\d+)"} (\S+)$', figures, re.MULTILINE)
            assert {int(pid) for pid, _ in memory} == {worker.pid for worker in workers}
            assert all(float(size) > 50e6 for _, size in memory)
            return float(line.rsplit(" ", 1)[1])

        workers = wait_for(2)
        assert len(workers) == 2
        warmed = count_answers()
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(ask, range(40))) == {"light1"}
        assert count_answers() == warmed + 40
        assert all(sum(worker.cpu_times()[:2]) > 0 for worker in workers)

        workers[0].kill()
        again = wait_for(3)
        assert len(again) == 2
        assert workers[1] in again
        assert {ask(number) for number in range(10)} == {"light1"}
        process.kill()
        assert psutil.wait_procs(again, timeout=60)[1] == []
