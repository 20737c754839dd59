"""ASGI middleware of the server: counts and logs requests."""

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagepipe.serving.telemetry import REQUESTS, SECONDS

_log = logging.getLogger("imagepipe.access")


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
