"""ASGI middleware of the server: refuses bodies that are too large or too many, counts and logs requests."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagepipe.serving.limits import MAX_BODIES_BYTES, MAX_BODY_BYTES
from imagepipe.serving.telemetry import REQUESTS, SECONDS

_log = logging.getLogger("imagepipe.access")


class TooBusyError(Exception):
    """The server has too much to do already; the message gives the reason."""


class BodyTooLargeError(Exception):
    """A request exceeds the limit, which the message names."""


class BodyLimit:
    """Refuses bodies that are too large, without reading them if their size is announced, and too many at once."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_bytes = 0
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")

        async def receive_counted() -> Message:
            nonlocal body_bytes
            if int(announced) > MAX_BODY_BYTES:
                raise BodyTooLargeError(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")
            message = await receive()
            size = len(message.get("body", b""))
            if body_bytes + size > MAX_BODY_BYTES:
                raise BodyTooLargeError(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")
            if self._held_bytes + size > MAX_BODIES_BYTES:
                raise TooBusyError("too many large requests are being answered")
            body_bytes += size
            self._held_bytes += size
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._held_bytes -= body_bytes


class AccessLog:
    """Counts requests, and logs one line for each, without its content."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and observes its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        scope.setdefault("state", {})

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")  # not the path: labels are kept for ever
            REQUESTS.labels(route, status).inc()
            SECONDS.labels(route).observe(seconds)
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
                "instances": scope["state"].get("instances"),
                "client": (scope.get("client") or [None])[0],
            }
            _log.info("request", extra={"fields": fields})
