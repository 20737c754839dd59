"""The server's end: on all ports at once, without waiting for clients that owe something, within Kubernetes' time."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from imagepipe.capture import writer
from imagepipe.serving import connections, grpc_port, handler, limits, messages, shadow, shadow_follower
from imagepipe.serving.access import Access, Guard
from imagepipe.serving.answered import Recorder
from imagepipe.serving.connections import Connection, PortHolder
from imagepipe.serving.ending import EndingServer, LateAnswers
from tests.serving.test_connections import BODY, GET, answer, read_all, wait_until

LONG = 60.0
PAGES = Access(origins=["https://app.example"])


def test_all_that_an_end_takes_fits_into_the_time_that_kubernetes_waits():
    closing = shadow_follower._CLOSE_SECONDS + shadow._CLOSE_SECONDS + writer._CLOSE_SECONDS
    assert limits.GRACE_SECONDS + closing <= 28


class Others:
    """Another port, and what is closed at the end."""

    def __init__(self):
        self.events: list[str] = []
        self.finished, self.closable = threading.Event(), threading.Event()
        self.closable.set()

    async def stop(self) -> None:
        self.events.append("stopped")
        while not self.finished.is_set():
            await asyncio.sleep(0.01)
        self.events.append("finished")

    def close(self) -> None:
        self.closable.wait(LONG)
        self.events.append("closed")


async def wait_for_ever(scope, receive, send):
    if scope["path"] != "/ever":
        await answer(scope, receive, send)
        return
    await asyncio.sleep(LONG)


@contextmanager
def run(others: Others, grace: float = LONG) -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(
        Guard(LateAnswers(wait_for_ever), PAGES, "192.0.2.1"),
        http=Connection,
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=grace,
    )
    server = EndingServer(config, others.stop, others.close)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.address = listening.getsockname()  # type: ignore[attr-defined]
        thread = server.thread = threading.Thread(target=server.run, args=([listening],))  # type: ignore[attr-defined]
        thread.start()
        try:
            yield server
        finally:
            others.finished.set()
            others.closable.set()
        thread.join(LONG)
        assert not thread.is_alive()


def connect(server, *sent: bytes) -> socket.socket:
    client = socket.create_connection(server.address, timeout=LONG)
    for part in sent:
        client.sendall(part)
    deadline = time.monotonic() + LONG
    while not any(one.client == client.getsockname() for one in list(server.server_state.connections)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return client


def test_what_is_being_answered_is_and_clients_that_owe_something_are_cut(monkeypatch, caplog):
    monkeypatch.setattr(connections, "ENDING_BODY_SECONDS", 0.5)
    others = Others()
    with run(others) as server:
        asked = connect(server, GET.replace(b"now", b"later"))
        stalled = [connect(server, *sent) for sent in ([GET[:9]], [BODY % b"body", b"x"], [BODY % b"later", b"x"])]
        late = connect(server, BODY % b"body", b"x" * 900)
        start = time.monotonic()
        server.should_exit = True
        late.sendall(b"x" * 100)
        assert read_all(asked).startswith(b"HTTP/1.1 200")
        assert read_all(late).startswith(b"HTTP/1.1 200")
        assert not any(b"500" in read_all(client) for client in stalled)
        assert others.events == ["stopped"]
    assert time.monotonic() - start < LONG / 2
    assert others.events == ["stopped", "finished", "closed"]
    assert "Traceback" not in caplog.text
    for client in (asked, late, *stalled):
        client.close()


def test_a_request_for_which_there_is_no_time_left_is_refused(caplog):
    with run(Others(), grace=0.5) as server, connect(server, GET.replace(b"now", b"ever")) as client:
        server.should_exit = True
        head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in head
    assert b"no time left" in body
    assert "Traceback" not in caplog.text


def test_a_page_of_another_origin_can_read_that_there_is_no_time_left():
    page = b"\r\nOrigin: https://app.example\r\n\r\n"
    with run(Others(), grace=0.5) as server:
        asked = GET.replace(b"now", b"ever").replace(b": x", b": 127.0.0.1").replace(b"\r\n\r\n", page)
        with connect(server, asked) as client:
            server.should_exit = True
            head = read_all(client).partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 503")
    assert b"access-control-allow-origin: https://app.example" in head


@pytest.mark.parametrize("waits_for", ["another port", "capture"])
def test_ctrl_c_twice_ends_it_whatever_it_waits_for(waits_for):
    others = Others()
    if waits_for == "capture":
        others.closable.clear()
        others.finished.set()
    with run(others) as server:
        server.should_exit = True
        wait_until(lambda: others.events == (["stopped"] if waits_for == "another port" else ["stopped", "finished"]))
        time.sleep(0.5)  # uvicorn's own part of the end takes less
        server.force_exit = True
        server.thread.join(LONG / 4)
        assert not server.thread.is_alive()
        assert "closed" not in others.events


class Later:
    """Stands for a service's descriptor."""

    full_name = "later.Later"


def test_grpc_takes_nothing_new_and_ends_with_the_last_answer(monkeypatch):
    """Streams that clients leave open, and messages that don't come, don't keep it from ending."""
    monkeypatch.setattr(messages, "ENDING_BODY_SECONDS", 0.5)
    asked, answered = asyncio.Event(), asyncio.Event()

    async def answer_later(message: bytes, request_id: str) -> tuple[health_pb2.HealthCheckResponse, None]:
        asked.set()
        await answered.wait()
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING), None

    async def end() -> None:
        port = grpc_port.GrpcPort(handler.Handler(None, "m", Recorder()), Access(), holder.address)  # type: ignore[arg-type]
        monkeypatch.setattr(grpc_port, "build_methods", lambda _: {Later: {"Ask": answer_later}})
        await port.start()
        async with grpc.aio.insecure_channel(holder.address) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            looking = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await looking.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            assert (await looking.read()).list_services_response.service
            call = channel.unary_unary("/later.Later/Ask")(b"")
            stalled = channel.stream_unary("/later.Later/Ask")()
            await asked.wait()
            stopping = asyncio.ensure_future(port.stop())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError):
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            with pytest.raises(grpc.aio.AioRpcError, match="slow to come"):
                await stalled
            assert not stopping.done()
            answered.set()
            assert health_pb2.HealthCheckResponse.FromString(await call).status
            await asyncio.wait_for(stopping, limits.GRACE_SECONDS / 2)

    holder = PortHolder("127.0.0.1", 0)
    asyncio.run(asyncio.wait_for(end(), LONG))
