"""The server's end: from SIGTERM on all its ports take nothing new, and have one time to finish what they have.

uvicorn alone tells the application only when HTTP is done, so that other ports would go on until then, and their times
would add up.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CHECK_SECONDS = 0.05


class EndingServer(uvicorn.Server):
    """uvicorn, which ends together with other ports."""

    def __init__(self, config: uvicorn.Config, stop_others: Callable[[], Awaitable[None]], close: Callable[[], None]):
        """Makes it.

        Args:
            config: of uvicorn.
            stop_others: makes other ports take nothing new, and waits until they have finished what they have.
            close: called when all ports have, unless the user presses Ctrl+C twice.
        """
        super().__init__(config)
        self._stop_others, self._close = stop_others, close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes nothing new, and finishes what it has."""
        stopping = asyncio.ensure_future(self._stop_others())
        await super().shutdown(sockets)
        await self._wait(stopping.done)
        # In a thread that nobody waits for at the end, as those of asyncio are.
        closing = threading.Thread(target=self._close, name="closing", daemon=True)
        if not self.force_exit:
            closing.start()
            await self._wait(lambda: not closing.is_alive())
            await stopping  # which has ended, and may have failed

    async def _wait(self, is_over: Callable[[], bool]) -> None:
        """Waits until something is over, or the user has pressed Ctrl+C twice."""
        while not (is_over() or self.force_exit):
            await asyncio.sleep(_CHECK_SECONDS)


class LateAnswers:
    """ASGI middleware that answers requests for which no time is left: they are cancelled.

    It is inside of ``AccessLog``, which counts the answer, and of ``Guard``, with whose headers pages can read it.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and answers it if it is cancelled."""
        has_started = False

        async def send_observed(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not has_started:
                scope["state"]["refusal"] = "ending"
                content = {"error": "the server ends, and had no time left for this request"}
                await JSONResponse(content, 503, {"Retry-After": "1", "Connection": "close"})(scope, receive, send)
