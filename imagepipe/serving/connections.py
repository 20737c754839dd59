"""Connections of the server: each has a deadline for what its client owes, and the slowest make room for new ones.

uvicorn has neither. Its ``limit_concurrency`` refuses everybody while idle connections hold all places, its parser
accepts headers of any number and length, and a client that reads no answer is waited for without end. With TLS they
begin when the handshake is done, see ``handshakes``.
"""

import asyncio
import math
import resource
import socket
from collections.abc import Iterable
from typing import Any, Literal
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from imagepipe.base.errors import ModelError
from imagepipe.serving.limits import (
    ENDING_BODY_SECONDS,
    MAX_ANSWERS_BYTES,
    MAX_BODY_SECONDS,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_HEAD_SECONDS,
    MAX_HEADERS,
    MAX_IDLE_SECONDS,
    MAX_PIPELINED,
)
from imagepipe.serving.telemetry import DROPPED

_OTHER_FILES = 512  # of models, libraries, threads and TLS connections that are being made
_Debt = Literal["idle", "head", "body", "answer"]

_SECONDS: dict[_Debt, float] = {
    "idle": MAX_IDLE_SECONDS,
    "head": MAX_HEAD_SECONDS,
    "body": MAX_BODY_SECONDS + 5,  # the handler answers after MAX_BODY_SECONDS; this is for those that read no body
    "answer": MAX_IDLE_SECONDS,
}

# Of each server: connections whose client owes something, the longest first.
_waiting: WeakKeyDictionary[ServerState, dict["Connection", None]] = WeakKeyDictionary()


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """Listens for connections, at an address of IPv4 or IPv6; ``::`` stands for all addresses of both.

    Args:
        host: an address, or a name; of its addresses one of IPv4 is taken, if it has any.
        port: the port; 0 for any that is free.
        option: where the user gave it.

    Raises:
        ModelError: if it can't.
    """
    try:
        family, is_dual = _choose_family(host, port)
        return socket.create_server((host, port), family=family, dualstack_ipv6=is_dual)
    except (OSError, UnicodeError) as error:  # the second one of a name that is too long
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"can't listen on {format_address(host, port)}: {reason}. Give another --host or {option}."
        ) from error


def _choose_family(host: str, port: int) -> tuple[socket.AddressFamily, bool]:
    addresses = {family: address[0] for family, _, _, _, address in socket.getaddrinfo(host or None, port)}
    family = socket.AF_INET if socket.AF_INET in addresses else socket.AF_INET6
    return family, addresses.get(socket.AF_INET6) == "::" and socket.has_dualstack_ipv6()


class PortHolder:
    """A port that no other program can take, while sockets of one or several of our processes listen on it.

    Attributes:
        port: its number.
        address: address and port, as URLs have them.
    """

    def __init__(self, host: str, port: int, option: str = "--port"):
        """Takes a port.

        Args:
            host: see ``listen``; the others likewise.
            port: see ``listen``.
            option: see ``listen``.

        Raises:
            ModelError: if it is taken.
        """
        with listen(host, port, option) as probe:  # which, unlike those that share a port, notices others
            host, self.port = probe.getsockname()[:2]
        self.address = format_address(host, self.port)
        self._socket = join_port(host, self.port)


def join_port(host: str, port: int) -> socket.socket:
    """Returns a socket that is to listen on a port together with others (SO_REUSEPORT)."""
    family, is_dual = _choose_family(host, port)
    shared = socket.socket(family)
    if family == socket.AF_INET6:
        shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((host, port))
    return shared


def format_address(host: str, port: int) -> str:
    """Returns an address as URLs have it: one of IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def allow_connections() -> None:
    """Lets this process have as many files open as MAX_CONNECTIONS needs, or as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _count_places() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, max(soft - _OTHER_FILES, 1))


def _bound_answers(waiting: Iterable["Connection"]) -> None:
    """Cuts the slowest readers while the answers that are not read are too large together."""
    readers = [connection for connection in waiting if connection._debt == "answer"]
    sizes = [connection.transport.get_write_buffer_size() for connection in readers]
    excess = sum(sizes) - MAX_ANSWERS_BYTES
    for connection, size in zip(readers, sizes, strict=True):
        if excess <= 0:
            break
        connection._drop("slow_answer")
        excess -= size


class Connection(HttpToolsProtocol):
    """One client's connection.

    At each moment its client owes a request's head or body or the reading of an answer, or it is the server's turn. A
    debt is due after _SECONDS, however many bytes come meanwhile. A new connection that finds no place takes that of
    the connection whose client has been due for longest; those that wait for the server are never cut.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._waiting = _waiting.setdefault(self.server_state, {})
        self._in_head = self._is_write_paused = self._is_ending = False
        self._head_bytes = self._unread_bytes = 0
        self._debt: _Debt | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Makes room for the connection."""
        super().connection_made(transport)
        self._settle()
        if len(self.connections) > _count_places():
            next(iter(self._waiting))._drop("no_place")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        super().connection_lost(exc)
        self._set_debt(None)

    def shutdown(self) -> None:
        """Ends the connection when it has its answer; for the rest of a request there is little time."""
        super().shutdown()
        self._is_ending = True
        is_due_later = self._deadline and self._deadline.when() > self.loop.time() + ENDING_BODY_SECONDS
        if is_due_later and self._debt != "answer":  # who reads slowly has the time that it had
            self._set_debt(self._debt)

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request; what the parser holds back for the rest of a header or a line is bounded."""
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too long.")
        self._settle()

    def on_message_begin(self) -> None:
        """Starts a request."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError("too many requests before an answer")
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_url(self, url: bytes) -> None:
        """Takes a part of the URL."""
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header, or a trailer."""
        super().on_header(name, value)
        self._count_head(len(name) + len(value))
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        """Ends a request's head."""
        super().on_headers_complete()
        self._in_head, self._unread_bytes = False, 0

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        super().on_body(body)
        self._unread_bytes = 0

    def on_message_complete(self) -> None:
        """Ends a request."""
        super().on_message_complete()
        self._unread_bytes = 0

    def on_response_complete(self) -> None:
        """Ends an answer."""
        super().on_response_complete()
        self._settle()

    def pause_writing(self) -> None:
        """Waits for the client to read."""
        super().pause_writing()
        self._is_write_paused = True
        self._settle()

    def resume_writing(self) -> None:
        """Continues an answer."""
        super().resume_writing()
        self._is_write_paused = False
        self._settle()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        self._unread_bytes = 0
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too long")

    def _settle(self) -> None:
        """Sets the deadline for what the client owes now; an earlier deadline for the same is kept."""
        if self.cycle is None or self.cycle.response_complete:
            debt: _Debt | None = "answer" if self._is_write_paused else "head" if self._in_head else "idle"
        else:
            debt = "answer" if self._is_write_paused else "body" if self.cycle.more_body else None
        if debt != self._debt and self in self.connections:
            self._set_debt(debt)
        if debt == "answer":
            _bound_answers(self._waiting)

    def _set_debt(self, debt: _Debt | None) -> None:
        self._debt = debt
        self._waiting.pop(self, None)
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        if debt:
            self._waiting[self] = None
            reason = None if debt == "idle" else f"slow_{debt}"
            seconds = min(_SECONDS[debt], ENDING_BODY_SECONDS if self._is_ending and debt != "answer" else math.inf)
            self._deadline = self.loop.call_later(seconds, self._drop, reason)

    def _drop(self, reason: str | None) -> None:
        """Cuts the connection, and counts it if there is a reason: that an idle one ends is no event."""
        if reason:
            DROPPED.labels(reason).inc()
        self._set_debt(None)
        self.transport.abort()
