"""What a server shows of itself: figures for Prometheus and a line of log for each request, without what was asked."""

import logging
import time

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = Counter("imagepipe_requests", "Requests by route and status.", ["route", "status"])
REFUSED = Counter("imagepipe_refused", "Requests that were refused, by reason.", ["reason"])
SECONDS = Histogram(
    "imagepipe_request_seconds",
    "From a request's first byte to its answer's last.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BATCH_SIZES = Histogram(
    "imagepipe_batch_size", "Images that the network was asked about at once.", buckets=(1, 2, 4, 8, 16, 32)
)
VERSION = Gauge("imagepipe_model_version", "The version that is live.")

_log = logging.getLogger("imagepipe.access")


class observed:  # noqa: N801 (middleware, which reads as what it does where it is added)
    """Counts and logs requests."""

    def __init__(self, app: ASGIApp):
        """Wraps an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and looks at its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500
        scope.setdefault("state", {})

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - begun
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
