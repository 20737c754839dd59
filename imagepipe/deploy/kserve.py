"""KServe: an InferenceService, whose newest revision serves a version, and during a canary the one before the rest.

The model is copied to ``path/<v>/<v>/``: each revision has a folder of its own as its ``storageUri``, ``…/<v>``, in
which TensorFlow Serving and `imagepipe serve` find one version, by number.
"""

import copy
import json
import time
from typing import Any, cast
from urllib.parse import urlsplit

import tensorflow as tf
from kubernetes import client as kubernetes

from imagepipe.base.errors import DeployError
from imagepipe.deploy import inference_service as said
from imagepipe.deploy import storage
from imagepipe.deploy.config import DeployConfig, KServeConfig
from imagepipe.deploy.deployment import Address, Version
from imagepipe.deploy.inference_service import Service
from imagepipe.deploy.kserve_api import ChangedError, Services, UnreachableError
from imagepipe.deploy.kserve_library import constants, models
from imagepipe.deploy.saved_model import read_inputs

_KEPT = 10  # versions to go back to: annotations have 256 KiB
_CONTAINER = "kserve-container"
_MOUNTED = "/mnt/models"
_POLL_SECONDS = 1.0


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Makes a SavedModel a new revision, or changes the share of one; the first one of all gets all requests."""
    services = Services(config)
    live = services.ours()
    if live and said.is_raw(live) and traffic < 100:
        raise DeployError(
            f"{services.named} is deployed in mode {said.mode(live)}, without Knative, where KServe can't split the "
            "requests: deploy with --traffic 100"
        )
    if live and storage.is_same_model(model, _version(config, said.annotated(live), 0).uri):
        version = said.annotated(live)  # also if a later one, which did not start, is in the folder
    else:
        version = storage.add_version(model, str(config.path), inner="{version}")
    wanted = _manifest(config, version)
    if live is None:
        _create(services, wanted)
        return _version(config, version, 100)
    if said.nothing_live(live):
        traffic = 100  # there is nothing that could get the rest
    if version == said.annotated(live) and traffic < 100 and said.is_rolled_out(live):
        raise DeployError(
            f"version {version} gets all requests already, and nothing else runs that could get a part of them. "
            "`imagepipe rollback` goes back to the version before; then this one can be deployed with --traffic"
        )
    before = said.before(live)
    if version != said.annotated(live) and said.is_rolled_out(live):
        before = [
            {"version": said.annotated(live), "predictor": said.without_percent(live["spec"]["predictor"])},
            *before,
        ]
    predictor = _merged(live["spec"]["predictor"], wanted["spec"]["predictor"])
    # Until the new one is ready, KServe gives its share to the canary that it replaces: that gets no more than it had.
    hold = said.held(live, min(said.percent(live), traffic))
    _roll(services, live, _changed(live, version, before, predictor), hold, traffic)
    return _version(config, version, traffic)


def status(config: DeployConfig) -> list[Version]:
    """The version of the specification and those before it, newest first, with the shares that KServe tells."""
    service = Services(config).ours()
    return _versions(config, service) if service else []


def rollback(config: DeployConfig) -> Version:
    """Gives all requests to the version before: at once during a canary, otherwise as soon as it runs again."""
    services = Services(config)
    live = services.ours()
    if live is None:
        raise DeployError(f"{services.named} does not exist: there is nothing to roll back")
    if not said.before(live):
        raise DeployError(f"{services.named} has only version {said.annotated(live)}: there is nothing to go back to")
    past, *before = said.before(live)
    version = _version(config, past["version"], 100)
    if not tf.io.gfile.exists(f"{version.uri}/saved_model.pb"):
        raise DeployError(f"version {version.version} can't run again: {version.uri} is no SavedModel any more")
    hold = said.held(live, 100 if said.is_rolled_out(live) else 0)
    _roll(services, live, _changed(live, version.version, before, past["predictor"]), hold, 100)
    return version


def find_address(config: DeployConfig) -> Address:
    """A client for the InferenceService; through ``ingress`` if there is one, which finds the service by its host."""
    services = Services(config)
    service = services.ours()
    if service is None:
        raise DeployError(f"{services.named} does not exist: deploy a model first")
    url = service.get("status", {}).get("url")
    # Not asked of the server: during a canary it can be any of two, and the next request goes to the other.
    serving = [version.uri for version in _versions(config, service) if version.traffic]
    if not url or not serving:
        raise DeployError(f"{services.named} does not answer yet: {said.reason(service)}")
    ingress, headers = _settings(config).ingress, {}
    if ingress:
        parts = urlsplit(url)
        url, headers = f"{ingress}{parts.path}", {"Host": parts.netloc}
    labels, inputs = storage.read_common_labels(serving), read_inputs(serving[0])
    return Address(f"{url.rstrip('/')}/v1/models/{config.name}", labels=labels, headers=headers, inputs=inputs)


def _settings(config: DeployConfig) -> KServeConfig:
    return config.kserve or KServeConfig()


def _version(config: DeployConfig, version: str, traffic: int, state: str = "ready") -> Version:
    return Version(version, f"{config.path}/{version}/{version}", traffic, state)


def _versions(config: DeployConfig, service: Service) -> list[Version]:
    """All that are known, newest first."""
    newest, shares = said.annotated(service), said.shares(service)
    state = dict.fromkeys(shares, "ready") | {newest: "ready" if said.is_ready(service) else said.reason(service)}
    known = {newest, *shares, *(past["version"] for past in said.before(service))}
    return [
        _version(config, version, shares.get(version, 0), state.get(version, "replaced"))
        for version in sorted(known, key=int, reverse=True)
    ]


def _manifest(config: DeployConfig, version: str) -> Service:
    """The InferenceService of a version."""
    settings = _settings(config)
    uri = f"{(settings.storage_uri or str(config.path)).rstrip('/')}/{version}"
    given = {"cpu": settings.cpu, "memory": settings.memory, "nvidia.com/gpu": str(settings.gpus or "")}
    given = {name: quantity for name, quantity in given.items() if quantity}
    resources = kubernetes.V1ResourceRequirements(limits=given, requests=given) if given else None
    if settings.runtime == "tensorflow":
        model_format = models.V1beta1ModelFormat(name="tensorflow")
        model = models.V1beta1ModelSpec(model_format=model_format, storage_uri=uri, resources=resources)
        server = {"model": model}
    else:
        container = kubernetes.V1Container(
            name=_CONTAINER,
            image=settings.image,
            command=["imagepipe", "serve"],
            args=[_MOUNTED, "--name", config.name, "--host", "0.0.0.0"],  # noqa: S104 (in its pod)
            env=[kubernetes.V1EnvVar(name="STORAGE_URI", value=uri)],  # from where KServe fills the folder
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
            name=config.name, namespace=settings.namespace, annotations={said.VERSION: version, said.BEFORE: "[]"}
        ),
        spec=models.V1beta1InferenceServiceSpec(predictor=predictor),
    )
    return cast(Service, kubernetes.ApiClient().sanitize_for_serialization(service))


def _merged(live: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The wanted predictor, with what others than this pipeline have set, such as tolerations."""
    ours = ("model", "containers", "minReplicas", "maxReplicas", "serviceAccountName")
    return {key: value for key, value in live.items() if key not in ours} | wanted


def _changed(live: Service, version: str, before: list[dict[str, Any]], predictor: dict[str, Any]) -> Service:
    service = copy.deepcopy(live)
    if version != said.annotated(live):
        service["metadata"]["annotations"] |= {
            said.VERSION: version,
            said.BEFORE: json.dumps(before[:_KEPT]),
            said.REVISIONS: json.dumps(said.revisions(live)),
        }
    service["spec"]["predictor"] = predictor
    return service


def _with_percent(service: Service, percent: int) -> Service:
    """The InferenceService, its newest revision with a share; all of the requests is KServe's default."""
    service = copy.deepcopy(service)
    predictor = said.without_percent(service["spec"]["predictor"])
    service["spec"]["predictor"] = predictor if percent == 100 else predictor | {"canaryTrafficPercent": percent}
    return service


def _create(services: Services, wanted: Service) -> None:
    made = services.create(wanted)
    try:
        _wait(services, said.NOTHING, made, 100)
    except ChangedError:
        raise
    except DeployError as error:
        raise DeployError(f"{error}. {_deleted(services)}") from error


def _deleted(services: Services) -> str:
    """Deletes what did not start, and says so."""
    try:
        services.delete()
    except DeployError as error:
        return f"Nothing was live; but what was begun could not be deleted again ({error})"
    return "Nothing was live, and what was begun is deleted again"


def _roll(services: Services, live: Service, wanted: Service, hold: int, percent: int) -> None:
    """Changes an InferenceService, and waits until it is done; if that fails, what was live is put back.

    Args:
        services: where it is.
        live: the service as it is.
        wanted: as it is to be.
        hold: percent of the requests for the newest revision until the wanted one is ready; KServe gives the rest to
            the last one that had all.
        percent: of the requests for the wanted one then.
    """
    try:
        _change(services, live, wanted, hold, percent)
    except ChangedError:
        raise
    except DeployError as error:
        raise DeployError(f"{error}. {_restored(services, live)}") from error


def _change(services: Services, live: Service, wanted: Service, hold: int, percent: int) -> None:
    changed = services.replace(_with_percent(wanted, hold))
    now = _wait(services, live, changed, hold)
    if percent != hold:
        _wait(services, now, services.replace(_with_percent(now, percent)), percent)


def _restored(services: Services, live: Service) -> str:
    """Puts a specification back, so that one that failed does not stay pending. Says what is live now."""
    shares = " and ".join(f"version {version} gets {percent}%" for version, percent in said.shares(live).items())
    live_now = f"As before, {shares or 'no version gets any'} of the requests"
    try:
        failed = services.get()
        if failed is None:
            return f"{services.named} is gone: deploy again"
        if failed["metadata"]["generation"] == live["metadata"]["generation"]:
            return live_now  # it was refused
        back = copy.deepcopy(failed)
        back["metadata"]["annotations"], back["spec"] = live["metadata"]["annotations"], live["spec"]
        # What failed to start may come up late, and must not get requests before the one that is put back runs anew.
        hold = said.held(live, 0) if said.template(back) != said.template(failed) else said.percent(live)
        _change(services, failed, back, hold, said.percent(live))
    except DeployError as error:
        return (
            f"{live_now}; but the specification could not be put back as it was ({error}): see "
            f"kubectl describe inferenceservice {services.name} --namespace {services.namespace}"
        )
    return live_now


def _wait(services: Services, old: Service, changed: Service, percent: int) -> Service:
    """Waits until a change is in effect.

    Args:
        services: where it is.
        old: the service before the change.
        changed: the service as the API gave it back.
        percent: of the requests that the newest revision has to get.

    Returns:
        The service as it is then.

    Raises:
        DeployError: if it fails or takes too long, with KServe's reason.
    """
    deadline = time.monotonic() + services.timeout
    anew = said.template(changed) != said.template(old)
    reason = ""
    while True:
        try:
            service = services.get()
        except UnreachableError as error:  # that passes, or the time is up
            reason = str(error)
        else:
            if service is None or service["metadata"]["generation"] != changed["metadata"]["generation"]:
                raise services.changed_meanwhile()
            if said.has_arrived(service, old, anew, percent):
                return service
            reason = said.reason(service)
            if said.has_failed(service, old):
                raise DeployError(f"version {said.annotated(service)} does not get ready: {reason}")
        if time.monotonic() > deadline:
            raise DeployError(f"{services.named} was not ready after {services.timeout:g} s: {reason}")
        time.sleep(_POLL_SECONDS)
