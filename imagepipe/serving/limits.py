"""What a server takes on at once. Beyond it callers are told to come back, or that they ask too much."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 * 2**20
"""Bytes of a request: a large photo in base64, or a batch of common ones."""

MAX_BODIES = 4 * MAX_BODY
"""Bytes of all requests that are being read or answered."""

QUEUE = 256
"""Images that are waiting to be answered: eight batches."""


class TooBusyError(Exception):
    """There is too much to do already; the message says of what."""


class BodyTooLargeError(Exception):
    """A request is larger than is taken; the message says how large it may be."""


class limited:  # noqa: N801 (middleware, which reads as what it does where it is added)
    """Refuses bodies that are too large, before they are read as far as their size is known, and too many at once."""

    def __init__(self, app: ASGIApp):
        """Wraps an application."""
        self._app = app
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = 0
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")

        async def counted() -> Message:
            nonlocal held
            if int(announced) > MAX_BODY:
                raise BodyTooLargeError(f"the body is larger than {MAX_BODY >> 20} MiB")
            message = await receive()
            size = len(message.get("body", b""))
            if held + size > MAX_BODY:
                raise BodyTooLargeError(f"the body is larger than {MAX_BODY >> 20} MiB")
            if self._held + size > MAX_BODIES:
                raise TooBusyError("too many large requests are being answered")
            held += size
            self._held += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= held
