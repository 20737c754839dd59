"""What targets at Google's clouds have in common: credentials, and what went wrong in words."""

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import google.auth
import httpx
from google.api_core import exceptions, retry
from google.auth.credentials import Credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.auth.transport.requests import Request

from imagepipe.base.errors import DeployError
from imagepipe.deploy.config import GoogleConfig
from imagepipe.deploy.deployment import Version, sort_by_traffic

_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
_LOG_IN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key's file"

AGAIN = retry.Retry(predicate=retry.if_exception_type(exceptions.ServiceUnavailable), initial=0.5, timeout=4)
"""For what may be asked twice."""


class UncertainError(DeployError):
    """It may still end well: it takes longer than it may, or there is no answer any more."""


def credentials() -> Credentials:
    """The caller's, as Google's own tools find them.

    Raises:
        DeployError: if there are none.
    """
    try:
        return google.auth.default(scopes=_SCOPES)[0]
    except DefaultCredentialsError as error:
        raise DeployError(f"there are no credentials for Google Cloud: {_LOG_IN}. ({_first_line(error)})") from error


class Auth(httpx.Auth):
    """Adds an access token to requests; a new one when it expires, or is refused."""

    def __init__(self) -> None:
        self._credentials = credentials()
        self._lock = threading.Lock()  # many images are asked about at once

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sends a request with a token, and again with a new one if that is refused; see ``httpx.Auth``."""
        response = yield self._signed(request)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            yield self._signed(request, refused=request.headers["Authorization"])

    def _signed(self, request: httpx.Request, refused: str | None = None) -> httpx.Request:
        headers: dict[str, str] = {}
        try:
            with self._lock:
                if refused == f"Bearer {self._credentials.token}":
                    self._credentials.refresh(Request())
                self._credentials.before_request(Request(), request.method, str(request.url), headers)
        except GoogleAuthError as error:
            raise DeployError(_no_token(error)) from error
        request.headers.update(headers)
        return request


@contextmanager
def in_words(doing: str, settings: GoogleConfig) -> Iterator[None]:
    """Says what Google's clients raise as a ``DeployError``.

    Args:
        doing: what was to be done, such as ``Vertex AI would not list the endpoints``.
        settings: for what to do about it.
    """
    try:
        yield
    except exceptions.GoogleAPICallError as error:
        raise DeployError(f"{doing}: {_said(error)}{_advice(error, settings)}") from error
    except exceptions.RetryError as error:
        raise UncertainError(f"{doing}: {_said(error.cause or error)}{_advice(error.cause, settings)}") from error
    except GoogleAuthError as error:
        raise UncertainError(_no_token(error)) from error
    except OSError as error:  # which requests' errors are
        raise UncertainError(
            f"{doing}: there is no answer from {settings.api or 'Google'} ({type(error).__name__}). "
            "See whether this machine reaches it, and do it again"
        ) from error


@contextmanager
def staying(versions: list[Version]) -> Iterator[None]:
    """Adds to a failure what goes on to be live."""
    try:
        yield
    except DeployError as error:
        said = [f"version {v.version} ({v.traffic}% of the requests)" for v in sort_by_traffic(versions) if v.traffic]
        raise type(error)(f"{error}. Live as before: {', '.join(said) or 'nothing'}") from error


def _said(error: Any) -> str:
    # Google's REST clients put the method and the URL before the service's own words.
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", getattr(error, "message", None) or str(error)).rstrip(". ")


def _advice(error: Any, settings: GoogleConfig) -> str:
    where = f"project {settings.project}, region {settings.region}"
    match error:
        case exceptions.Unauthenticated() | exceptions.Unauthorized():
            return f". The credentials are not accepted: {_LOG_IN}"
        case exceptions.Forbidden():
            return f". The account of the credentials needs the right to do it in project {settings.project}"
        case exceptions.NotFound():
            return f". See whether {where} is right, and whether the API is enabled there"
        case exceptions.TooManyRequests():
            return (
                f". Ask for more quota ({where}), or give a machine_type, an accelerator or a number of replicas "
                f"for which there is room; then do it again"
            )
        case exceptions.Aborted() | exceptions.Conflict():
            return ". Somebody else changes it at this time: look with `imagepipe status`, and do it again"
        case exceptions.ServerError():
            return ". Do it again later"
        case _:
            return ""


def _no_token(error: GoogleAuthError) -> str:
    return f"Google gives no access token for the credentials: {_first_line(error)}. If need be, {_LOG_IN}"


def _first_line(error: Exception) -> str:
    """What it says; what comes along with it may be the answer of a server, and long."""
    first, *_ = str(error.args[0] if error.args else error).splitlines() or [type(error).__name__]
    return first.rstrip(".")
