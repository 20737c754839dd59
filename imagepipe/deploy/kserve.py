"""Target ``kserve``: an InferenceService whose newest revision serves a version; in a canary, an older one the rest.

The model is copied to ``path/<v>/<v>/``: each revision has a folder of its own as its ``storageUri``, ``…/<v>``, in
which TensorFlow Serving and `imagepipe serve` find one version, by number.
"""

import copy
import json
import time
from typing import Any, cast
from urllib.parse import urlsplit

from kubernetes import client as kubernetes

from imagepipe.base import filesystem
from imagepipe.base.errors import DeployError
from imagepipe.deploy import storage
from imagepipe.deploy.config import DeployConfig, KServeConfig
from imagepipe.deploy.deployment import Address, Version
from imagepipe.deploy.inference_service import (
    HISTORY,
    NO_SERVICE,
    REVISIONS,
    VERSION,
    WITHDRAWN,
    Service,
    describe_problem,
    find_mode,
    has_failed,
    has_nothing_live,
    is_in_effect,
    is_raw,
    is_ready,
    is_rolled_out,
    limit_share,
    read_history,
    read_percent,
    read_revisions,
    read_shares,
    read_version,
    read_withdrawn,
    remove_percent,
    revision_template,
)
from imagepipe.deploy.kserve_api import ChangedError, ServiceClient, UnreachableError
from imagepipe.deploy.kserve_library import constants, models
from imagepipe.deploy.saved_model import GRAPH, read_inputs

_MAX_HISTORY = 10  # versions to go back to: annotations have 256 KiB
_MAX_WITHDRAWN = 100
_ROLLED_BACK = "rolled back"
_CONTAINER = "kserve-container"
_MODEL_FOLDER = "/mnt/models"
_POLL_SECONDS = 1.0


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Makes a SavedModel a new revision, or changes the share of one; the first of all gets all requests."""
    client = ServiceClient(config)
    live = client.get_own()
    if live and is_raw(live) and traffic < 100:
        raise DeployError(
            f"{client.title} is deployed in mode {find_mode(live)}, without Knative, where KServe can't split the "
            "requests: deploy with --traffic 100"
        )
    if live and storage.is_deployed(model, _locate_version(config, read_version(live), 0).uri, config.sign):
        version = read_version(live)  # also if a later one, which did not start, is in the folder
    else:
        version = storage.add_version(model, str(config.path), inner="{version}", key=config.sign)
    wanted = _build_manifest(config, version)
    if live is None:
        _create(client, wanted)
        return _locate_version(config, version, 100)
    if has_nothing_live(live):
        traffic = 100  # there is nothing that could get the rest
    if version == read_version(live) and traffic < 100 and is_rolled_out(live):
        raise DeployError(
            f"version {version} gets all requests already, and nothing else runs that could get a part of them. "
            "`imagepipe rollback` goes back to the version before; then this one can be deployed with --traffic"
        )
    history = read_history(live)
    if version != read_version(live) and is_rolled_out(live):
        replaced = {"version": read_version(live), "predictor": remove_percent(live["spec"]["predictor"])}
        history = [replaced, *history]
    kept = {previous["version"] for previous in history}
    ended = {v: "replaced" for v, share in read_shares(live).items() if share and v not in {version, *kept}}
    predictor = _merge_predictors(live["spec"]["predictor"], wanted["spec"]["predictor"])
    # Until the new one is ready, KServe gives its share to the canary that it replaces: that gets no more than it had.
    initial = limit_share(live, min(read_percent(live), traffic))
    _roll_out(client, live, _change_service(live, version, history, predictor, ended), initial, traffic)
    return _locate_version(config, version, traffic)


def status(config: DeployConfig) -> list[Version]:
    """Returns the specification's version and older ones, newest first, with the shares that KServe reports."""
    service = ServiceClient(config).get_own()
    return _list_versions(config, service) if service else []


def rollback(config: DeployConfig) -> Version:
    """Gives all requests to the previous version: at once during a canary, otherwise as soon as it runs again."""
    client = ServiceClient(config)
    live = client.get_own()
    if live is None:
        raise DeployError(f"{client.title} does not exist: there is nothing to roll back")
    if not read_history(live):
        raise DeployError(f"{client.title} has only version {read_version(live)}: there is nothing to go back to")
    previous, *history = read_history(live)
    version = _locate_version(config, previous["version"], 100)
    if not filesystem.exists(f"{version.uri}/{GRAPH}"):
        raise DeployError(f"version {version.version} can't run again: {version.uri} is no SavedModel any more")
    initial = limit_share(live, 100 if is_rolled_out(live) else 0)
    ended = {read_version(live): _ROLLED_BACK}
    wanted = _change_service(live, version.version, history, previous["predictor"], ended)
    _roll_out(client, live, wanted, initial, 100)
    return version


def find_address(config: DeployConfig) -> Address:
    """Returns the InferenceService's address; ``ingress`` if it is given, which finds the service by its host."""
    client = ServiceClient(config)
    service = client.get_own()
    if service is None:
        raise DeployError(f"{client.title} does not exist: deploy a model first")
    url = service.get("status", {}).get("url")
    # The server is not asked: during a canary either version may answer, and the next request goes to the other.
    live = [version.uri for version in _list_versions(config, service) if version.traffic]
    if not url or not live:
        raise DeployError(f"{client.title} does not answer yet: {describe_problem(service)}")
    ingress, headers = _read_settings(config).ingress, {}
    if ingress:
        parts = urlsplit(url)
        url, headers = f"{ingress}{parts.path}", {"Host": parts.netloc}
    labels, inputs = storage.read_common_labels(live), read_inputs(live[0])
    return Address(f"{url.rstrip('/')}/v1/models/{config.name}", labels=labels, headers=headers, inputs=inputs)


def _read_settings(config: DeployConfig) -> KServeConfig:
    return config.kserve or KServeConfig()


def _locate_version(config: DeployConfig, version: str, traffic: int, state: str = "ready") -> Version:
    return Version(version, f"{config.path}/{version}/{version}", traffic, state, state == _ROLLED_BACK)


def _list_versions(config: DeployConfig, service: Service) -> list[Version]:
    """Returns all versions that the service records, newest first."""
    newest, shares = read_version(service), read_shares(service)
    states = dict.fromkeys(shares, "ready")
    states[newest] = "ready" if is_ready(service) else describe_problem(service)
    states = read_withdrawn(service) | states
    versions = {*states, *(previous["version"] for previous in read_history(service))}
    return [
        _locate_version(config, version, shares.get(version, 0), states.get(version, "replaced"))
        for version in sorted(versions, key=int, reverse=True)
    ]


# --- The specification


def _build_manifest(config: DeployConfig, version: str) -> Service:
    """Returns the InferenceService of a version."""
    settings = _read_settings(config)
    uri = f"{(settings.storage_uri or str(config.path)).rstrip('/')}/{version}"
    limits = {"cpu": settings.cpu, "memory": settings.memory, "nvidia.com/gpu": str(settings.gpus or "")}
    limits = {name: quantity for name, quantity in limits.items() if quantity}
    resources = kubernetes.V1ResourceRequirements(limits=limits, requests=limits) if limits else None
    if settings.runtime == "tensorflow":
        model_format = models.V1beta1ModelFormat(name="tensorflow")
        model = models.V1beta1ModelSpec(model_format=model_format, storage_uri=uri, resources=resources)
        server = {"model": model}
    else:
        rate = str(settings.capture_rate)
        capture = ["--capture", settings.capture, "--capture-rate", rate] if settings.capture else []
        container = kubernetes.V1Container(
            name=_CONTAINER,
            image=settings.image,
            command=["imagepipe", "serve"],
            args=[_MODEL_FOLDER, "--name", config.name, "--host", "0.0.0.0", *capture],  # noqa: S104 (in its pod)
            env=[kubernetes.V1EnvVar(name="STORAGE_URI", value=uri)],  # from which KServe fills the folder
            ports=[kubernetes.V1ContainerPort(container_port=8080, protocol="TCP")],
            resources=resources,
        )
        server = {"containers": [container]}
    predictor = models.V1beta1PredictorSpec(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        service_account_name=settings.service_account,
        **server,
    )
    service = models.V1beta1InferenceService(
        api_version=constants.KSERVE_V1BETA1,
        kind=constants.KSERVE_KIND_INFERENCESERVICE,
        metadata=kubernetes.V1ObjectMeta(
            name=config.name, namespace=settings.namespace, annotations={VERSION: version, HISTORY: "[]"}
        ),
        spec=models.V1beta1InferenceServiceSpec(predictor=predictor),
    )
    return cast(Service, kubernetes.ApiClient().sanitize_for_serialization(service))


def _merge_predictors(live: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Returns the wanted predictor, with the keys that others than this pipeline have set, such as tolerations."""
    own = ("model", "containers", "minReplicas", "maxReplicas", "serviceAccountName")
    return {key: value for key, value in live.items() if key not in own} | wanted


def _change_service(
    live: Service, version: str, history: list[dict[str, Any]], predictor: dict[str, Any], ended: dict[str, str]
) -> Service:
    service = copy.deepcopy(live)
    if version != read_version(live):
        withdrawn = {v: how for v, how in (read_withdrawn(live) | ended).items() if v != version}
        service["metadata"]["annotations"] |= {
            WITHDRAWN: json.dumps(dict(list(withdrawn.items())[-_MAX_WITHDRAWN:])),
            VERSION: version,
            HISTORY: json.dumps(history[:_MAX_HISTORY]),
            REVISIONS: json.dumps(read_revisions(live)),
        }
    service["spec"]["predictor"] = predictor
    return service


def _set_percent(service: Service, percent: int) -> Service:
    """Returns the InferenceService, its newest revision with a share; all of the requests is KServe's default."""
    service = copy.deepcopy(service)
    predictor = remove_percent(service["spec"]["predictor"])
    service["spec"]["predictor"] = predictor if percent == 100 else predictor | {"canaryTrafficPercent": percent}
    return service


# --- Changes of the service


def _create(client: ServiceClient, wanted: Service) -> None:
    created = client.create(wanted)
    try:
        _wait(client, NO_SERVICE, created, 100)
    except ChangedError:
        raise
    except DeployError as error:
        raise DeployError(f"{error}. {_delete(client)}") from error


def _delete(client: ServiceClient) -> str:
    """Deletes a service that did not start; returns a sentence about it for the error message."""
    try:
        client.delete()
    except DeployError as error:
        return f"Nothing was live; but the new service could not be deleted again ({error})"
    return "Nothing was live, and the new service is deleted again"


def _roll_out(client: ServiceClient, live: Service, wanted: Service, initial: int, percent: int) -> None:
    """Changes an InferenceService, and waits until the change is in effect; if that fails, restores what was live.

    Args:
        client: client of the service.
        live: the service now.
        wanted: the service after the change.
        initial: percent of the requests for the newest revision until the wanted one is ready; KServe gives the rest to
            the last one that had all.
        percent: percent of the requests for the wanted one then.
    """
    try:
        _apply(client, live, wanted, initial, percent)
    except ChangedError:
        raise
    except DeployError as error:
        raise DeployError(f"{error}. {_restore(client, live)}") from error


def _apply(client: ServiceClient, live: Service, wanted: Service, initial: int, percent: int) -> None:
    changed = client.replace(_set_percent(wanted, initial))
    current = _wait(client, live, changed, initial)
    if percent != initial:
        _wait(client, current, client.replace(_set_percent(current, percent)), percent)


def _restore(client: ServiceClient, live: Service) -> str:
    """Restores a specification, so that a failed one does not stay pending; returns a sentence about what is live."""
    shares = " and ".join(f"version {version} gets {percent}%" for version, percent in read_shares(live).items())
    live_now = f"As before, {shares or 'no version gets any'} of the requests"
    try:
        failed = client.get()
        if failed is None:
            return f"{client.title} is gone: deploy again"
        if failed["metadata"]["generation"] == live["metadata"]["generation"]:
            return live_now  # the change was refused
        restored = copy.deepcopy(failed)
        restored["metadata"]["annotations"], restored["spec"] = live["metadata"]["annotations"], live["spec"]
        # What failed to start may come up late, and must not get requests before the restored revision runs anew.
        is_new = revision_template(restored) != revision_template(failed)
        _apply(client, failed, restored, limit_share(live, 0) if is_new else read_percent(live), read_percent(live))
    except DeployError as error:
        return (
            f"{live_now}; but the specification could not be restored ({error}): see "
            f"kubectl describe inferenceservice {client.name} --namespace {client.namespace}"
        )
    return live_now


def _wait(client: ServiceClient, old: Service, changed: Service, percent: int) -> Service:
    """Waits until a change is in effect.

    Args:
        client: client of the service.
        old: the service before the change.
        changed: the service as the API returned it.
        percent: percent of the requests that the newest revision has to get.

    Returns:
        The service then.

    Raises:
        DeployError: if the change fails or takes too long, with KServe's reason.
    """
    deadline = time.monotonic() + client.timeout
    new_revision = revision_template(changed) != revision_template(old)
    problem = ""
    while True:
        try:
            service = client.get()
        except UnreachableError as error:  # it passes, or the time is up
            problem = str(error)
        else:
            if service is None or service["metadata"]["generation"] != changed["metadata"]["generation"]:
                raise client.create_changed_error()
            if is_in_effect(service, old, new_revision, percent):
                return service
            problem = describe_problem(service)
            if has_failed(service, old):
                raise DeployError(f"version {read_version(service)} does not get ready: {problem}")
        if time.monotonic() > deadline:
            raise DeployError(f"{client.title} was not ready after {client.timeout:g} s: {problem}")
        time.sleep(_POLL_SECONDS)
