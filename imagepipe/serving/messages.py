"""Messages of gRPC as they arrive: how many do so at once is bounded, and so is what all of them hold.

gRPC reads a message into memory before anybody hears of its size. One that isn't read yet holds no more than the
stream's window, 64 KiB.
"""

import asyncio
from collections.abc import Awaitable, Callable

from imagepipe.serving.bodies import TooBusyError
from imagepipe.serving.limits import (
    ENDING_BODY_SECONDS,
    MAX_BODIES_BYTES,
    MAX_BODY_SECONDS,
    MAX_MESSAGES,
    MAX_PLAIN_BYTES,
)
from imagepipe.serving.types import RequestError

_PATIENCE_SECONDS = 1.0  # for places; a common message takes milliseconds


def check_plain(message: bytes) -> None:
    """Checks the size of a message that asks about the server.

    Raises:
        RequestError: if it is larger than such a message may be.
    """
    if len(message) > MAX_PLAIN_BYTES:
        raise RequestError("wrong_type", f"the message has {len(message):,} bytes, and takes {MAX_PLAIN_BYTES:,}")


class Messages:
    """The messages that arrive or are being answered."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(MAX_MESSAGES)
        self._arriving: dict[asyncio.Timeout, None] = {}  # the slowest first
        self._held = 0
        self._is_ending = False

    async def read(self, receive: Callable[[], Awaitable[bytes]]) -> bytes:
        """Returns a message, which is held until it is released.

        Raises:
            TooBusyError: if others needed its place, it did not come in time, or those being answered are too large.
        """
        await self._take_place()
        try:
            async with asyncio.timeout(ENDING_BODY_SECONDS if self._is_ending else MAX_BODY_SECONDS) as patience:
                self._arriving[patience] = None
                message = await receive()
        except TimeoutError:
            raise TooBusyError("the message was slow to come") from None
        finally:
            self._arriving.pop(patience, None)
            self._places.release()
        if self._held + len(message) > MAX_BODIES_BYTES:
            raise TooBusyError("too many requests are being answered")
        self._held += len(message)
        return message

    def hurry(self) -> None:
        """Waits no longer for messages than there is time when the server ends."""
        self._is_ending = True
        for patience in self._arriving:
            if not patience.expired():
                patience.reschedule(asyncio.get_running_loop().time() + ENDING_BODY_SECONDS)

    def release(self, message: bytes) -> None:
        """Forgets a message that is answered."""
        self._held -= len(message)

    async def _take_place(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._places.acquire()
                    return
            except TimeoutError:
                if slowest := next(iter(self._arriving), None):
                    del self._arriving[slowest]
                    slowest.reschedule(0)
