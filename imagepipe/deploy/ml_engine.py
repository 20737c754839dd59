"""AI Platform Prediction (ML Engine), v1: versions of a model, one of which is its default, and batch jobs.

Google has retired the service; Vertex AI is its successor. Its API is spoken here as it was documented, in plain REST:
Google publishes no description of it any more from which a client could be made.

A version ``v<version>`` becomes the default, which gets the requests, once it is ready. Those before stay, for a
rollback, and cost as much as their nodes. A version that was rolled back says so in its description, which is the only
field of a version that can be changed and is free for it. It is never gone back to.
"""

import contextlib
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.api_core import exceptions
from google.auth.transport.requests import AuthorizedSession

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import gcp, storage
from imagepipe.deploy.config import DeployConfig, MLEngineConfig
from imagepipe.deploy.deployment import Address, Version
from imagepipe.deploy.saved_model import read_inputs

_API = "https://ml.googleapis.com"
_SECONDS = 60  # for an answer
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 20.0  # seconds, between looks at what takes its time
_READY, _FAILED, _CHANGING = "READY", "FAILED", ("CREATING", "UPDATING")
_ROLLED_BACK = "rolled back"
_FORMATS = {".jsonl": "JSON", ".tfrecord": "TF_RECORD", ".tfrecord.gz": "TF_RECORD_GZIP"}

_log = logging.getLogger("imagepipe.deploy")

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A batch job.

    Attributes:
        id: its name.
        state: Google's: QUEUED, PREPARING, RUNNING, CANCELLING or SUCCEEDED.
        predicted: how many instances have a prediction, as far as Google tells.
        errors: how many have none; ``prediction.errors_stats-*`` says why.
        out: the folder of ``prediction.results-*``, which hold JSON lines.
    """

    id: str
    state: str
    predicted: int
    errors: int
    out: str

    @property
    def done(self) -> bool:
        """Whether all of it is there."""
        return self.state == "SUCCEEDED"

    def __str__(self) -> str:
        counts = f"{self.predicted:,} predicted, {self.errors:,} errors; {self.out}" if self.done else self.out
        return f"job {self.id}: {self.state}; {counts}"


@dataclass(frozen=True)
class _Cloud:
    """Where it goes.

    Attributes:
        session: adds the credentials.
        api: the API's address.
        project: as Google names it.
        model: as Google names it.
        settings: how it is to be served.
        deadline: by ``time.monotonic``.
    """

    session: AuthorizedSession
    api: str
    project: str
    model: str
    settings: MLEngineConfig
    deadline: float


@dataclass(frozen=True)
class _Known:
    """A version that we made; ``google`` is what Google says of it."""

    version: Version
    google: Json

    @property
    def ready(self) -> bool:
        return bool(self.google.get("state") == _READY)

    @property
    def rolled_back(self) -> bool:
        return bool(self.google.get("description") == _ROLLED_BACK)


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Makes a SavedModel the default version; see ``imagepipe.deploy.targets``."""
    if traffic != 100:
        raise ModelError("ML Engine can't divide the requests between versions: --traffic needs another target")
    cloud = _connect(config)
    versions = _versions(cloud)
    with gcp.staying([known.version for known in versions]):
        version = next((v.version for v in versions if v.ready and storage.is_same_model(model, v.version.uri)), None)
        if not version:
            name = storage.add_version(model, str(config.path))
            version = Version(name, f"{config.path}/{name}", 0)
            _make_ready(cloud, version, next((v.google for v in versions if v.version.version == name), None))
        _set_default(cloud, version)
    if any(known.rolled_back and known.version.version == version.version for known in versions):
        _describe(cloud, version, "")
    return dataclasses.replace(version, traffic=100, state="ready")


def status(config: DeployConfig) -> list[Version]:
    """The versions that we made, newest first; the default gets all requests."""
    return [known.version for known in _versions(_connect(config))]


def rollback(config: DeployConfig) -> Version:
    """Makes the version before the default one the default; see ``imagepipe.deploy.targets``."""
    cloud = _connect(config)
    versions = _versions(cloud)
    newest = next((known for known in versions if known.version.traffic), None)
    if not newest:
        raise DeployError(f"no version of {config.name} gets requests at ML Engine: there is nothing to take out")
    older = versions[versions.index(newest) + 1 :]
    before = next((known.version for known in older if known.ready and not known.rolled_back), None)
    if not before:
        raise DeployError(
            f"ML Engine has no version of {config.name} before {newest.version.version} that is ready to go back to"
        )
    with gcp.staying([known.version for known in versions]):
        _set_default(cloud, before)
    _describe(cloud, newest.version, _ROLLED_BACK)
    return dataclasses.replace(before, traffic=100)


def find_address(config: DeployConfig) -> Address:
    """A client for the default version."""
    cloud = _connect(config)
    uri = _live(cloud).uri
    labels, inputs = storage.read_common_labels([uri]), read_inputs(uri)
    return Address(f"{cloud.api}/v1/{cloud.model}", gcp.Auth(), labels, inputs=inputs)


def start_job(inputs: Sequence[str], out: str, config: DeployConfig, workers: int | None = None) -> Job:
    """Starts a batch job, which asks the live version about all that is in files of requests.

    Args:
        inputs: files or patterns on Cloud Storage, of one format, which the names tell: ``.jsonl``, ``.tfrecord`` or
            ``.tfrecord.gz``, see ``imagepipe.serving.request_files``.
        out: the folder for the results, on Cloud Storage.
        config: where models are deployed to.
        workers: how many machines work on it at most; Google's own limit is 10.

    Raises:
        ModelError: if the files are of no such format, or not on Cloud Storage.
        DeployError: if nothing is live, or ML Engine refuses.
    """
    cloud = _connect(config)
    kind = _format(inputs)
    for uri in (*inputs, out):
        if not cloud.settings.can_read(uri):
            raise ModelError(f"{uri}: ML Engine reads and writes Cloud Storage only: gs://…")
    asked: Json = {
        "dataFormat": kind,
        "outputDataFormat": "JSON",
        "inputPaths": list(inputs),
        "outputPath": out,
        "region": cloud.settings.region,
        "versionName": _path(cloud, _live(cloud)),
        "batchSize": str(cloud.settings.batch_size),
    }
    if kind != "JSON":
        asked["signatureName"] = "tf_examples"
    if workers:
        asked["maxWorkerCount"] = str(workers)
    name = f"{str(config.name).replace('-', '_')}_{time.strftime('%Y%m%d_%H%M%S')}_{uuid.uuid4().hex[:6]}"
    with gcp.in_words("ML Engine would not start the job", cloud.settings):
        body = {"jobId": name, "predictionInput": asked}
        return _job(_call(cloud, "POST", f"{cloud.project}/jobs", body))


def job(name: str, config: DeployConfig) -> Job:
    """How a batch job goes.

    Raises:
        DeployError: if it failed or was cancelled; the message says why.
    """
    cloud = _connect(config)
    with gcp.in_words(f"ML Engine would not say how the job {name} goes", cloud.settings):
        google = _get(cloud, f"{cloud.project}/jobs/{name}")
    if google["state"] in ("FAILED", "CANCELLED"):
        why = google.get("errorMessage") or "ML Engine doesn't say why"
        raise DeployError(f"the job {name} {google['state'].lower()}: {why}")
    return _job(google)


def wait_for_job(name: str, config: DeployConfig, shown: Callable[[Job], None]) -> Job:
    """Waits until a batch job is done, however long that takes.

    Args:
        name: the job's.
        config: where models are deployed to.
        shown: is told each new state.

    Raises:
        DeployError: see ``job``.
    """
    state, pauses = None, _pauses()
    while True:
        now = job(name, config)
        if now.state != state:
            shown(now)
            state = now.state
        if now.done:
            return now
        time.sleep(next(pauses))


def _format(inputs: Sequence[str]) -> str:
    kinds = {next((kind for end, kind in _FORMATS.items() if uri.endswith(end)), None) for uri in inputs}
    kind = kinds.pop() if len(kinds) == 1 else None
    if not kind:
        raise ModelError(
            f"{', '.join(inputs)}: a job takes files of one kind, {', '.join(_FORMATS)}, "
            "which `imagepipe requests` writes"
        )
    return kind


def _job(google: Json) -> Job:
    output = google.get("predictionOutput") or {}
    # Numbers of 64 bits are strings, in JSON.
    predicted, errors = (int(output.get(key) or 0) for key in ("predictionCount", "errorCount"))
    return Job(google["jobId"], google["state"], predicted, errors, google["predictionInput"]["outputPath"])


def _connect(config: DeployConfig) -> _Cloud:
    settings = config.ml_engine
    if not settings:
        raise ModelError("deploy.ml_engine: has to be given: project and region at least")
    _warn()
    project = f"projects/{settings.project}"
    return _Cloud(
        AuthorizedSession(gcp.credentials()),
        settings.api or _API,
        project,
        f"{project}/models/{str(config.name).replace('-', '_')}",
        settings,
        time.monotonic() + settings.timeout,
    )


@functools.cache
def _warn() -> None:
    _log.warning("Google has retired AI Platform Prediction (ML Engine). Its successor is Vertex AI: --target vertex")


def _versions(cloud: _Cloud) -> list[_Known]:
    """Those that we made, newest first."""
    found: list[Json] = []
    token = ""
    with gcp.in_words("ML Engine would not list the versions", cloud.settings):
        while True:
            try:
                page = _get(cloud, f"{cloud.model}/versions", {"pageToken": token} if token else {})
            except exceptions.NotFound:
                return []
            found += page.get("versions") or []
            token = page.get("nextPageToken") or ""
            if not token:
                break
    known = []
    for google in found:
        name = google["name"].rpartition("/")[2].removeprefix("v")
        if name.isdigit():
            version = Version(name, google["deploymentUri"], 100 if google.get("isDefault") else 0, _state(google))
            known.append(_Known(version, google))
    return sorted(known, key=lambda each: -int(each.version.version))


def _state(google: Json) -> str:
    if google.get("description") == _ROLLED_BACK:
        return _ROLLED_BACK
    state = str(google.get("state", "UNKNOWN")).lower()
    return f"{state}: {google['errorMessage']}" if google.get("errorMessage") else state


def _live(cloud: _Cloud) -> Version:
    live = next((known.version for known in _versions(cloud) if known.version.traffic), None)
    if not live:
        raise DeployError("no version is live at ML Engine: `imagepipe deploy` one")
    return live


def _make_ready(cloud: _Cloud, version: Version, google: Json | None) -> None:
    """Makes a version, or what is missing of it; if that fails, it isn't left there.

    Args:
        cloud: where it goes.
        version: its name, and where the SavedModel is.
        google: what Google says of the version, if an earlier attempt made it.
    """
    doing = f"ML Engine would not make version {version.version}"
    state = google and google.get("state")
    if state == _FAILED:
        _delete(cloud, version)
    try:
        with gcp.in_words(doing, cloud.settings):
            if state in (None, _FAILED):
                _create_model(cloud)
                operation = _call(cloud, "POST", f"{cloud.model}/versions", _new_version(cloud.settings, version))
                _done(cloud, operation, doing)
            now = _until(cloud, _path(cloud, version), lambda google: google.get("state") not in _CHANGING, doing)
        if now.get("state") != _READY:
            raise DeployError(f"{doing}: it is {_state(now)}")
    except gcp.UncertainError:
        raise
    except DeployError as error:
        try:
            _delete(cloud, version)
        except DeployError as besides:
            raise DeployError(f"{error}. Besides, {besides}") from error
        raise


def _new_version(settings: MLEngineConfig, version: Version) -> Json:
    body: Json = {
        "name": f"v{version.version}",
        "deploymentUri": version.uri,
        "runtimeVersion": settings.runtime_version,
        "pythonVersion": settings.python_version,
        "framework": "TENSORFLOW",
        "machineType": settings.machine_type,
    }
    if settings.max_nodes == settings.min_nodes:
        return body | {"manualScaling": {"nodes": settings.min_nodes}}
    most = {"maxNodes": settings.max_nodes} if settings.max_nodes else {}
    return body | {"autoScaling": {"minNodes": settings.min_nodes, **most}}


def _create_model(cloud: _Cloud) -> None:
    body = {"name": cloud.model.rpartition("/")[2], "regions": [cloud.settings.region]}
    with contextlib.suppress(exceptions.Conflict):  # it is there
        _call(cloud, "POST", f"{cloud.project}/models", body)


def _set_default(cloud: _Cloud, version: Version) -> None:
    with gcp.in_words(f"ML Engine would not make version {version.version} the default", cloud.settings):
        _call(cloud, "POST", f"{_path(cloud, version)}:setDefault", {})


def _describe(cloud: _Cloud, version: Version, description: str) -> None:
    doing = f"What was wanted is live, but ML Engine would not note it at version {version.version}"
    with gcp.in_words(doing, cloud.settings):
        mask = {"updateMask": "description"}
        _done(cloud, _call(cloud, "PATCH", _path(cloud, version), {"description": description}, mask), doing)


def _delete(cloud: _Cloud, version: Version) -> None:
    """Deletes a version, if there is one."""
    doing = f"ML Engine would not delete version {version.version}, which did not get ready"
    with gcp.in_words(doing, cloud.settings), contextlib.suppress(exceptions.NotFound):
        _done(cloud, _call(cloud, "DELETE", _path(cloud, version)), doing)


def _path(cloud: _Cloud, version: Version) -> str:
    return f"{cloud.model}/versions/v{version.version}"


def _done(cloud: _Cloud, operation: Json, doing: str) -> None:
    """Waits for a long-running operation."""
    operation = _until(cloud, operation["name"], lambda google: bool(google.get("done")), doing)
    if error := operation.get("error"):
        raise exceptions.from_grpc_status(error["code"], error.get("message", ""))


def _until(cloud: _Cloud, path: str, ended: Callable[[Json], bool], doing: str) -> Json:
    """Looks at something until it is as it should be."""
    pauses = _pauses()
    while True:
        google = _get(cloud, path)
        if ended(google):
            return google
        if time.monotonic() > cloud.deadline:
            raise gcp.UncertainError(
                f"{doing} within deploy.ml_engine.timeout, {cloud.settings.timeout:g} seconds. It may still be at it "
                f"({path}): look with `imagepipe status`, and do the same again to go on from there"
            )
        time.sleep(min(next(pauses), max(0.0, cloud.deadline - time.monotonic())))


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _get(cloud: _Cloud, path: str, query: Json | None = None) -> Json:
    return gcp.AGAIN(_call)(cloud, "GET", path, query=query)


def _call(cloud: _Cloud, method: str, path: str, body: Json | None = None, query: Json | None = None) -> Json:
    response = cloud.session.request(
        method, f"{cloud.api}/v1/{path}", json=body, params=query, timeout=_SECONDS, allow_redirects=False
    )
    if response.status_code != 200:
        raise exceptions.from_http_response(response)
    return dict(response.json())
