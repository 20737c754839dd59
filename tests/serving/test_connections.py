"""Connections of clients that are slow, idle, many or excessive: over loopback, to a server with small limits."""

import asyncio
import re
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import trustme
import uvicorn

from imagepipe.base.errors import ModelError
from imagepipe.serving import connections, handshakes
from imagepipe.serving.connections import Connection
from imagepipe.serving.handshakes import TlsServer

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
    with start(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=["uvloop", "asyncio"])
def tls_server(monkeypatch, authority, request, tmp_path) -> Iterator[uvicorn.Server]:
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "tls.pem")
    with start(monkeypatch, TlsServer, ssl_certfile=tmp_path / "tls.pem", loop=request.param) as server:
        yield server


@contextmanager
def start(monkeypatch, kind=uvicorn.Server, **options) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, DUE))
    server = kind(uvicorn.Config(answer, http=Connection, ws="none", log_config=None, lifespan="off", **options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server.address = listening.getsockname()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield server
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
    assert connections._waiting[server.server_state] == {}


def trust(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def shake_hands(client: socket.socket, authority: trustme.CA) -> ssl.SSLSocket:
    return trust(authority).wrap_socket(client, server_hostname="127.0.0.1")


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


def test_callers_by_tls_are_answered(tls_server, authority, monkeypatch):
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, 60.0))
    for _ in range(3):
        with shake_hands(connect(tls_server), authority) as client:
            client.sendall(GET)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    wait_until(lambda: not tls_server.server_state.connections)


def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(tls_server, authority, monkeypatch):
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, 60.0))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trust(authority).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with connect(tls_server) as client:

        def call(method, *arguments):
            while True:
                try:
                    return method(*arguments)
                except ssl.SSLWantReadError:
                    client.sendall(outgoing.read())
                    incoming.write(client.recv(2**16))

        call(tls.do_handshake)
        call(tls.write, GET)
        assert call(tls.read, 1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", GET], ids=["silent", "the start of a handshake", "no TLS"])
def test_a_client_that_does_not_end_the_handshake_is_cut(tls_server, sent, monkeypatch):
    monkeypatch.setattr(handshakes, "MAX_HEAD_SECONDS", DUE)
    with connect(tls_server) as client:
        client.sendall(sent)
        assert b"HTTP" not in read_all(client)  # which ends, as the server cuts it
    wait_until(lambda: not tls_server._handshakes)


def test_handshakes_are_bounded_and_the_oldest_make_room_for_others(tls_server, authority, monkeypatch):
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, 60.0))
    monkeypatch.setattr(handshakes, "MAX_HANDSHAKES", 8)
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(tls_server)) for _ in range(30)]
        with shake_hands(connect(tls_server), authority) as client:
            client.sendall(GET)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert [read_all(one) for one in silent[:22]] == [b""] * 22
        wait_until(lambda: len(tls_server._handshakes) <= 8)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LATE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def test_the_end_of_the_server_gives_a_slow_reader_no_more_time(server, monkeypatch):
    monkeypatch.setattr(connections, "_SECONDS", dict.fromkeys(connections._SECONDS, 60.0))
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(GET.replace(b"now", b"much"))
        wait_until(lambda: any(one._debt == "answer" for one in list(server.server_state.connections)))
        (connection,) = server.server_state.connections
        earlier = connection._deadline.when()
        time.sleep(0.05)
        server.should_exit = True
        wait_until(lambda: connection._is_ending)
        assert connection._deadline.when() == earlier


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
