"""A model server on KServe's REST server: its protocols and its health, with routes, limits and figures of our own.

Routes, all answered by one handler:

- KServe V1 and TensorFlow Serving: ``POST /v1/models/<m>:predict``, ``POST /v1/models/<m>/versions/<v>:predict``,
  ``GET /v1/models``, ``GET /v1/models/<m>[/versions/<v>][/metadata]``
- ML Engine: ``POST /v1/projects/<p>/models/<m>[/versions/<v>]:predict``
- Open Inference Protocol v2: ``POST /v2/models/<m>[/versions/<v>]/infer``; metadata and health are KServe's own
- Vertex AI's custom containers: what ``AIP_HEALTH_ROUTE`` and ``AIP_PREDICT_ROUTE`` say
- ``GET /metrics`` for Prometheus; ``GET /``, a page to try the model on

Refusals are ``{"error": "…"}`` with a status of 4xx, or 503 and ``Retry-After`` where there is too much to do.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import tensorflow as tf
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from imagepipe.base.errors import ModelError
from imagepipe.serving import protocols
from imagepipe.serving.limits import QUEUE, BodyTooLargeError, TooBusyError, limited
from imagepipe.serving.live import Answers, Live, Versions
from imagepipe.serving.observed import BATCH_SIZES, REFUSED, observed
from imagepipe.serving.requests import Request as Asked
from imagepipe.serving.requests import RequestError

with mock.patch.object(sys, "argv", sys.argv[:1]):  # KServe reads options of its own from there when it is imported
    from kserve import ModelRepository
    from kserve import model as kserve_model
    from kserve.model_server import app as kserve_app
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.server import RESTServer

_BODY_SECONDS = 60  # for a body to arrive: who stops in the middle holds a part of MAX_BODIES
_GRACE_SECONDS = 30  # to finish what was asked before SIGTERM: Kubernetes waits as long
_CORES = os.cpu_count() or 1
_PAGE = Path(__file__).with_name("page.html")
_JSON_LENGTH = "inference-header-content-length"
_DIGITS = 12  # of a length
_GONE = 499  # as nginx logs it: the caller did not wait for an answer

_log = logging.getLogger("imagepipe.serve")

Parse = Callable[[bytes], tuple[list[Asked], protocols.Answering]]


class _Json(JSONResponse):
    """JSON in ASCII: a string of JSON may hold what is no text in UTF-8, and may have to be named in an answer."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


class Handler:
    """Answers requests, of whatever protocol."""

    def __init__(self, versions: Versions, name: str):
        """Holds what is asked.

        Args:
            versions: of the model.
            name: of the model, to callers.
        """
        self._versions, self.name = versions, name
        self._waiting = 0
        self._parsers = ThreadPoolExecutor(1, "parse")  # of its own: what is refused need not wait for decoders
        self._askers = ThreadPoolExecutor(QUEUE, "ask")  # each waits for its batch
        self._decoding = threading.BoundedSemaphore(_CORES)  # in the threads that ask: handing over takes 0.6 ms

    def live(self, name: str, version: str | None = None) -> Live:
        """The version to ask.

        Raises:
            HTTPException: 404 if this is not the model, or not the version that is live.
        """
        live = self._versions.live
        if name != self.name:
            raise HTTPException(404, f"there is no model '{name}' here, only '{self.name}'")
        if version not in (None, live.version):
            raise HTTPException(404, f"version {version} is not served; version {live.version} is")
        return live

    async def answer(self, request: Request, parse: Parse, live: Live) -> JSONResponse:
        """Answers a request.

        Raises:
            RequestError: if it can't be answered; the message says why.
            TooBusyError: if too many are waiting.
        """
        try:
            body = await asyncio.wait_for(request.body(), _BODY_SECONDS)
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {_BODY_SECONDS} seconds") from None
        self._check_room(1)
        run = asyncio.get_running_loop().run_in_executor
        requests, answering = await run(self._parsers, parse, body)
        self._check_room(len(requests))
        self._waiting += len(requests)
        try:
            answers = await run(self._askers, self._ask, live, requests)
        finally:
            self._waiting -= len(requests)
        request.state.instances = len(requests)
        return _Json(answering(answers))

    def _ask(self, live: Live, requests: list[Asked]) -> Answers:
        with self._decoding:
            checked = live.check(requests)
            tensors = live.preprocess(checked)
        return live.answer(checked, tensors)

    def _check_room(self, images: int) -> None:
        if self._waiting + images > QUEUE:
            raise TooBusyError(f"{self._waiting} images are waiting already")


def routes(handler: Handler) -> APIRouter:
    """All routes that KServe has not, or has otherwise."""
    router = APIRouter()

    async def predict(request: Request, name: str, version: str | None = None) -> JSONResponse:
        return await handler.answer(request, protocols.parse_rest, handler.live(name, version))

    async def infer(request: Request, name: str, version: str | None = None) -> JSONResponse:
        length = request.headers.get(_JSON_LENGTH)
        if length is not None and not (length.isascii() and length.isdigit() and len(length) <= _DIGITS):
            raise RequestError("wrong_type", f"the header {_JSON_LENGTH} has to be a number")
        size = None if length is None else int(length)
        return await handler.answer(request, lambda body: protocols.parse_v2(body, size), handler.live(name, version))

    async def predict_for_vertex(request: Request) -> JSONResponse:
        return await predict(request, handler.name)

    async def status(name: str, version: str | None = None) -> dict[str, Any]:
        state = {
            "version": handler.live(name, version).version,
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return {"name": name, "ready": True, "model_version_status": [state]}

    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        live = handler.live(name, version)
        return {
            "model_spec": {"name": name, "signature_name": "", "version": live.version},
            "metadata": {"signature_def": {"signature_def": live.signatures}},
            "labels": live.model.names,
        }

    async def refuse_to_load() -> JSONResponse:
        return JSONResponse({"error": "versions come and go with their folders"}, 403)

    async def healthy() -> dict[str, str]:
        return {"status": "alive"}

    async def page() -> FileResponse:
        return FileResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    for models in ("/v1/models", "/v1/projects/{project}/models"):
        for path in ("{name}", "{name}/versions/{version}"):
            router.add_api_route(f"{models}/{path}:predict", predict, methods=["POST"])
    for path in ("{name}", "{name}/versions/{version}"):
        router.add_api_route(f"/v1/models/{path}", status)
        router.add_api_route(f"/v1/models/{path}/metadata", metadata)
        router.add_api_route(f"/v2/models/{path}/infer", infer, methods=["POST"])
    router.add_api_route("/v2/repository/{rest:path}", refuse_to_load, methods=["POST"])
    router.add_api_route("/", page)
    if health := os.environ.get("AIP_HEALTH_ROUTE"):
        router.add_api_route(health, healthy)
    if prediction := os.environ.get("AIP_PREDICT_ROUTE"):
        router.add_api_route(prediction, predict_for_vertex, methods=["POST"])
    return router


# The page needs its own style and script, the server, and the image that the person chose; nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src blob:"


class _Described(kserve_model.Model):
    """What KServe's own routes say of the model; it is asked through ours."""

    def __init__(self, handler: Handler):
        super().__init__(handler.name)
        self._handler = handler
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        live = self._handler.live(self.name)
        types = {"input": "BYTES", "metadata": "BYTES"} | {
            name: {"string": "BYTES", "float32": "FP32", "int64": "INT64"}[dtype.name]
            for name, dtype in live.model.side.items()
        }
        return [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in types.items()]

    def get_output_types(self) -> list[dict[str, Any]]:
        classes = {"name": "classes", "datatype": "FP32", "shape": [-1, len(self._handler.live(self.name).model.names)]}
        others = {"label": "BYTES", "score": "FP32", "metadata": "BYTES"}
        return [classes] + [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in others.items()]


def _refusal(error: Exception) -> JSONResponse:
    """What a caller is told who asked in vain."""
    match error:
        case RequestError():
            reason, status, headers = error.kind, 400, {}
        case BodyTooLargeError():
            reason, status, headers = "body_too_large", 413, {"Connection": "close"}  # what is left of it is not read
        case TooBusyError():
            reason, status, headers = "too_busy", 503, {"Retry-After": "1"}
        case ClientDisconnect():
            reason, status, headers = "gone", _GONE, {}
        case HTTPException():
            reason, status, headers = f"status_{error.status_code}", error.status_code, dict(error.headers or {})
        case _:
            _log.error("a request could not be answered", exc_info=error)
            return JSONResponse({"error": "the model could not answer; the server's log says why"}, 500)
    REFUSED.labels(reason).inc()
    said = error.detail if isinstance(error, HTTPException) else str(error)
    return _Json({"error": said}, status, headers)


def _say_refusals(app: FastAPI) -> None:
    async def handle(_: Request, error: Exception) -> JSONResponse:
        return _refusal(error)

    for kind in (RequestError, BodyTooLargeError, TooBusyError, ClientDisconnect, HTTPException, tf.errors.OpError):
        app.add_exception_handler(kind, handle)


def serve(path: Path, name: str, listening: socket.socket) -> None:
    """Serves a model until SIGTERM or SIGINT; then finishes what it was asked.

    A process can do this once: KServe's application is the process's.

    Args:
        path: a SavedModel, a folder of versions, whose newest is served and which is followed, or a run.
        name: of the model, to callers.
        listening: where requests come in; nothing is answered before the model is warm.

    Raises:
        ModelError: if there is no model that can be served.
    """
    versions = Versions(path, name, BATCH_SIZES.observe)
    handler = Handler(versions, name)
    repository = ModelRepository()
    repository.update(_Described(handler))
    kserve_app.include_router(routes(handler))  # before KServe's own: the first that fits is taken
    kserve_app.add_middleware(limited)
    kserve_app.add_middleware(observed)
    _say_refusals(kserve_app)
    logging.getLogger("kserve").handlers = [logging.NullHandler()]  # else it configures logging by itself
    host, port = listening.getsockname()[:2]
    server = RESTServer(
        "kserve.model_server:app",
        DataPlane(repository),
        ModelRepositoryExtension(repository),
        port,
        grace_period=_GRACE_SECONDS,
    )
    server.config.access_log = False  # ours has what its has, and more
    versions.follow()
    _log.info("listening on http://%s:%d", host, port, extra={"fields": {"host": host, "port": port}})
    server.run([listening])


def _log_in_json() -> None:
    """Lets this process log to standard output, an object of JSON a line."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            said = {
                "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
                "level": record.levelname,
                "message": record.getMessage(),
                **getattr(record, "fields", {}),
            }
            if record.exc_info:
                said["exception"] = self.formatException(record.exc_info)
            return json.dumps(said)

    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(Formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[output], force=True)
    logging.getLogger("imagepipe").setLevel(logging.INFO)


def main(path: Path, name: str, host: str, port: int) -> None:
    """Serves a model in this process, and logs to standard output.

    Args:
        path: see ``serve``.
        name: see ``serve``.
        host: the address to listen on.
        port: the port to listen on; 0 for any that is free. Which one it is is logged.

    Raises:
        ModelError: if it can't listen there, or there is no model that can be served.
    """
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise ModelError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
    with listening:
        _log_in_json()
        serve(path, name, listening)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "127.0.0.1", 0)
