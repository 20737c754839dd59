"""Floods: what a hostile or broken client can send to a server on this machine; bounded in number, rate and time.

python -m benchmarks.traffic FLOOD URL MODEL SECONDS
"""

import asyncio
import contextlib
import gzip
import json
import resource
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from urllib.parse import urlsplit

FULL = 64 * 2**20  # the largest body that the server takes
BYTES_PER_SECOND = 125_000_000  # 1 Gbit/s, as a network card would bring them
CALLERS = 4  # of a flood of bodies, together at that rate
_CHUNK = 2**18
_OPENING = 50  # connections at once, until all are open
_SECONDS_BETWEEN = 1.0  # from one byte of a slow client to its next

Address = tuple[str, int]


def _fill(start: bytes, item: bytes, end: bytes) -> bytes:
    return start + item * ((FULL - len(start) - len(end)) // len(item)) + end


def _build_tensors(count: int) -> tuple[bytes, int]:
    """Returns a body in the binary form, with many tensors before half of its bytes, and the size of its JSON."""
    small = {"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 4}}  # one element
    large = small | {"parameters": {"binary_data_size": FULL // 2}}
    head = json.dumps({"inputs": [*[small] * count, large]}, separators=(",", ":")).encode()
    return head + bytes(4 * count) + b"\xff" * (FULL // 2), len(head)


def _post(path: str, length: int, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode()


async def _send_bodies(address: Address, path: str, body: bytes, *headers: str) -> None:
    """Sends a body again and again."""
    start, sent = time.monotonic(), 0

    async def call() -> None:
        nonlocal sent
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*address)
                with contextlib.closing(writer):
                    writer.write(_post(path, len(body), "Connection: close", *headers))
                    for at in range(0, len(body), _CHUNK):
                        writer.write(body[at : at + _CHUNK])
                        sent += _CHUNK
                        await writer.drain()
                        await asyncio.sleep(start + sent / BYTES_PER_SECOND - time.monotonic())
                    await reader.read()

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(call())


async def _hold(address: Address, count: int, first: bytes, then: bytes) -> None:
    """Keeps connections open that send something, and then little or nothing; what is cut is opened again."""
    opening = asyncio.Semaphore(_OPENING)

    async def hold() -> None:
        while True:
            with contextlib.suppress(OSError):
                async with opening:
                    _, writer = await asyncio.open_connection(*address)
                    writer.write(first)
                    await writer.drain()
                with contextlib.closing(writer):
                    while not writer.is_closing():
                        await asyncio.sleep(_SECONDS_BETWEEN)
                        writer.write(then)
                        await writer.drain()
            await asyncio.sleep(_SECONDS_BETWEEN)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(hold())


Flood = Callable[[Address, str], Coroutine[Any, Any, None]]


def _rest(body: Callable[[], bytes]) -> Flood:
    return lambda address, model: _send_bodies(address, f"/v1/models/{model}:predict", body())


def _tensors(address: Address, model: str) -> Coroutine[Any, Any, None]:
    body, length = _build_tensors(12_000)
    return _send_bodies(address, f"/v2/models/{model}/infer", body, f"Inference-Header-Content-Length: {length}")


def _bombs(address: Address, model: str) -> Coroutine[Any, Any, None]:
    return _send_bodies(address, f"/v1/models/{model}:predict", gzip.compress(bytes(FULL)), "Content-Encoding: gzip")


def _forms(address: Address, model: str) -> Coroutine[Any, Any, None]:
    """Sends what is no boundary of a form, but begins as one."""
    start = b'--X\r\nContent-Disposition: form-data; name="input"\r\n\r\n'
    body = _fill(start, b"\r\n--", b"\r\n--X--\r\n")
    return _send_bodies(address, f"/v1/models/{model}:predict", body, "Content-Type: multipart/form-data; boundary=X")


def _slow_bodies(address: Address, model: str) -> Coroutine[Any, Any, None]:
    return _hold(address, 120, _post(f"/v1/models/{model}:predict", FULL) + b" " * 2**21, b" ")


FLOODS: dict[str, Flood] = {
    "tensors in binary": _tensors,
    "empty values": _rest(partial(_fill, b'{"instances":[', b"{},", b"{}]}")),
    "deep values": _rest(partial(_fill, b"", b"[", b"")),
    "images that are none": _rest(partial(_fill, b'{"instances":[{"input":{"b64":"', b"AAAA", b'"}}]}')),
    "bombs": _bombs,
    "forms": _forms,
    "slow headers": lambda address, _: _hold(address, 500, b"GET / HTTP/1.1\r\nX: ", b"x"),
    "slow bodies": _slow_bodies,
    "answers unread": lambda address, _: _hold(address, 50, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 10, b""),
    "idle connections": lambda address, _: _hold(address, 2000, b"", b""),
}


async def run(flood: str, url: str, model: str, seconds: float) -> None:
    """Sends a flood for some seconds.

    Args:
        flood: a key of FLOODS.
        url: of the server.
        model: its name there.
        seconds: from start to end.
    """
    parts = urlsplit(url)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await FLOODS[flood]((parts.hostname or "", parts.port or 80), model)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    flood, url, model, seconds = sys.argv[1:]
    asyncio.run(run(flood, url, model, float(seconds)))
