"""Connections of clients that are slow, idle, many or excessive: over loopback, to a server with small limits."""

import asyncio
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import uvicorn

from imagepipe.base.errors import ModelError
from imagepipe.serving import connections
from imagepipe.serving.connections import Connection

GET = b"GET /now HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
DUE, LATE = 0.25, 5.0


async def answer(scope, receive, send):
    """Answers at once, after half a second, after the body, or much."""
    kind = scope["path"].strip("/")
    if kind == "later":
        await asyncio.sleep(4 * DUE)
    while kind == "body":
        message = await receive()
        if message["type"] == "http.disconnect" or not message["more_body"]:
            break
    parts = 100 if kind == "parts" else 1
    part = b"." * (30_000_000 // parts if kind in ("parts", "much") else 2)
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % (parts * len(part)))],
        }
    )
    for number in range(parts):
        await send({"type": "http.response.body", "body": part, "more_body": number < parts - 1})


@pytest.fixture
def server(monkeypatch) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, DUE))
    server = uvicorn.Server(uvicorn.Config(answer, http=Connection, ws="none", log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.address = listening.getsockname()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield server
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
    assert connections._waiting[server.server_state] == {}


def connect(server) -> socket.socket:
    return socket.create_connection(server.address, timeout=LATE)


def read_all(client: socket.socket) -> bytes:
    """Returns what comes until the server ends the connection."""
    parts = []
    try:
        while part := client.recv(2**16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (b"GET /now HTTP/1.1\r\nX: ", b"x"),
        (BODY % b"body", b"x"),
        (BODY % b"now", b"x"),
        (GET, b""),
        (GET, b"\r\n"),
    ],
    ids=["silent", "empty lines", "a head", "a body", "a body that nobody reads", "after an answer", "lines after it"],
)
def test_a_client_that_sends_a_byte_now_and_then_is_cut(server, first, then):
    with connect(server) as client:
        client.sendall(first)
        deadline = time.monotonic() + LATE
        with pytest.raises(ConnectionError):  # noqa: PT012 (which of the two calls fails is a matter of timing)
            while time.monotonic() < deadline:
                client.sendall(then or b"")
                time.sleep(DUE / 8)
                client.settimeout(0.001)
                try:
                    if not client.recv(1000):
                        raise ConnectionResetError
                except TimeoutError:
                    pass


@pytest.mark.parametrize(
    ("first", "reason"),
    [(b"", None), (GET, None), (GET + b"GET /", "slow_head"), (BODY % b"body", "slow_body")],
    ids=["silent", "after an answer", "a head", "a body"],
)
def test_the_end_of_an_idle_connection_is_not_counted_as_a_cut(server, first, reason):
    def count() -> dict[str, float]:
        samples = next(iter(connections.DROPPED.collect())).samples
        return {sample.labels["reason"]: sample.value for sample in samples if sample.name.endswith("_total")}

    earlier = count()
    with connect(server) as client:
        client.sendall(first)
        read_all(client)
    assert [kind for kind, value in count().items() if value != earlier.get(kind, 0)] == ([reason] if reason else [])


@pytest.mark.parametrize("kind", [b"much", b"parts"])
def test_a_client_that_reads_no_answer_is_cut(server, kind):
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(GET.replace(b"now", kind))
        deadline = time.monotonic() + LATE
        while not server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        while server.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not server.server_state.connections


def test_answers_that_nobody_reads_are_bounded_together(server, monkeypatch):
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, 60.0))
    monkeypatch.setattr(connections, "MAX_ANSWERS_BYTES", 50_000_000)
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(4)]
        for client in clients:
            client.sendall(GET.replace(b"now", b"much"))
            client.recv(1)
        assert [len(read_all(client)) > 29_000_000 for client in clients[:-1]].count(True) <= 1
        assert len(clients[-1].recv(2**20)) > 1000


def test_a_client_that_waits_for_the_server_is_not_cut(server):
    with connect(server) as client:
        client.sendall(GET.replace(b"now", b"later"))
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_new_connections_take_the_place_of_those_that_are_idle(server, monkeypatch):
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, 60.0))
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    with connect(server) as busy, ExitStack() as stack:
        busy.sendall(GET.replace(b"now", b"later"))
        idle = [stack.enter_context(connect(server)) for _ in range(30)]
        with connect(server) as client:
            client.sendall(GET)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert busy.recv(1000).startswith(b"HTTP/1.1 200")
        assert read_all(idle[0]) == b""
        assert len(server.server_state.connections) <= 8


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: x\r\n" % n for n in range(101)),
        b"X: " + b"x" * 2**20,
        b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(70)) + b"\r\n",
        b"\r\nGET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        CHUNKED + b"1\r\nx\r\n0\r\nX: " + b"x" * 2**20,
        CHUNKED + b"1;" + b"x" * 2**20,
        b"\r\nHost: x\r\n".join([b"\r\nGET /later HTTP/1.1"] * 1000),
    ],
    ids=[
        "headers",
        "an endless header",
        "a header at once",
        "headers at once",
        "a URL at once",
        "an endless trailer",
        "an endless extension of a chunk",
        "requests",
    ],
)
def test_an_excessive_head_is_refused(server, head, monkeypatch):
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, 60.0))
    with connect(server) as client:
        try:
            client.sendall(b"GET /later HTTP/1.1\r\nHost: x\r\n" + head)
        except ConnectionError:
            return
        assert read_all(client)[:12] in (b"HTTP/1.1 400", b"")


def test_a_large_body_in_small_chunks_is_no_head(server):
    with connect(server) as client:
        client.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"4\r\nbody\r\n" * 50_000 + b"0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")


def test_some_requests_may_be_sent_before_an_answer(server):
    with connect(server) as client:
        client.sendall(
            GET.replace(b"now", b"later") + GET * 9 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        assert read_all(client).count(b"HTTP/1.1 200") == 11


def test_the_limit_of_open_files_is_raised_as_far_as_needed(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: limits.append(values))
    for soft, hard in ((1024, 2048), (1024, 10**6), (1024, resource.RLIM_INFINITY), (10**6, 10**6)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, values=(soft, hard): values)
        connections.allow_connections()
    needed = connections.MAX_CONNECTIONS + connections._OTHER_FILES
    assert limits == [(2048, 2048), (needed, 10**6), (needed, resource.RLIM_INFINITY)]


@pytest.mark.parametrize(
    ("host", "reached", "url"),
    [
        ("127.0.0.1", ["127.0.0.1"], "127.0.0.1:"),
        ("localhost", ["127.0.0.1"], "127.0.0.1:"),
        ("::1", ["::1"], "[::1]:"),
        ("::", ["::1", "127.0.0.1"], "[::]:"),
        ("0.0.0.0", ["127.0.0.1"], "0.0.0.0:"),  # noqa: S104 (closed at once)
    ],
)
def test_addresses_of_both_kinds_are_listened_on(host, reached, url):
    with connections.listen(host, 0) as listening:
        address, port = listening.getsockname()[:2]
        assert connections.format_address(address, port) == f"{url}{port}"
        for other in reached:
            socket.create_connection((other, port), 5).close()


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "192.0.2.1:0: "), ("2001:db8::1", "[2001:db8::1]:0: "), ("a" * 64, ":0: "), ("[::1]", ":0: ")],
)
def test_an_address_that_can_not_be_listened_on_is_named(host, words):
    with pytest.raises(ModelError, match=f"can't listen on .*{re.escape(words)}.* Give another --host or --port"):
        connections.listen(host, 0)
