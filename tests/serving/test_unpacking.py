"""Bodies that arrive compressed."""

import asyncio
import gzip
import json
import zlib

import pytest

from imagepipe.serving import bodies, limits
from imagepipe.serving.bodies import BodyLimit, BodyTooLargeError
from imagepipe.serving.unpacking import unpack_body
from tests.serving.test_server import INFER, PREDICT, b64, gray, instance

ROWS = json.dumps({"instances": [instance(gray(250), metadata="a")]}).encode()


@pytest.mark.parametrize("name", ["gzip", "GZIP", "x-gzip", "identity, gzip"])
def test_a_gzipped_request_is_answered_like_any_other(served, name):
    headers = {"Content-Encoding": name}
    (row,) = served.http.post(PREDICT, content=gzip.compress(ROWS), headers=headers).json()["predictions"]
    assert (row["label"], row["metadata"]) == ("light", "a")
    tensor = {"name": "input", "shape": [1], "datatype": "BYTES", "data": [b64(gray(10))["b64"]]}
    packed = gzip.compress(json.dumps({"inputs": [tensor]}).encode())
    assert served.http.post(INFER, content=packed, headers=headers).json()["outputs"][1]["data"] == ["dark"]
    packed, kind = gzip.compress(gray(250, "BMP")), {"Content-Type": "image/bmp"}
    (row,) = served.http.post(PREDICT, content=packed, headers=headers | kind).json()["predictions"]
    assert row["label"] == "light"


PACKED = gzip.compress(ROWS)
REFUSALS = {
    "not gzip": (ROWS, "gzip", 400, "not what gzip writes"),
    "a cut body": (PACKED[:-9], "gzip", 400, "the body is cut"),
    "nothing": (b"", "gzip", 400, "the body is cut"),
    "a wrong checksum": (PACKED[:-5] + b"\0" + PACKED[-4:], "gzip", 400, "not what gzip writes"),
    "bytes after its end": (PACKED + b"\0", "gzip", 400, "further bytes"),
    "two members": (PACKED * 2, "gzip", 400, "further bytes"),
    "deflate": (zlib.compress(ROWS), "deflate", 415, "'deflate' is not taken; send the body unchanged, or gzip"),
    "br": (b"", "br", 415, "'br' is not taken"),
    "twice": (gzip.compress(PACKED), "gzip, gzip", 415, "'gzip, gzip' is not taken"),
    "a bomb": (
        gzip.compress(bytes(limits.MAX_BODY_BYTES + 1), 1),
        "gzip",
        413,
        "the body is larger than 64 MiB, unpacked",
    ),
    "no header": (PACKED, "", 400, "It is gzip'd: send the header Content-Encoding: gzip"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_body_that_can_not_be_unpacked_is_refused_with_its_reason(served, case):
    body, encoding, status, words = REFUSALS[case]
    response = served.http.post(PREDICT, content=body, headers={"Content-Encoding": encoding})
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text
    assert response.headers.get("Accept-Encoding") == ("gzip" if status == 415 else None)


def receive_parts(*parts: bytes):
    messages = iter([{"type": "http.request", "body": part, "more_body": True} for part in parts])

    async def receive():
        return next(messages, {"type": "http.request", "body": b"", "more_body": False})

    return receive


def test_a_bomb_is_refused_before_it_is_unpacked_further(monkeypatch):
    """Its parts are counted one by one, against its own limit and that of all bodies."""
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 3 * 2**20)
    parts = []

    async def app(scope, receive, send):
        while (message := await receive())["more_body"]:
            parts.append(len(message["body"]))
            held.append(sum(budget._held for budget in limit._budgets.values()))

    held: list[int] = []
    limit = BodyLimit(app)
    headers = [(b"content-encoding", b"gzip")]
    bomb = gzip.compress(bytes(64 * 2**20))
    assert len(bomb) < 2**17
    with pytest.raises(BodyTooLargeError, match="unpacked"):
        asyncio.run(limit({"type": "http", "headers": headers}, receive_parts(bomb), None))
    assert parts == [2**20] * 3
    assert held == [2**20, 2 * 2**20, 3 * 2**20]
    assert sum(budget._held for budget in limit._budgets.values()) == 0


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_bodies_of_any_size_in_parts_of_any_size_are_whole(size):
    content = bytes(n % 251 for n in range(min(size, 1000))) + bytes(max(size - 1000, 0))
    packed = gzip.compress(content)

    async def read(step: int) -> bytes:
        parts = [packed[at : at + step] for at in range(0, len(packed), step)]
        receive, body = unpack_body([(b"content-encoding", b"gzip")], receive_parts(*parts)), b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                return body

    for step in (1, 7, len(packed)) if len(packed) < 5000 else (4096, len(packed)):
        assert asyncio.run(read(step)) == content


def test_the_limits_hold_for_what_is_packed_too(served):
    headers = {"Content-Encoding": "gzip"}
    response = served.http.post(PREDICT, content=bytes(limits.MAX_BODY_BYTES + 1), headers=headers)
    assert response.status_code == 413
