"""ASGI middleware of the server: gives requests their id, counts and logs them."""

import logging
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagepipe.serving.answered import REQUEST_ID, choose_request_id
from imagepipe.serving.telemetry import REFUSED, REQUESTS, SECONDS

_REQUEST_ID = REQUEST_ID.encode()

_log = logging.getLogger("imagepipe.access")


class AccessLog:
    """Counts requests and refusals, and logs one line for each request, without its content.

    The request's state has its id, as ``request_id``, which each answer has as a header. Who refuses it for a reason
    that the status doesn't tell leaves it there, as ``refusal``.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and observes its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        state = scope.setdefault("state", {})
        request_id = state["request_id"] = choose_request_id(Headers(scope=scope).get(REQUEST_ID))
        # HEAD is answered as GET is, by every route; the connection leaves out the content.
        passed = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_REQUEST_ID, request_id.encode())]
            await send(message)

        try:
            await self._app(passed, receive, send_observed)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(passed.get("route"), "path", "other")  # not the path: labels are kept for ever
            REQUESTS.labels(route, status).inc()
            SECONDS.labels(route).observe(seconds)
            if reason := state.get("refusal") or (400 <= status < 500 and f"status_{status}"):
                REFUSED.labels(reason).inc()
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
                "instances": state.get("instances"),
                "request_id": request_id,
                "client": (scope.get("client") or [None])[0],
            }
            _log.info("request", extra={"fields": fields})
