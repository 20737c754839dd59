"""Serves the pages, or writes them as files. Read-only: it answers GET and HEAD, and changes nothing."""

import functools
import html
import re
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, normpath
from urllib.parse import unquote, urlsplit

from fastapi import FastAPI
from fastapi.responses import FileResponse, RedirectResponse, Response

from imagepipe.base.errors import ModelError
from imagepipe.serving.access import EVERYBODY, Access, Guard
from imagepipe.serving.page_server import serve_app
from pipeline.runs.dashboard import data, pages
from pipeline.workdir import Workdir

# The pages load style, script and images from this server only.
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A report brings its own script, and holds names and images of strangers: it gets no access to this server.
_REPORTS_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-popups allow-downloads"
)


def make_app(workdir: Workdir, access: Access, host: str) -> FastAPI:
    """Returns the server's application.

    Args:
        workdir: the pipeline's folder.
        access: the callers that it answers.
        host: the address that it listens on, or its name, as the user gave it.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # The browser asks for the token, as a password, and sends it along from then on: no request changes anything.
    app.add_middleware(Guard, access=access, host=host, login="Basic")

    @app.api_route("/compare", methods=["GET", "HEAD"])
    def compare(one: str, other: str) -> Response:
        runs, _ = data.read_runs(workdir)
        if not {one, other} <= {run.id for run in runs}:
            return _make_response(pages.make_missing_page("compare"))
        return RedirectResponse(f"compare/{one}/{other}/index.html", 303)

    @app.api_route("/{path:path}", methods=["GET", "HEAD"])
    def page(path: str) -> Response:
        return _make_response(pages.find_page(workdir, path) or pages.make_missing_page(path))

    return app


def _make_response(page: pages.Page) -> Response:
    report = isinstance(page.content, Path) and page.content.name == "report.html"
    headers = {
        "Content-Security-Policy": _REPORTS_POLICY if report else _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    if isinstance(page.content, Path):
        return FileResponse(page.content, page.status, headers, page.kind)
    return Response(page.content, page.status, headers, page.kind)


def serve_pages(root: Path, host: str, port: int, announce: Callable[[str], None], access: Access = EVERYBODY) -> None:
    """Serves the pages of a workdir until it is interrupted.

    Args:
        root: the pipeline's folder.
        host: the address to listen on.
        port: the port to listen on; 0 for any free port.
        announce: gets the address.
        access: the callers that it answers.

    Raises:
        ModelError: if it can't listen there.
    """
    serve_app(make_app(Workdir(root), access, host), host, port, announce, access)


_MARKER = ".imagepipe-dashboard"
"""Name of a file in each folder of exported pages: only such a folder is written into again."""
_LINK = re.compile(r"""(?:href|src)="([^"]*)\"""")


def export_pages(root: Path, out: Path) -> int:
    """Writes all pages and their images as files that a browser opens without a server; returns their number.

    Raises:
        ModelError: if there is something else in the folder, or it is the workdir.
    """
    workdir = Workdir(root)
    marker = out / _MARKER
    if out.resolve() == root.resolve() or (out.exists() and any(out.iterdir()) and not marker.is_file()):
        raise ModelError(
            f"{out} has something else in it: give a folder of its own. (Pages that a version without the file "
            f"{_MARKER} exported are taken for somebody else's, too: remove them first.)"
        )
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text("The files in this folder are written anew by imagepipe dashboard --export.\n", encoding="utf-8")
    waiting, seen = deque(["index.html"]), {"index.html"}
    count = 0
    read_runs = functools.cache(data.read_runs)  # once: there are several pages per run
    while waiting:
        path = waiting.popleft()
        page = pages.find_page(workdir, path, exported=True, read_runs=read_runs)
        if page is None:
            continue
        file = out / path
        file.parent.mkdir(parents=True, exist_ok=True)
        count += 1
        if isinstance(page.content, Path):
            shutil.copyfile(page.content, file)
            continue
        file.write_bytes(page.content if isinstance(page.content, bytes) else page.content.encode())
        if isinstance(page.content, str) and path.endswith(".html"):
            for link in _LINK.findall(page.content):
                target = _resolve_link(path, html.unescape(link))
                if target and target not in seen:
                    seen.add(target)
                    waiting.append(target)
    return count


def _resolve_link(page: str, link: str) -> str:
    """Returns the path that a page's link leads to; '' if it is not one of ours."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return ""
    path = normpath(f"{dirname(page)}/{unquote(parts.path)}").lstrip("/")
    return "" if path.startswith("..") else path
