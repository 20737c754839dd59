"""The server of the page: queues, images, and decisions, which are on the disk before they are answered."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from imagepipe.base.errors import ModelError, describe_error
from imagepipe.base.images import BadImage, normalize
from imagepipe.base.kinds import find_format
from imagepipe.serving.access import EVERYBODY, Access, Guard
from imagepipe.serving.page_server import serve_app
from pipeline.labelling.work import MAX_NAME, Ledger, Work, list_labels, read_label

_MAX_BODY = 2**16
_PAGE = Path(__file__).with_name("page.html")
_HEADERS = {
    # The page's own script and style stand in it; it shows names and images of strangers, and asks this server alone.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(work: Work, labels: Path, by: str, access: Access = EVERYBODY, host: str = "127.0.0.1") -> FastAPI:
    """Returns the server's application.

    Args:
        work: the queues.
        labels: the file of decisions.
        by: who decides, unless the page says otherwise.
        access: the callers that it answers.
        host: the address that it listens on.
    """
    ledger = Ledger(labels, work)
    items = {item.sha256: item for queue in reversed(work.queues) for item in queue.items}
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, access=access, host=host, open_paths=("/",))

    @app.get("/")
    def page() -> Response:
        return Response(_PAGE.read_bytes(), headers=_HEADERS, media_type="text/html; charset=utf-8")

    @app.get("/work")
    def show_work() -> Response:
        labelled = {label for one in ledger.standing.newest.values() for label in list_labels(one.label, work.task)}
        return _answer(
            {
                "source": work.source,
                "task": work.task,
                "classes": sorted({*work.classes, *labelled}),
                "queues": [asdict(queue) for queue in work.queues],
                "notes": work.notes,
                "labels": str(labels),
                "by": by,
            }
        )

    @app.get("/decisions")
    def show_decisions(since: int = 0) -> Response:
        return _answer(ledger.describe(max(0, since)))

    @app.get("/images/{sha256}")
    def show_image(sha256: str) -> Response:
        path = work.pictures / sha256
        if sha256 not in {file.name for file in work.pictures.iterdir()}:
            return _answer({"error": "there is no such image"}, 404)
        # Whatever the bytes are, they are shown as an image or not at all.
        return Response(_convert(path.read_bytes()), headers=_HEADERS, media_type="application/octet-stream")

    @app.post("/decisions")
    async def decide(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _answer({"error": "expected application/json"}, 415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BODY:
                return _answer({"error": f"a decision has at most {_MAX_BODY:,} bytes"}, 413)
        try:
            values = json.loads(body)
            item = items[values["sha256"]]
            undone = values.get("undone") is True
            label = None if undone else read_label(values["label"], work.task)
            person = str(values.get("by") or by).strip()[:MAX_NAME]
            since = int(values.get("seen", 0))
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return _answer({"error": "expected sha256, of an image in the queues, and label"}, 400)
        except ValueError as error:
            return _answer({"error": str(error)}, 400)
        try:
            ledger.decide(item, label, person, undone)
        except OSError as error:
            return _answer({"error": f"not saved: {labels}: {describe_error(error)}"}, 500)
        return _answer(ledger.describe(max(0, since)))

    return app


def _convert(data: bytes) -> bytes:
    """Returns an image as browsers show it: most know neither TIFF nor HEIC."""
    if find_format(data) not in ("tiff", "heif"):
        return data
    try:
        return normalize(data).data
    except BadImage:  # the page says so
        return data


def _answer(content: Any, status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, _HEADERS)


def serve(
    work: Work, labels: Path, by: str, host: str, port: int, announce: Callable[[str], None], access: Access
) -> None:
    """Serves the page until it is interrupted.

    Args:
        work: the queues.
        labels: the file of decisions.
        by: who decides.
        host: the address to listen on.
        port: the port; 0 for any that is free.
        announce: gets the address.
        access: the callers that it answers.

    Raises:
        ModelError: it can't listen there, or the file can't be written.
    """
    try:
        labels.parent.mkdir(parents=True, exist_ok=True)
        labels.open("ab").close()
    except OSError as error:
        raise ModelError(f"{labels} can't be written: {describe_error(error)}. Give another --labels") from error
    serve_app(make_app(work, labels, by, access, host), host, port, announce, access)
