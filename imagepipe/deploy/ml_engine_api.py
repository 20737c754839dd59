"""The REST API of AI Platform Prediction (ML Engine), v1: requests, long-running operations, versions of a model.

Google has retired the service; Vertex AI is its successor. The API is called here as it was documented, in plain REST:
Google no longer publishes a description of it from which a client could be generated.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.api_core import exceptions
from google.auth.transport.requests import AuthorizedSession

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import gcp
from imagepipe.deploy.config import DeployConfig, MLEngineConfig
from imagepipe.deploy.deployment import Version
from imagepipe.deploy.versions import is_version

READY, ROLLED_BACK = "READY", "rolled back"

_API = "https://ml.googleapis.com"
_TIMEOUT = 60  # seconds for an answer
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0  # seconds between two polls

_log = logging.getLogger("imagepipe.deploy")

Json = dict[str, Any]


@dataclass(frozen=True)
class Connection:
    """ML Engine in a project, for one model.

    Attributes:
        session: adds the credentials.
        api: the API's address.
        project: the project as Google names it.
        model: the model as Google names it.
        settings: how the model is served.
        deadline: when to give up, by ``time.monotonic``.
    """

    session: AuthorizedSession
    api: str
    project: str
    model: str
    settings: MLEngineConfig
    deadline: float


@dataclass(frozen=True)
class Registered:
    """A version that this pipeline deployed; ``answer`` is Google's description of it."""

    version: Version
    answer: Json

    @property
    def ready(self) -> bool:
        """Whether it can serve."""
        return bool(self.answer.get("state") == READY)

    @property
    def rolled_back(self) -> bool:
        """Whether it was rolled back; no rollback returns to it then."""
        return self.version.rolled_back


def connect(config: DeployConfig) -> Connection:
    """Finds the caller's credentials; warns once that the service is retired.

    Raises:
        ModelError: if the configuration has no ``ml_engine``; DeployError: if there are no credentials.
    """
    settings = config.ml_engine
    if not settings:
        raise ModelError("deploy.ml_engine: has to be given: project and region at least")
    _warn()
    project = f"projects/{settings.project}"
    return Connection(
        AuthorizedSession(gcp.find_credentials()),
        settings.api or _API,
        project,
        f"{project}/models/{str(config.name).replace('-', '_')}",
        settings,
        time.monotonic() + settings.timeout,
    )


@functools.cache
def _warn() -> None:
    _log.warning("Google has retired AI Platform Prediction (ML Engine). Its successor is Vertex AI: --target vertex")


def get(cloud: Connection, path: str, query: Json | None = None) -> Json:
    """Sends a GET request, and repeats it if the service is unavailable."""
    return gcp.RETRY(call)(cloud, "GET", path, query=query)


def call(cloud: Connection, method: str, path: str, body: Json | None = None, query: Json | None = None) -> Json:
    """Sends a request, and returns the answer.

    Raises:
        google.api_core.exceptions.GoogleAPICallError: if it is refused.
    """
    response = cloud.session.request(
        method, f"{cloud.api}/v1/{path}", json=body, params=query, timeout=_TIMEOUT, allow_redirects=False
    )
    if response.status_code != 200:
        raise exceptions.from_http_response(response)
    return dict(response.json())


def wait_for_operation(cloud: Connection, operation: Json, failure: str) -> None:
    """Waits for a long-running operation.

    Args:
        cloud: the connection.
        operation: the operation as the API returned it.
        failure: start of the message if the time is up, see ``gcp.explain_errors``.
    """
    operation = poll(cloud, operation["name"], lambda answer: bool(answer.get("done")), failure)
    if error := operation.get("error"):
        raise exceptions.from_grpc_status(error["code"], error.get("message", ""))


def poll(cloud: Connection, path: str, is_over: Callable[[Json], bool], failure: str) -> Json:
    """Repeats a GET request until its answer is as wanted, and returns that.

    Raises:
        gcp.UncertainError: if the time is up.
    """
    pauses = generate_pauses()
    while True:
        answer = get(cloud, path)
        if is_over(answer):
            return answer
        if time.monotonic() > cloud.deadline:
            raise gcp.UncertainError(
                f"{failure} within deploy.ml_engine.timeout, {cloud.settings.timeout:g} seconds. It may still be at it "
                f"({path}): look with `imagepipe status`, and do the same again to go on from there"
            )
        time.sleep(min(next(pauses), max(0.0, cloud.deadline - time.monotonic())))


def generate_pauses() -> Iterator[float]:
    """Yields the seconds to wait before the next poll, growing up to 20."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def list_versions(cloud: Connection) -> list[Registered]:
    """Returns the versions that this pipeline deployed, newest first."""
    answers: list[Json] = []
    token = ""
    with gcp.explain_errors("ML Engine would not list the versions", cloud.settings):
        while True:
            try:
                page = get(cloud, f"{cloud.model}/versions", {"pageToken": token} if token else {})
            except exceptions.NotFound:
                return []
            answers += page.get("versions") or []
            token = page.get("nextPageToken") or ""
            if not token:
                break
    versions = []
    for answer in answers:
        name = answer["name"].rpartition("/")[2].removeprefix("v")
        if is_version(name):
            traffic = 100 if answer.get("isDefault") else 0
            is_rolled_back = answer.get("description") == ROLLED_BACK
            version = Version(name, answer["deploymentUri"], traffic, describe_state(answer), is_rolled_back)
            versions.append(Registered(version, answer))
    return sorted(versions, key=lambda registered: -int(registered.version.version))


def describe_state(answer: Json) -> str:
    """Returns the state of a version in Google's words, with its error if it has one."""
    if answer.get("description") == ROLLED_BACK:
        return ROLLED_BACK
    state = str(answer.get("state", "UNKNOWN")).lower()
    return f"{state}: {answer['errorMessage']}" if answer.get("errorMessage") else state


def find_live_version(cloud: Connection) -> Version:
    """Returns the version that gets the requests.

    Raises:
        DeployError: if there is none.
    """
    live = next((registered.version for registered in list_versions(cloud) if registered.version.traffic), None)
    if not live:
        raise DeployError("no version is live at ML Engine: `imagepipe deploy` one")
    return live


def version_path(cloud: Connection, version: Version) -> str:
    """Returns the resource name of a version."""
    return f"{cloud.model}/versions/v{version.version}"
