"""Stands in for what Google's APIs have in common, on loopback: tokens, errors, long-running operations, HTTP.

The real google-auth gets its tokens here: the key of a service account, made for the test, is in a file that
``GOOGLE_APPLICATION_CREDENTIALS`` names, and its ``token_uri`` is on loopback. Either kind of token that Google takes
of a service account opens the APIs: one issued by the token endpoint, and one that the account signed itself.
"""

import contextlib
import functools
import json
import re
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import google.auth.credentials
import google.auth.jwt
import tensorflow as tf
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.standins.tensorflow_serving import SERVED, Servable

PROJECT, PROJECT_NUMBER, REGION = "pictures", "123456789", "europe-west4"
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    412: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
_CODES = {400: 3, 403: 7, 404: 5, 409: 10, 412: 9, 429: 8, 503: 14}  # google.rpc.Code
_AUDIENCE = "https://oauth2.googleapis.com/token"  # of everything that an account signs
_WIRE = {412: 400}  # a failed precondition is a 400 over HTTP

Json = dict[str, Any]


class RefusedError(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Accounts:
    """A service account and its tokens.

    Attributes:
        key_file: file with its key, in the format of Google's download.
        secrets: strings that must be in no log: the private key and the tokens.
        issued: number of tokens issued.
        revoked: whether the account was deleted.
    """

    key_file: Path
    public_key: bytes
    secrets: list[str]
    token_uri: str = ""
    tokens: set[str] = field(default_factory=set)
    issued: int = 0
    revoked: bool = False

    def expire(self) -> None:
        """Makes all issued tokens invalid."""
        self.tokens.clear()

    def issue_token(self, form: dict[str, str]) -> Json:
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            raise RefusedError(400, "unsupported_grant_type")
        claims = google.auth.jwt.decode(form["assertion"], self.public_key, audience=_AUDIENCE)
        if "https://www.googleapis.com/auth/cloud-platform" not in claims["scope"].split():
            raise RefusedError(400, "invalid_scope")
        if self.revoked:
            raise RefusedError(400, "invalid_grant")
        self.issued += 1
        token = f"ya29.{secrets.token_hex(20)}"
        self.tokens.add(token)
        self.secrets.append(token)
        return {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}

    def check_token(self, header: str | None) -> None:
        scheme, _, token = (header or "").partition(" ")
        self.secrets += [token] if token else []
        if scheme == "Bearer" and token in self.tokens:
            return
        try:  # https://google.aip.dev/auth/4111
            assert scheme == "Bearer"
            google.auth.jwt.decode(token, self.public_key)
        except (AssertionError, ValueError):
            raise RefusedError(401, "Request had invalid authentication credentials.") from None


@functools.cache
def _create_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@contextlib.contextmanager
def run_token_endpoint(folder: Path) -> Iterator[Accounts]:
    """Runs the token endpoint, and writes a key for it into a folder.

    Meanwhile google-auth doesn't ask Google, in a thread of its own, in which regions the account may work.
    """
    key = _create_key()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    account = Accounts(folder / "key.json", public, private.splitlines()[1:-1])

    def token(method: str, path: str, query: Json, headers: Any, body: bytes) -> Json:
        return account.issue_token(dict(urllib.parse.parse_qsl(body.decode())))

    def refusal(error: RefusedError) -> tuple[int, Json]:
        return error.status, {"error": error.message, "error_description": "refused"}

    bounded = google.auth.credentials.CredentialsWithRegionalAccessBoundary
    no_lookup = mock.patch.object(bounded, "_is_regional_access_boundary_lookup_required", return_value=False)
    with run_server(token, refusal) as url, no_lookup:
        account.token_uri = f"{url}/token"
        content = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": private,
            "client_email": f"tests@{PROJECT}.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": account.token_uri,
        }
        account.key_file.write_text(json.dumps(content))
        yield account


@dataclass
class Operations:
    """Long-running operations, which take some polls.

    Attributes:
        polls: number of polls until an operation is done.
        endless: parts of names of methods whose operations are never done.
        failing: ``(part of a method's name, status, message)``: the error that its next operation ends with.
    """

    polls: int = 2
    endless: list[str] = field(default_factory=list)
    failing: list[tuple[str, int, str]] = field(default_factory=list)
    _all: dict[str, list[Any]] = field(default_factory=dict)

    def start(
        self,
        parent: str,
        method: str,
        work: Callable[[], Json],
        metadata: Json,
        failed: Callable[[], None] | None = None,
    ) -> Json:
        """Starts an operation: ``work`` returns its response once it was polled often enough, ``failed`` cleans up."""
        name = f"{parent}/operations/{len(self._all) + 1}"
        self._all[name] = [0, method, work, failed, {"name": name, "metadata": metadata}]
        return self._all[name][-1]

    def get(self, name: str) -> Json:
        if name not in self._all:
            raise RefusedError(404, f"no operation {name}")
        entry = self._all[name]
        _, method, work, failed, operation = entry
        entry[0] += 1
        if entry[0] <= self.polls or operation.get("done") or any(part in method for part in self.endless):
            return operation
        operation["done"] = True
        try:
            for failure in self.failing:
                if failure[0] in method:
                    self.failing.remove(failure)
                    raise RefusedError(*failure[1:])
            operation["response"] = work()
        except RefusedError as error:
            operation["error"] = {"code": _CODES[error.status], "message": error.message}
            if failed:
                failed()
        return operation


_MODELS: dict[bytes, Servable] = {}


def load_cached(uri: str) -> Servable:
    """Returns a SavedModel; a copy of one that was loaded already is taken from memory."""
    fingerprint = (Path(uri) / "fingerprint.pb").read_bytes()
    if fingerprint not in _MODELS:
        module = tf.saved_model.load(uri)
        _MODELS[fingerprint] = Servable("", module, module.signatures[SERVED])
    return _MODELS[fingerprint]


class Api:
    """An API of Google's.

    Attributes:
        url: its address.
        operations: its long-running operations.
        faults: ``(method, part of the path, status, message)``: refusals, one per request that matches.
        calls: methods and paths of the requests, in order.
    """

    def __init__(self, account: Accounts):
        self.url = ""
        self.operations = Operations()
        self.faults: list[tuple[str, str, int, str]] = []
        self.calls: list[str] = []
        self.account = account
        self._lock = threading.Lock()

    def routes(self) -> dict[tuple[str, str], Callable[..., Json]]:
        """Returns the handlers by method and pattern of the path; they take its groups, the query and the body."""
        raise NotImplementedError

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Json:
        self.account.check_token(headers.get("Authorization"))
        with self._lock:
            self.calls.append(f"{method} {path}")
            for fault in self.faults:
                if fault[0] == method and fault[1] in path:
                    self.faults.remove(fault)
                    raise RefusedError(*fault[2:])
            for (wanted, pattern), handler in self.routes().items():
                if wanted == method and (match := re.fullmatch(pattern, path)):
                    return handler(*match.groups(), query, json.loads(body) if body else {})
        raise RefusedError(404, f"Method not found: {method} {path}")


@contextlib.contextmanager
def serve_api(api: Api) -> Iterator[None]:
    """Serves an API while the context is open."""

    def refusal(error: RefusedError) -> tuple[int, Json]:
        status = _WIRE.get(error.status, error.status)
        details = {"code": status, "message": error.message, "status": _STATUS[error.status]}
        return status, {"error": details}

    with run_server(api.answer, refusal) as api.url:
        yield


@contextlib.contextmanager
def run_server(answer: Callable[..., Json | str], refusal: Callable[[RefusedError], tuple[int, Json]]) -> Iterator[str]:
    """Runs a server on loopback, which answers in JSON or with a page; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer takes 40 ms

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            try:
                status, content = 200, answer(self.command, urllib.parse.unquote(url.path), query, self.headers, body)
            except RefusedError as error:
                status, content = refusal(error)
            page = isinstance(content, str)
            data = (content if page else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if page else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_one  # noqa: N815 (as http.server looks for them)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
