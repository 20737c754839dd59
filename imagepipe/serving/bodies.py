"""Bodies of requests as they arrive: their size is bounded, one by one and together, and the slowest make room.

What counts is the size after unpacking.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagepipe.serving.limits import LARGE_BODY_BYTES, MAX_BODIES_BYTES, MAX_BODY_BYTES, MAX_COMMON_BODIES_BYTES
from imagepipe.serving.unpacking import unpack_body

_MAX_DIGITS = 19  # of a length: int() refuses to read 5,000, and what is no number is refused by the HTTP parser


class TooBusyError(Exception):
    """The server has too much to do already; the message gives the reason."""


class BodyTooLargeError(Exception):
    """A request exceeds the limit, which the message names."""


class BodyLimit:
    """Refuses bodies that are too large, without reading them if their size is announced, and too many at once."""

    def __init__(self, app: ASGIApp):
        self._app = app
        # Of their own: large bodies, which may take a minute to come, never keep common ones from being taken.
        self._budgets = {False: _Budget(MAX_COMMON_BODIES_BYTES), True: _Budget(MAX_BODIES_BYTES)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body()
        receive_unpacked = unpack_body(scope["headers"], receive)
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        is_too_large = len(announced) > _MAX_DIGITS or (announced.isdigit() and int(announced) > MAX_BODY_BYTES)

        async def receive_counted() -> Message:
            message = {} if is_too_large else await body.wait(receive_unpacked)
            size = body.size + len(message.get("body", b""))
            if is_too_large or size > MAX_BODY_BYTES:
                unpacked = "" if receive_unpacked is receive else ", unpacked"
                raise BodyTooLargeError(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB{unpacked}")
            body.is_complete = not message.get("more_body")
            is_large = size > LARGE_BODY_BYTES
            self._budgets[not is_large].release(body)
            self._budgets[is_large].hold(body, size)
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            for budget in self._budgets.values():
                budget.release(body)


class _Body:
    """A body, complete or not: its bytes so far, and the time until which its next ones are waited for."""

    def __init__(self) -> None:
        self.size, self.is_complete = 0, False
        self.patience: asyncio.Timeout | None = None  # while it is waited for

    async def wait(self, receive: Receive) -> Message:
        if self.is_complete:  # it waits for the caller to leave
            return await receive()
        try:
            async with asyncio.timeout(None) as self.patience:
                return await receive()
        except TimeoutError:
            raise TooBusyError("others needed the room of this request, which was slow to come") from None
        finally:
            self.patience = None


class _Budget:
    """Bytes that some bodies may hold together."""

    def __init__(self, limit: int):
        self._limit, self._held = limit, 0
        self._bodies: dict[_Body, None] = {}  # those that have sent nothing for longest come first

    def hold(self, body: _Body, size: int) -> None:
        """Lets a body have a size; if there is no room, those that have sent nothing for longest lose theirs.

        Raises:
            TooBusyError: if all room is that of requests being answered.
        """
        self.release(body)
        while self._held + size > self._limit:
            slowest = next((other for other in self._bodies if other.patience), None)
            if slowest is None or slowest.patience is None:
                raise TooBusyError("too many requests are being answered")
            slowest.patience.reschedule(0)
            self.release(slowest)
        self._held, body.size = self._held + size, size
        if size:
            self._bodies[body] = None

    def release(self, body: _Body) -> None:
        """Forgets a body."""
        if body in self._bodies:
            del self._bodies[body]
            self._held -= body.size
