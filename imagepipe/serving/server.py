"""A model server on KServe's REST server: its protocols and its health, with our routes, limits and metrics.

Routes, all served by one handler:

- KServe V1 and TensorFlow Serving: ``POST /v1/models/<m>:predict``, ``POST /v1/models/<m>/versions/<v>:predict``,
  ``GET /v1/models``, ``GET /v1/models/<m>[/versions/<v>][/metadata]``
- ML Engine: ``POST /v1/projects/<p>/models/<m>[/versions/<v>]:predict``
- Open Inference Protocol v2: ``POST /v2/models/<m>[/versions/<v>]/infer``; metadata and health are KServe's own
- Vertex AI's custom containers: the paths in ``AIP_HEALTH_ROUTE`` and ``AIP_PREDICT_ROUTE``
- ``GET /metrics`` for Prometheus; ``GET /``, a page to try the model on

A request is JSON or the image itself (``uploads``). Refusals are ``{"error": "…"}`` with a status of 4xx, or 503 and
``Retry-After`` if there is too much to do.
"""

import asyncio
import gc
import json
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import tensorflow as tf
from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect

from imagepipe.base.process import end_with_parent
from imagepipe.capture.rows import CaptureOptions
from imagepipe.deploy.kserve_library import (
    DataPlane,
    Model,
    ModelRepository,
    ModelRepositoryExtension,
    RefreshingServer,
    RESTServer,
    app,
)
from imagepipe.serving import openapi, protocols, uploads
from imagepipe.serving.access import EVERYBODY, Access, Guard
from imagepipe.serving.answered import Recorder
from imagepipe.serving.bodies import BodyLimit, BodyTooLargeError, TooBusyError
from imagepipe.serving.connections import Connection, allow_connections, format_address, join_port, listen
from imagepipe.serving.ending import EndingServer, LateAnswers
from imagepipe.serving.engine import Engine, ServedModel
from imagepipe.serving.handler import Handler, Parse
from imagepipe.serving.handshakes import TlsServer
from imagepipe.serving.limits import GRACE_SECONDS, MAX_BODY_SECONDS, MAX_ERROR_CHARACTERS
from imagepipe.serving.middleware import AccessLog
from imagepipe.serving.shadow_follower import FindShadow
from imagepipe.serving.telemetry import BATCH_SIZES, configure_logging
from imagepipe.serving.threads import limit_threads
from imagepipe.serving.types import RequestError
from imagepipe.serving.worker_metrics import read_metrics

_PAGE, _DOCS = (Path(__file__).with_name(name) for name in ("page.html", "docs.html"))
_JSON_LENGTH = "inference-header-content-length"
_MAX_DIGITS = 12  # of a length
_CALLER_GONE = 499  # as nginx logs it: the caller did not wait for an answer

_log = logging.getLogger("imagepipe.serve")


class _Json(JSONResponse):
    """JSON in ASCII: a request may hold strings that UTF-8 can't encode, and a refusal may have to quote them."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def _make_binary(answers: protocols.BinaryBody) -> Response:
    header = _Json(answers.header).body
    headers = {_JSON_LENGTH: str(len(header))}
    return Response(bytes(header) + answers.data, headers=headers, media_type="application/octet-stream")


def _find_upload_parser(request: HttpRequest, engine: Engine, format_answers: protocols.FormatAnswers) -> Parse | None:
    """Returns the parser of a request whose body is the image itself; None if it is another one."""
    read = uploads.find_parser(request.headers.get("content-type", ""), request.url.query, engine.side_types)
    return read and (lambda body: ([read(body)], format_answers))


def build_routes(handler: Handler) -> APIRouter:
    """Returns the routes that KServe lacks, or answers differently."""
    router = APIRouter()

    async def answer(request: HttpRequest, parse: Parse, engine: Engine) -> Response:
        try:
            body = await asyncio.wait_for(request.body(), MAX_BODY_SECONDS)
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {MAX_BODY_SECONDS} seconds") from None
        answers, request.state.instances = await handler.answer(body, parse, engine, request.state.request_id)
        return _make_binary(answers) if isinstance(answers, protocols.BinaryBody) else _Json(answers)

    async def predict(request: HttpRequest, name: str, version: str | None = None) -> Response:
        engine = handler.find_engine(name, version)
        parse = _find_upload_parser(request, engine, protocols.format_rows) or protocols.parse_rest
        return await answer(request, parse, engine)

    async def infer(request: HttpRequest, name: str, version: str | None = None) -> Response:
        length = request.headers.get(_JSON_LENGTH)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) <= _MAX_DIGITS):
            raise RequestError("wrong_type", f"the header {_JSON_LENGTH} has to be a number")
        size = None if length is None else int(length)
        engine = handler.find_engine(name, version)
        parse = _find_upload_parser(request, engine, protocols.format_tensors)
        return await answer(
            request, parse or (lambda body: protocols.parse_v2(body, size, engine.model.has_novelty)), engine
        )

    async def predict_for_vertex(request: HttpRequest) -> Response:
        return await predict(request, handler.name)

    async def status(name: str, version: str | None = None) -> dict[str, Any]:
        state = {
            "version": handler.find_engine(name, version).version,
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return {"name": name, "ready": True, "model_version_status": [state]}

    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        engine = handler.find_engine(name, version)
        return {
            "model_spec": {"name": name, "signature_name": "", "version": engine.version},
            "metadata": {"signature_def": {"signature_def": engine.model.signatures}},
            "labels": engine.model.labels,
            "task": engine.model.task,
        }

    async def refuse_to_load() -> JSONResponse:
        return JSONResponse({"error": "versions are loaded and unloaded with their folders"}, 403)

    async def refuse_to_explain() -> JSONResponse:  # KServe's own parses any body in the thread that answers probes
        return JSONResponse({"error": "the model has no explanations"}, 404)

    def metrics(request: HttpRequest) -> Response:  # without async: in a thread, as it reads files
        text, kind = read_metrics(request.headers.get("accept", ""))
        return Response(text, media_type=kind)

    async def healthy() -> dict[str, str]:
        return {"status": "alive"}

    async def page() -> FileResponse:
        return FileResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    async def docs() -> FileResponse:
        return FileResponse(_DOCS, headers={"Content-Security-Policy": _POLICY})

    async def describe() -> dict[str, Any]:  # KServe's own names KServe, and an extension that is refused here
        return openapi.SERVER

    async def is_ready(name: str, version: str | None = None) -> dict[str, Any]:
        handler.find_engine(name, version)
        return {"name": name, "ready": True}

    async def tensors(name: str, version: str | None = None) -> dict[str, Any]:
        return openapi.describe_tensors(handler.find_engine(name, version))

    for models in ("/v1/models", "/v1/projects/{project}/models"):
        for path in ("{name}", "{name}/versions/{version}"):
            router.add_api_route(f"{models}/{path}:predict", predict, methods=["POST"], **openapi.PREDICT)
    for path in ("{name}", "{name}/versions/{version}"):
        router.add_api_route(f"/v1/models/{path}", status, **openapi.STATUS)
        router.add_api_route(f"/v1/models/{path}/metadata", metadata, **openapi.METADATA)
        router.add_api_route(f"/v2/models/{path}", tensors, **openapi.TENSORS)
        router.add_api_route(f"/v2/models/{path}/ready", is_ready, **openapi.READY)
        router.add_api_route(f"/v2/models/{path}/infer", infer, methods=["POST"], **openapi.INFER)
    router.add_api_route("/v2", describe, **openapi.ABOUT)
    router.add_api_route("/v1/models/{name}:explain", refuse_to_explain, methods=["POST"], include_in_schema=False)
    router.add_api_route("/v2/repository/{rest:path}", refuse_to_load, methods=["POST"], include_in_schema=False)
    router.add_api_route("/metrics", metrics, response_class=Response)
    router.add_api_route("/", page, include_in_schema=False)
    router.add_api_route("/docs", docs, include_in_schema=False)
    if health := os.environ.get("AIP_HEALTH_ROUTE"):
        router.add_api_route(health, healthy, response_model=openapi.Health)
    if prediction := os.environ.get("AIP_PREDICT_ROUTE"):
        router.add_api_route(prediction, predict_for_vertex, methods=["POST"], **openapi.PREDICT)
    return router


# The page needs its own style and script, the server, and the chosen image; nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src blob:"


async def _refuse(request: HttpRequest, error: Exception) -> JSONResponse:
    """Returns the response to a request that failed with an error."""
    match error:
        case RequestError():
            reason, status, headers = error.kind, 400, {}
        case BodyTooLargeError():
            reason, status, headers = "body_too_large", 413, {"Connection": "close"}  # the rest of it is not read
        case TooBusyError():
            reason, status, headers = "too_busy", 503, {"Retry-After": "1"}
        case ClientDisconnect():
            reason, status, headers = "gone", _CALLER_GONE, {}
        case HTTPException():
            reason, status, headers = "", error.status_code, dict(error.headers or {})
        case _:
            _log.error("a request could not be answered", exc_info=error)
            return JSONResponse({"error": "the model could not answer; see the server's log"}, 500)
    request.state.refusal = reason
    message = error.detail if isinstance(error, HTTPException) else str(error)
    return _Json({"error": message[:MAX_ERROR_CHARACTERS]}, status, headers)


class _Uvicorn(EndingServer, TlsServer, RefreshingServer):
    """KServe's, which loads renewed certificates, with bounded handshakes, and which ends with other ports."""


class _Server(RESTServer):
    """KServe's server; what its own handlers tell about unexpected errors stays in the log."""

    def __init__(self, stop: Callable[[], Awaitable[None]], close: Callable[[], None], *rest: Any, **options: Any):
        super().__init__(*rest, **options)
        self._server = _Uvicorn(self.config, stop, close)

    def create_application(self) -> None:
        """Adds KServe's routes and handlers to its application, then our handlers of unexpected errors."""
        super().create_application()
        for kind in (Exception, NotImplementedError):
            app.add_exception_handler(kind, _refuse)

    def _add_middlewares(self, app: FastAPI) -> None:
        """Leaves out KServe's own: it times each request, by two system calls, for a log that is turned off here."""


def _list_open_paths() -> list[str]:
    """Returns the paths that are read without a token: health, and the pages, which are empty without the others."""
    return ["/", "/docs", "/v2/health/live", "/v2/health/ready", os.environ.get("AIP_HEALTH_ROUTE", "/")]


def serve(
    path: Path,
    name: str,
    listening: socket.socket,
    host: str,
    access: Access = EVERYBODY,
    key: Path | None = None,
    options: CaptureOptions | None = None,
    grpc_address: str | None = None,
    find_shadow: FindShadow | None = None,
    report_ready: Callable[[], None] | None = None,
) -> None:
    """Serves a model until SIGTERM or SIGINT; then finishes the requests that it has.

    A process can do this once: KServe's application is a global of the process.

    Args:
        path: a SavedModel, a folder of versions, whose newest is served and which is followed, or a run.
        name: the model's name, for callers.
        listening: the socket that requests come in by; none is answered before the model is warm.
        host: the address that it listens on, or its name, as the user gave it.
        access: the callers that it answers.
        key: public key; only versions that are signed with its private key are served. None for all versions.
        options: of the capture of what is answered; None for no capture.
        grpc_address: address and port for gRPC; None for none.
        find_shadow: finds the version that is asked behind the live one, and captured; None for none.
        report_ready: called when it listens.

    Raises:
        ModelError: if there is no model that can be served, or the capture's folder can't be used.
    """
    if grpc_address:
        from imagepipe.serving.grpc_port import GrpcPort  # not above: its packages are an extra
    recorder = Recorder(options, find_shadow)
    # Of the libraries' half a million objects: each full collection would go through them, and stop all threads for
    # 0.2 s meanwhile.
    gc.collect()
    gc.freeze()
    served = ServedModel(path, name, BATCH_SIZES.observe, key)
    handler = Handler(served, name, recorder)
    repository = ModelRepository()
    listed = Model(name)  # for KServe's list of models; our routes answer all that is asked about it
    listed.ready = True
    repository.update(listed)
    app.include_router(build_routes(handler))  # before KServe's own: the first that matches is taken
    address, port = listening.getsockname()[:2]
    open_paths, has_token = _list_open_paths(), bool(access.token)
    documents: WeakKeyDictionary[Engine, dict[str, Any]] = WeakKeyDictionary()

    def describe_api() -> dict[str, Any]:
        engine = served.engine
        if engine not in documents:  # it takes 20 ms, in the thread that answers probes
            documents[engine] = openapi.describe_api(app.routes, engine, has_token, open_paths)
        return documents[engine]

    app.openapi = describe_api
    # The application's own handler of unexpected errors is outside of all middleware: its answer would have no id, and
    # pages of other origins couldn't read it.
    app.add_middleware(ExceptionMiddleware, handlers={Exception: _refuse})
    app.add_middleware(BodyLimit)
    app.add_middleware(LateAnswers)
    app.add_middleware(Guard, access=access, host=host, open_paths=open_paths)
    app.add_middleware(AccessLog)  # the last one is the first that a request comes to
    for kind in (RequestError, BodyTooLargeError, TooBusyError, ClientDisconnect, HTTPException, tf.errors.OpError):
        app.add_exception_handler(kind, _refuse)
    logging.getLogger("kserve").handlers = [logging.NullHandler()]  # else it configures logging itself
    grpc_port = GrpcPort(handler, access, grpc_address) if grpc_address else None
    server = _Server(
        grpc_port.stop if grpc_port else partial(asyncio.sleep, 0),
        recorder.close,
        "kserve.model_server:app",
        DataPlane(repository),
        ModelRepositoryExtension(repository),
        port,
        grace_period=GRACE_SECONDS,
        ssl_certfile=access.certificate and str(access.certificate),
        ssl_keyfile=access.key and str(access.key),
    )
    server.config.access_log = False  # ours has the same fields, and more
    server.config.http, server.config.ws = Connection, "none"
    if grpc_port:
        app.router.add_event_handler("startup", grpc_port.start)
    allow_connections()
    served.follow()
    fields = {"host": address, "port": port} | ({"grpc": grpc_address} if grpc_address else {})
    listening.listen()
    _log.info("listening on %s://%s", access.scheme, format_address(address, port), extra={"fields": fields})
    if report_ready:
        report_ready()
    server.run([listening])


def main(
    path: Path,
    name: str,
    host: str,
    port: int,
    access: Access = EVERYBODY,
    key: Path | None = None,
    options: CaptureOptions | None = None,
    grpc_address: str | None = None,
    find_shadow: FindShadow | None = None,
    report_ready: Callable[[], None] | None = None,
) -> None:
    """Serves a model in this process, and logs to standard output as JSON.

    Args:
        path: see ``serve``.
        name: see ``serve``.
        host: the address to listen on.
        port: the port to listen on; 0 for any free port, which is logged.
        access: the callers that it answers.
        key: see ``serve``.
        options: see ``serve``.
        grpc_address: see ``serve``.
        find_shadow: see ``serve``.
        report_ready: see ``serve``; with it others listen on the same port, see ``workers``.

    Raises:
        ConfigError: if gRPC's packages are not installed.
        ModelError: if it can't listen there, or as of ``serve``.
    """
    with join_port(host, port) if report_ready else listen(host, port) as listening:
        configure_logging()
        limit_threads(path)
        serve(path, name, listening, host, access, key, options, grpc_address, find_shadow, report_ready)


if __name__ == "__main__":
    end_with_parent()
    if os.getppid() != int(sys.argv[3]):  # which died while this process imported TensorFlow
        sys.exit()
    main(Path(sys.argv[1]), sys.argv[2], "127.0.0.1", 0)
