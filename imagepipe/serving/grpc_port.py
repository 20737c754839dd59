"""The server's gRPC port: KServe's Open Inference Protocol v2 and TensorFlow Serving's services, health and reflection.

It runs in the event loop of the HTTP server, asks the same handler, and shows in the same metrics and log.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import grpc
from google.protobuf.message import Message
from starlette.exceptions import HTTPException

from imagepipe.base.errors import ConfigError
from imagepipe.serving.access import Access, find_refusal
from imagepipe.serving.answered import REQUEST_ID, choose_request_id
from imagepipe.serving.bodies import TooBusyError
from imagepipe.serving.grpc_methods import Method, build_methods
from imagepipe.serving.grpc_services import bound_method
from imagepipe.serving.handler import Handler
from imagepipe.serving.limits import (
    GRACE_SECONDS,
    MAX_CONNECTIONS,
    MAX_ERROR_CHARACTERS,
    MAX_HEAD_SECONDS,
    MAX_IDLE_SECONDS,
    MAX_MESSAGE_BYTES,
    MAX_PIPELINED,
)
from imagepipe.serving.messages import Messages
from imagepipe.serving.telemetry import REFUSED, REQUESTS, SECONDS
from imagepipe.serving.types import RequestError

try:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection
except ImportError as error:
    raise ConfigError("--grpc-port needs packages that are not installed: pip install 'imagepipe-tfx[grpc]'") from error

_CANCEL_SECONDS = 0.1  # at most: gRPC cancels within a millisecond
_OPEN = "/grpc.health.v1.Health/Check"  # without a token, as probes have none
_OPTIONS = {
    "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
    "grpc.max_send_message_length": -1,
    "grpc.max_concurrent_streams": 16 * MAX_PIPELINED,
    "grpc.max_connection_idle_ms": 1000 * MAX_IDLE_SECONDS,
    "grpc.server_handshake_timeout_ms": 1000 * MAX_HEAD_SECONDS,
    "grpc.http2.bdp_probe": 0,  # else the window of a stream that isn't read yet grows to megabytes
    "grpc.so_reuseport": 1,  # beside the socket that holds the port, and other workers
}
_CHECK_SECONDS = 0.1  # whether all calls are answered

_log = logging.getLogger("imagepipe.serve")
_access_log = logging.getLogger("imagepipe.access")


class GrpcPort:
    """A gRPC server in the event loop that starts it."""

    def __init__(self, handler: Handler, access: Access, address: str):
        """Makes it.

        Args:
            handler: answers the requests.
            access: the token that callers need, and the certificate. Names of hosts and pages are a browser's matter.
            address: where to listen, see ``connections.PortHolder``.
        """
        self._handler, self._access, self._address = handler, access, address

    async def start(self) -> None:
        """Starts to answer."""
        self._messages = Messages()
        self._calls: set[Any] = set()  # that are being answered
        services = build_methods(self._handler)
        routes = {f"/{service.full_name}/{name}" for service, methods in services.items() for name in methods}
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[_Door(self._access, routes, self._messages, self._health)],
            options=list(_OPTIONS.items()),
            maximum_concurrent_rpcs=MAX_CONNECTIONS,
        )
        names = [service.full_name for service in services]
        for service, methods in services.items():
            handlers = {name: self._serve(f"/{service.full_name}/{name}", method) for name, method in methods.items()}
            self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service.full_name, handlers)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        if self._access.certificate:
            self._server.add_secure_port(self._address, _read_credentials(self._access))
        else:
            self._server.add_insecure_port(self._address)
        await self._server.start()

    async def stop(self) -> None:
        """Takes nothing new, and waits until what it has is answered."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(GRACE_SECONDS))
        self._messages.hurry()
        await asyncio.sleep(_CHECK_SECONDS)  # for those who watch the health
        while self._calls and not stopping.done():
            await asyncio.sleep(_CHECK_SECONDS)
        await self._server.stop(None)  # who watches the health, or may ask what there is, would never end
        await stopping

    def _serve(self, route: str, method: Method) -> Any:
        """Returns a method as gRPC takes it.

        It is one of a stream, which on the wire is the same, so that a message is read when there is a place for it.
        """

        async def serve(stream: AsyncIterator[bytes], context: Any) -> bytes:
            start, status, images = time.perf_counter(), grpc.StatusCode.OK, None
            self._calls.add(context)
            context.add_done_callback(self._calls.discard)
            request_id = _choose_id(context)
            try:
                message = await self._read(stream)
                # What a caller who gave up asked for is computed all the same, and counts until then.
                answering = asyncio.ensure_future(self._answer(method, message, request_id))
                answer, images = await asyncio.shield(answering)
                return answer.SerializeToString()
            except asyncio.CancelledError:
                status = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                status, reason = _describe_refusal(error)
                # Their bytes are percent-encoded, and clients take 8 KiB of a status.
                return await context.abort(
                    status, reason.encode(errors="replace")[: 2 * MAX_ERROR_CHARACTERS].decode("utf-8", "ignore")
                )
            finally:
                _record(route, route, status, time.perf_counter() - start, images, request_id, context.peer())

        return grpc.stream_unary_rpc_method_handler(serve)

    async def _read(self, stream: AsyncIterator[bytes]) -> bytes:
        """Returns the message of a call.

        gRPC itself ends a call with too large a message, and doesn't tell it from one whose caller left.

        Raises:
            RequestError: if there is none.
            CancelledError: if the message was too large, or its caller left before its end.
            TooBusyError: see ``Messages``.
        """
        try:
            try:
                return await self._messages.read(stream.__anext__)
            except StopAsyncIteration:
                await asyncio.sleep(_CANCEL_SECONDS)  # gRPC cancels a moment later what it has ended itself
        except asyncio.CancelledError:
            REFUSED.labels("unfinished").inc()
            raise
        raise RequestError("wrong_type", "the call has no message")

    async def _answer(self, method: Method, message: bytes, request_id: str) -> tuple[Message, int | None]:
        try:
            return await method(message, request_id)
        finally:
            self._messages.release(message)


def _describe_refusal(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Returns the status and the reason of a call that failed with an error, and counts it."""
    match error:
        case RequestError():
            kind, status, reason = error.kind, grpc.StatusCode.INVALID_ARGUMENT, str(error)
        case TooBusyError():
            kind, status, reason = "too_busy", grpc.StatusCode.UNAVAILABLE, str(error)
        case HTTPException(status_code=404):
            kind, status, reason = "status_404", grpc.StatusCode.NOT_FOUND, error.detail
        case _:
            _log.error("a request could not be answered", exc_info=error)
            return grpc.StatusCode.INTERNAL, "the model could not answer; see the server's log"
    REFUSED.labels(kind).inc()
    return status, reason


def _choose_id(context: Any) -> str:
    """Returns the id of a call, and sends it with whatever answers the call."""
    request_id = choose_request_id(dict(context.invocation_metadata()).get(REQUEST_ID))
    context.set_trailing_metadata([(REQUEST_ID, request_id)])
    return request_id


def _record(
    route: str, path: str, status: grpc.StatusCode, seconds: float, images: int | None, request_id: str, client: str
) -> None:
    """Counts a call, and logs a line as ``AccessLog`` does."""
    REQUESTS.labels(route, status.name).inc()
    SECONDS.labels(route).observe(seconds)
    fields = {
        "method": "gRPC",
        "path": path,
        "status": status.name,
        "milliseconds": round(seconds * 1000, 1),
        "instances": images,
        "request_id": request_id,
        "client": client,
    }
    _access_log.info("request", extra={"fields": fields})


class _Door(grpc.aio.ServerInterceptor):
    """Refuses callers without the token, before their message is read, and calls of methods that there are not."""

    def __init__(self, access: Access, routes: Collection[str], messages: Messages, health: Any):
        self._access, self._routes, self._messages, self._health = access, routes, messages, health

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Passes a call on, or refuses it."""
        headers = {name: value for name, value in handler_call_details.invocation_metadata if isinstance(value, str)}
        reason = find_refusal(self._access, headers, "Bearer")
        path = handler_call_details.method
        kind, status = "unauthenticated", grpc.StatusCode.UNAUTHENTICATED
        if reason and path == _OPEN:
            return grpc.stream_unary_rpc_method_handler(self._tell_health)
        if reason is None:
            if (method := await continuation(handler_call_details)) is not None:
                return method if path in self._routes else bound_method(method, self._messages)
            kind, status, reason = "status_404", grpc.StatusCode.UNIMPLEMENTED, "there is no such method"

        async def refuse(_: Any, context: Any) -> None:
            REFUSED.labels(kind).inc()
            route = path if path in self._routes else "other"  # labels are kept for ever
            _record(route, path, status, 0.0, None, _choose_id(context), context.peer())
            await context.abort(status, reason)

        return grpc.stream_unary_rpc_method_handler(refuse)

    async def _tell_health(self, _: Any, context: Any) -> bytes:
        """Answers for the server as a whole: a message that isn't read holds no more than its stream's window."""
        return (await self._health.Check(health_pb2.HealthCheckRequest(), context)).SerializeToString()


def _read_credentials(access: Access) -> grpc.ServerCredentials:
    """Returns what gRPC needs for TLS; a renewed certificate is read at the next connection."""
    certificate, key = access.certificate, access.key
    if certificate is None or key is None:
        raise ValueError("without a certificate there is no TLS")
    times: tuple[int, ...] = ()

    def read() -> Any:
        nonlocal times
        newest = tuple(file.stat().st_mtime_ns for file in (certificate, key))
        if newest == times:
            return None
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)  # do they fit?
        pair = (key.read_bytes(), certificate.read_bytes())
        times = newest
        return grpc.ssl_server_certificate_configuration([pair])

    def read_renewed() -> Any:
        try:
            return read()
        except OSError:  # half written, or not both yet: the next connection reads them
            return None

    return grpc.dynamic_ssl_server_credentials(read(), read_renewed)
