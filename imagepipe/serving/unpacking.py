"""Bodies that arrive compressed: unpacked step by step, so that each part is counted before there is more of it."""

import asyncio
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from imagepipe.serving.types import RequestError

_STEP = 2**20  # a few milliseconds, and what a body may exceed its limit by
_GZIP = 16 + zlib.MAX_WBITS  # zlib's sign for a stream with gzip's header and checksum

# Not the thread that answers probes. Bodies take turns in it, step by step.
_unpacker = ThreadPoolExecutor(1, "unpack")


def unpack_body(headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> Receive:
    """Returns what receives a request's body as it was before its Content-Encoding; it may raise these.

    Raises:
        HTTPException: 415, if the body is compressed in another way than by gzip.
        RequestError: if the body isn't what gzip writes.
    """
    text = b",".join(value for name, value in headers if name == b"content-encoding").decode("latin-1")
    encodings = [name for name in (part.strip().lower() for part in text.split(",")) if name not in ("", "identity")]
    if not encodings:
        return receive
    if encodings in (["gzip"], ["x-gzip"]):  # the same: RFC 9110, 8.4.1.3
        return _GzippedBody(receive)

    async def refuse() -> Message:
        accepted = {"Accept-Encoding": "gzip", "Connection": "close"}  # RFC 9110, 15.5.16; the body is not read
        raise HTTPException(415, f"Content-Encoding: {text!a} is not taken; send the body unchanged, or gzip", accepted)

    return refuse


class _GzippedBody:
    """Receives a body in parts of at most _STEP bytes, unpacked."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._gzip = zlib.decompressobj(_GZIP)
        self._packed = b""
        self._has_more = False  # unpacked, and not yet taken
        self._is_complete = False  # all is here

    async def __call__(self) -> Message:
        if not self._has_more:
            message = await self._receive()
            if message["type"] != "http.request" or self._is_complete:  # the caller has left
                return message
            self._packed, self._is_complete = message.get("body", b""), not message.get("more_body", False)
        part = await asyncio.get_running_loop().run_in_executor(_unpacker, self._unpack)
        return {"type": "http.request", "body": part, "more_body": self._has_more or not self._is_complete}

    def _unpack(self) -> bytes:
        try:
            part = self._gzip.decompress(self._packed, _STEP)
        except zlib.error as error:
            raise RequestError("bad_gzip", f"the body is not what gzip writes: {error}") from None
        self._packed = self._gzip.unconsumed_tail
        self._has_more = bool(self._packed) or len(part) == _STEP
        if self._gzip.unused_data:
            raise RequestError("bad_gzip", "the body has further bytes after what gzip wrote")
        if self._is_complete and not self._has_more and not self._gzip.eof:
            raise RequestError("bad_gzip", "the body is cut: gzip's end is missing")
        return part
