"""The servers of our pages: on loopback unless the user wants it, with the limits of the model's server."""

from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from imagepipe.serving.access import Access
from imagepipe.serving.connections import Connection, allow_connections, format_address, listen
from imagepipe.serving.handshakes import TlsServer


def serve_app(app: FastAPI, host: str, port: int, announce: Callable[[str], None], access: Access) -> None:
    """Serves pages until it is interrupted.

    Args:
        app: answers the requests; it checks ``access`` itself, see ``access.Guard``.
        host: the address to listen on.
        port: the port; 0 for any that is free.
        announce: gets the address.
        access: its certificate is the server's.

    Raises:
        ModelError: if it can't listen there.
    """
    with listen(host, port) as listening:
        announce(f"{access.scheme}://{format_address(*listening.getsockname()[:2])}")
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            log_level="warning",
            access_log=False,
            ssl_certfile=access.certificate,
            ssl_keyfile=access.key,
        )
        allow_connections()
        TlsServer(config).run([listening])
