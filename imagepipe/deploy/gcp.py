"""Google's clouds: credentials, retries, and the errors of Google's clients as messages for the user."""

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

RETRY = retry.Retry(predicate=retry.if_exception_type(exceptions.ServiceUnavailable), initial=0.5, timeout=4)
"""For requests that may be repeated without harm."""

MAX_REQUEST_BYTES = 1_500_000
"""Size of a request for predictions online: Vertex AI and ML Engine take 1.5 MB, whichever megabyte they mean."""


class UncertainError(DeployError):
    """The outcome is unknown, and may be a success: the time is up, or the connection is lost."""


def find_credentials() -> Credentials:
    """Returns the caller's credentials, as Google's own tools find them.

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
        self._credentials = find_credentials()
        self._lock = threading.Lock()  # a client asks about several images at a time

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sends a request with a token, and again with a new one if that is refused; see ``httpx.Auth``."""
        response = yield self._sign(request)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            yield self._sign(request, refused=request.headers["Authorization"])

    def _sign(self, request: httpx.Request, refused: str | None = None) -> httpx.Request:
        headers: dict[str, str] = {}
        try:
            with self._lock:
                if refused == f"Bearer {self._credentials.token}":
                    self._credentials.refresh(Request())
                self._credentials.before_request(Request(), request.method, str(request.url), headers)
        except GoogleAuthError as error:
            raise DeployError(_explain_missing_token(error)) from error
        request.headers.update(headers)
        return request


@contextmanager
def explain_errors(failure: str, settings: GoogleConfig) -> Iterator[None]:
    """Turns the errors of Google's clients into ``DeployError``, with advice.

    Args:
        failure: start of the message, such as ``Vertex AI would not list the endpoints``.
        settings: project and region, for the advice.
    """
    try:
        yield
    except exceptions.GoogleAPICallError as error:
        raise DeployError(f"{failure}: {_extract_message(error)}{_advise(error, settings)}") from error
    except exceptions.RetryError as error:
        message = _extract_message(error.cause or error)
        raise UncertainError(f"{failure}: {message}{_advise(error.cause, settings)}") from error
    except GoogleAuthError as error:
        raise UncertainError(_explain_missing_token(error)) from error
    except OSError as error:  # the base class of requests' errors too
        raise UncertainError(
            f"{failure}: there is no answer from {settings.api or 'Google'} ({type(error).__name__}). "
            "See whether this machine reaches it, and do it again"
        ) from error


@contextmanager
def report_live_versions(versions: list[Version]) -> Iterator[None]:
    """Adds to the message of a failure which versions are still live."""
    try:
        yield
    except DeployError as error:
        live = [f"version {v.version} ({v.traffic}% of the requests)" for v in sort_by_traffic(versions) if v.traffic]
        raise type(error)(f"{error}. Live as before: {', '.join(live) or 'nothing'}") from error


def _extract_message(error: Any) -> str:
    # Google's REST clients put the method and the URL before the service's own message.
    return re.sub(r"^[A-Z]+ https?://\S+: ", "", getattr(error, "message", None) or str(error)).rstrip(". ")


def _advise(error: Any, settings: GoogleConfig) -> str:
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
            return ". Somebody else is changing it at the moment: look with `imagepipe status`, and do it again"
        case exceptions.ServerError():
            return ". Do it again later"
        case _:
            return ""


def _explain_missing_token(error: GoogleAuthError) -> str:
    return f"Google gives no access token for the credentials: {_first_line(error)}. If need be, {_LOG_IN}"


def _first_line(error: Exception) -> str:
    """Returns an error's own message, without the server's answer that may follow it, which may be long."""
    first, *_ = str(error.args[0] if error.args else error).splitlines() or [type(error).__name__]
    return first.rstrip(".")
