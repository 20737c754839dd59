"""Serves the pages, or writes them as files. It answers GET only, and changes nothing."""

import html
import re
import shutil
import socket
from collections import deque
from pathlib import Path
from posixpath import dirname, normpath
from urllib.parse import unquote, urlsplit

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, RedirectResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from imagepipe.base.errors import ModelError
from pipeline.runs.dashboard import pages
from pipeline.workdir import Workdir

# The pages need their style, script and images from here; nothing else, and from nowhere else.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A report brings its own script. It is made from names and images of strangers, so it gets no share in this server.
_REPORTS_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-popups allow-downloads"
)
_LOCAL = ["127.0.0.1", "localhost", "[::1]"]


def application(workdir: Workdir, hosts: list[str]) -> FastAPI:
    """The server's application.

    Args:
        workdir: the pipeline's.
        hosts: names by which it may be asked for: else a page of another host, whose name points here for a moment,
            could read what is served on this machine alone.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)

    @app.api_route("/compare", methods=["GET", "HEAD"])
    def chosen(one: str, other: str) -> Response:
        runs, _ = pages.data.runs(workdir)
        if not {one, other} <= {run.id for run in runs}:
            return _response(pages.not_found("compare"))
        return RedirectResponse(f"compare/{one}/{other}/index.html", 303)

    @app.api_route("/{path:path}", methods=["GET", "HEAD"])
    def page(path: str) -> Response:
        return _response(pages.answer(workdir, path) or pages.not_found(path))

    return app


def _response(found: pages.Answer) -> Response:
    report = isinstance(found.content, Path) and found.content.name == "report.html"
    headers = {
        "Content-Security-Policy": _REPORTS_POLICY if report else _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    if isinstance(found.content, Path):
        return FileResponse(found.content, found.status, headers, found.kind)
    return Response(found.content, found.status, headers, found.kind)


def main(root: Path, host: str, port: int, say) -> None:  # type: ignore[no-untyped-def]  # say: a function of a text
    """Serves the pages of a workdir until it is interrupted.

    Raises:
        ModelError: it can't listen there.
    """
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise ModelError(f"can't listen on {host}:{port}: {error.strerror or error}. Give another --port.") from error
    with listening:
        host, port = listening.getsockname()[:2]
        hosts = [*_LOCAL, host] if host.startswith("127.") else ["*"]
        say(f"http://{host}:{port}")
        app = application(Workdir(root), hosts)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listening])


_LINK = re.compile(r"""(?:href|src)="([^"]*)\"""")


def export(root: Path, out: Path) -> int:
    """Writes all pages, and what they show, as files that a browser opens without a server. Returns how many.

    Raises:
        ModelError: there is something else in the folder, or it is the workdir.
    """
    workdir = Workdir(root)
    if out.resolve() == root.resolve() or (out.exists() and any(out.iterdir()) and not (out / "script.js").is_file()):
        raise ModelError(f"{out} has something else in it; give a folder of its own")
    waiting, seen = deque(["index.html"]), {"index.html"}
    count = 0
    while waiting:
        path = waiting.popleft()
        found = pages.answer(workdir, path, exported=True)
        if found is None:
            continue
        file = out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        count += 1
        if isinstance(found.content, Path):
            shutil.copyfile(found.content, file)
            continue
        file.write_bytes(found.content if isinstance(found.content, bytes) else found.content.encode())
        if isinstance(found.content, str) and path.endswith(".html"):
            for link in _LINK.findall(found.content):
                there = _target(path, html.unescape(link))
                if there and there not in seen:
                    seen.add(there)
                    waiting.append(there)
    return count


def _target(page: str, link: str) -> str:
    """The path that a link of a page leads to; '' if it is not one of ours."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return ""
    there = normpath(f"{dirname(page)}/{unquote(parts.path)}").lstrip("/")
    return "" if there.startswith("..") else there
