"""TLS's handshakes of the server: each has a deadline, and the oldest make room for new ones.

uvicorn hears of a connection by TLS when its handshake is done, and can end none before: clients that never end theirs
would take all files that the process may have open, and with them the places of all others.
"""

import asyncio
import contextlib
import socket

import uvicorn

from imagepipe.serving.limits import MAX_HANDSHAKES, MAX_HEAD_SECONDS
from imagepipe.serving.telemetry import DROPPED

_PAUSE_SECONDS = 0.1  # where no connection can be accepted: with too many files open it is tried again


class TlsServer(uvicorn.Server):
    """uvicorn, which with TLS accepts each connection by itself; without TLS nothing is changed."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections."""
        if not self.config.ssl:
            await super().startup(sockets)
            return
        await super().startup([])
        self._accepting = [asyncio.create_task(self._accept(listening)) for listening in sockets or ()]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts no more connections, and ends the others when they are answered."""
        for task in (*self._accepting, *self._handshakes):
            task.cancel()
        await super().shutdown(sockets)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                client, _ = await loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if len(self._handshakes) >= MAX_HANDSHAKES:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
                DROPPED.labels("no_place").inc()
            task = loop.create_task(self._shake_hands(client))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))

    async def _shake_hands(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # all errors of TLS are; whatever it is, the connection is closed
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make_connection, client, ssl=self.config.ssl, ssl_handshake_timeout=MAX_HEAD_SECONDS
            )

    def _make_connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
