"""Limits of the server, below HTTP: lengths that are announced, and CPUs that the process doesn't have."""

import asyncio
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import joblib
import pytest
from joblib.externals.loky.backend import context
from PIL import Image

from imagepipe.serving import bodies, handler, limits
from imagepipe.serving.answered import Recorder
from imagepipe.serving.bodies import BodyLimit, BodyTooLargeError, TooBusyError
from imagepipe.serving.handler import Handler
from imagepipe.serving.types import Request
from tests.conftest import encode_image

CGROUPS = {
    "version 2": {"/sys/fs/cgroup/cpu.max": "150000 100000"},
    "version 1": {
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
        "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    },
}


@pytest.mark.parametrize("version", CGROUPS)
def test_as_many_images_are_decoded_at_once_as_the_container_has_cpus(version, monkeypatch):
    files = CGROUPS[version]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    with monkeypatch.context() as patched:
        patched.setattr(context.os.path, "exists", files.__contains__)
        patched.setattr(context, "open", lambda path: io.StringIO(files[path]), raising=False)
        asked_of = Handler(None, "m", Recorder())  # type: ignore[arg-type]  # it is asked nothing
    assert [semaphore._initial_value for semaphore in asked_of._checking.values()] == [2, 2]  # type: ignore[attr-defined]


@pytest.mark.parametrize("length", [b"9" * 5000, b"9" * 20, str(limits.MAX_BODY_BYTES + 1).encode(), b"-1", b"x", b""])
def test_no_content_length_is_an_error_of_the_server(length):
    """The HTTP parser refuses what is no number; here it must not fail, and a body is counted anyway."""
    answers = []

    async def app(scope, receive, send):
        try:
            await send((await receive())["body"])
        except BodyTooLargeError:
            await send("refused")

    async def receive():
        return {"type": "http.request", "body": b"body"}

    async def send(answer):
        answers.append(answer)

    asyncio.run(BodyLimit(app)({"type": "http", "headers": [(b"content-length", length)]}, receive, send))
    assert answers == ["refused" if length[:1] in (b"9", b"6") else b"body"]


class Upload:
    """A request that comes in parts, to a limit without a server; the app reads all of it, then waits."""

    def __init__(self, limit: BodyLimit):
        self.parts: asyncio.Queue = asyncio.Queue()
        self.refusal = ""
        self.task = asyncio.create_task(
            limit({"type": "http", "headers": [], "upload": self}, self.parts.get, self.send)
        )

    async def put(self, size: int, more_body: bool = True) -> None:
        await self.parts.put({"type": "http.request", "body": bytes(size), "more_body": more_body})
        for _ in range(5):
            await asyncio.sleep(0)

    async def send(self, message) -> None:
        pass

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


async def read_all(scope, receive, send) -> None:
    try:
        while (await receive())["more_body"]:
            pass
        await asyncio.sleep(60)
    except TooBusyError as error:
        scope["upload"].refusal = str(error)


def test_stalled_uploads_make_room_for_others(monkeypatch):
    monkeypatch.setattr(bodies, "MAX_BODIES_BYTES", 400)
    monkeypatch.setattr(bodies, "MAX_COMMON_BODIES_BYTES", 20)
    monkeypatch.setattr(bodies, "LARGE_BODY_BYTES", 10)

    async def run() -> None:
        limit = BodyLimit(read_all)
        stalled = [Upload(limit) for _ in range(4)]
        for upload in stalled:
            await upload.put(99)
        moving, common = Upload(limit), Upload(limit)
        await moving.put(50)
        await common.put(10)
        assert ["room" in upload.refusal for upload in [*stalled, moving, common]] == [True] + [False] * 5
        await stalled[1].put(1)  # now the third is the one that has sent nothing for longest
        await moving.put(60, more_body=False)
        assert ["room" in upload.refusal for upload in [*stalled, moving]] == [True, False, True, False, False]

        answered = [moving] + [Upload(limit) for _ in range(3)]
        for upload in answered[1:]:
            await upload.put(90, more_body=False)
        refused, other_common = Upload(limit), Upload(limit)
        await refused.put(50)
        await other_common.put(10)
        assert "being answered" in refused.refusal
        assert not any(upload.refusal for upload in [*answered, other_common])
        for upload in [*stalled, *answered, common, refused, other_common]:
            await upload.end()
        assert [budget._held for budget in limit._budgets.values()] == [0, 0]

    asyncio.run(run())


def test_requests_of_large_images_leave_places_for_common_ones(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    monkeypatch.setattr(handler, "LARGE_PIXELS", 1000)
    released = threading.Event()

    class Decoder:
        model = SimpleNamespace(task="classification")

        def check(self, requests):
            if requests[0].id == "large":
                assert released.wait(10)
            return requests

        def answer(self, requests, pixels, is_alone):
            return requests[0].id

    asked_of = Handler(None, "m", SimpleNamespace(record=lambda *_: None))  # type: ignore[arg-type]
    large, common = (encode_image(Image.new("RGB", (side, side)), "PNG") for side in (40, 20))
    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(asked_of._ask, Decoder(), [Request("large", large)], "id") for _ in range(2)]  # type: ignore[arg-type]
        try:
            asked = [Request("common", common), Request("broken", b"no image")]
            assert pool.submit(asked_of._ask, Decoder(), asked, "id").result(5) == "common"  # type: ignore[arg-type]
        finally:
            released.set()
        assert [future.result(10) for future in slow] == ["large"] * 2  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(("is_converted", "expected"), [(True, 1), (False, 3)])
def test_images_are_converted_for_no_more_requests_than_there_are_cpus(monkeypatch, is_converted, expected):
    """A photo of 1 MB may become 50: those that wait for their answers hold what they were sent."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    released, checked = threading.Event(), threading.Semaphore(0)

    class Engine:
        model = SimpleNamespace(task="classification")

        def check(self, requests):
            checked.release()
            return [Request(one.id, b"converted") if is_converted else one for one in requests]

        def answer(self, requests, pixels, is_alone):
            assert released.wait(10)
            return requests[0].id

    asked_of = Handler(None, "m", SimpleNamespace(record=lambda *_: None))  # type: ignore[arg-type]
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(asked_of._ask, Engine(), [Request(name, b"sent")], "id") for name in "abc"]  # type: ignore[arg-type]
        for _ in range(expected):
            assert checked.acquire(timeout=60)
        assert not checked.acquire(timeout=0.1)
        released.set()
        assert [call.result(10) for call in calls] == ["a", "b", "c"]  # type: ignore[comparison-overlap]
