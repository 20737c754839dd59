"""KServe: an InferenceService, whose newest revision serves a version, and during a canary the one before the rest.

The model is copied to ``path/<v>/<v>/``: each revision has a folder of its own as its ``storageUri``, ``…/<v>``, in
which TensorFlow Serving and `imagepipe serve` find one version, by number.

KServe knows revisions, not versions. Which version a specification is of, and what was served before it, is therefore
recorded in annotations. They change only when the model does: KServe hands annotations on to the pods, so that any
other change would start new ones.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock
from urllib.parse import urlsplit

import tensorflow as tf
import urllib3
import yaml
from kubernetes import client as kubernetes
from kubernetes import config as kubeconfig

from serving import storage
from serving.client import Endpoint
from serving.targets.base import DeployError, Version
from serving.targets.config import DeployConfig, KServeConfig, is_private

with mock.patch.object(sys, "argv", sys.argv[:1]):  # KServe reads options of its own from there when it is imported
    from kserve import constants, models

VERSION = "imagepipe.dev/version"
BEFORE = "imagepipe.dev/before"
"""What was served before, newest first: objects with ``version`` and ``predictor``, its specification."""
REVISIONS = "imagepipe.dev/revisions"
"""The versions of the revisions that there were before this version's: an object. All others are of this version."""

_MODE = "serving.kserve.io/deploymentMode"
_WITHOUT_REVISIONS = ("RawDeployment", "Standard")  # the older and the newer name of the mode
_KEPT = 10  # versions to go back to: annotations have 256 KiB
_CONTAINER = "kserve-container"
_MOUNTED = "/mnt/models"
_POLL_SECONDS = 1.0
_REQUEST_SECONDS = (5, 30)  # to connect, to answer
_CONFLICTS = 10

Service = dict[str, Any]
"""An InferenceService as the API gives it."""

_NOTHING: Service = {"metadata": {}, "spec": {"predictor": {}}}


class _UnreachableError(DeployError):
    """Kubernetes does not answer, or not now."""


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Makes a SavedModel a new revision, or changes the share of one; the first one of all gets all requests."""
    services = _Services(config)
    live = services.ours()
    if live and _is_raw(live) and traffic < 100:
        raise DeployError(
            f"{services.named} is deployed in mode {_mode(live)}, without Knative, where KServe can't split the "
            "requests: deploy with --traffic 100"
        )
    version = storage.add_version(model, str(config.path), inner="{version}")
    wanted = _manifest(config, version)
    if live is None:
        _create(services, wanted)
        return _version(config, version, 100)
    if _nothing_live(live):
        traffic = 100  # there is nothing that could get the rest
    if version == _annotated(live) and traffic < 100 and _is_rolled_out(live):
        raise DeployError(
            f"version {version} gets all requests already, and nothing else runs that could get a part of them. "
            "`imagepipe rollback` goes back to the version before; then this one can be deployed with --traffic"
        )
    before = _before(live)
    if version != _annotated(live) and _is_rolled_out(live):
        before = [{"version": _annotated(live), "predictor": _without_percent(live["spec"]["predictor"])}, *before]
    predictor = _merged(live["spec"]["predictor"], wanted["spec"]["predictor"])
    # Until the new one is ready, KServe gives its share to the canary that it replaces: that gets no more than it had.
    hold = _held(live, min(_percent(live), traffic))
    _roll(services, live, _changed(live, version, before, predictor), hold, traffic)
    return _version(config, version, traffic)


def status(config: DeployConfig) -> list[Version]:
    """The version of the specification and those before it, newest first, with the shares that KServe tells."""
    service = _Services(config).ours()
    return _versions(config, service) if service else []


def rollback(config: DeployConfig) -> Version:
    """Gives all requests to the version before: at once during a canary, otherwise as soon as it runs again."""
    services = _Services(config)
    live = services.ours()
    if live is None:
        raise DeployError(f"{services.named} does not exist: there is nothing to roll back")
    if not _before(live):
        raise DeployError(f"{services.named} has only version {_annotated(live)}: there is nothing to go back to")
    past, *before = _before(live)
    version = _version(config, past["version"], 100)
    if not tf.io.gfile.exists(f"{version.uri}/saved_model.pb"):
        raise DeployError(f"version {version.version} can't run again: {version.uri} is no SavedModel any more")
    hold = _held(live, 100 if _is_rolled_out(live) else 0)
    _roll(services, live, _changed(live, version.version, before, past["predictor"]), hold, 100)
    return version


def online(config: DeployConfig) -> Endpoint:
    """A client for the InferenceService; through ``ingress`` if there is one, which finds the service by its host."""
    services = _Services(config)
    service = services.ours()
    if service is None:
        raise DeployError(f"{services.named} does not exist: deploy a model first")
    url = service.get("status", {}).get("url")
    # Not asked of the server: during a canary it can be any of two, and the next request goes to the other.
    serving = [version.uri for version in _versions(config, service) if version.traffic]
    if not url or not serving:
        raise DeployError(f"{services.named} does not answer yet: {_reason(service)}")
    ingress, headers = _settings(config).ingress, {}
    if ingress:
        parts = urlsplit(url)
        url, headers = f"{ingress}{parts.path}", {"Host": parts.netloc}
    names, taken = storage.common_labels(serving), storage.inputs(serving[0])
    return Endpoint(f"{url.rstrip('/')}/v1/models/{config.name}", names=names, headers=headers, taken=taken)


def _settings(config: DeployConfig) -> KServeConfig:
    return config.kserve or KServeConfig()


def _version(config: DeployConfig, version: str, traffic: int, state: str = "ready") -> Version:
    return Version(version, f"{config.path}/{version}/{version}", traffic, state)


def _versions(config: DeployConfig, service: Service) -> list[Version]:
    """All that are known, newest first."""
    newest, shares = _annotated(service), _shares(service)
    state = dict.fromkeys(shares, "ready") | {newest: "ready" if _is_ready(service) else _reason(service)}
    known = {newest, *shares, *(past["version"] for past in _before(service))}
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
            name=config.name, namespace=settings.namespace, annotations={VERSION: version, BEFORE: "[]"}
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
    if version != _annotated(live):
        told = _predictor_status(live)
        revisions = {part["revisionName"] for part in told.get("traffic", [])} | {told.get("latestReadyRevision", "")}
        service["metadata"]["annotations"] |= {
            VERSION: version,
            BEFORE: json.dumps(before[:_KEPT]),
            REVISIONS: json.dumps({name: _of_revision(live, name) for name in sorted(revisions)}),
        }
    service["spec"]["predictor"] = predictor
    return service


def _with_percent(service: Service, percent: int) -> Service:
    """The InferenceService, its newest revision with a share; all of the requests is KServe's default."""
    service = copy.deepcopy(service)
    predictor = _without_percent(service["spec"]["predictor"])
    service["spec"]["predictor"] = predictor if percent == 100 else predictor | {"canaryTrafficPercent": percent}
    return service


def _without_percent(predictor: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in predictor.items() if key != "canaryTrafficPercent"}


def _annotated(service: Service) -> str:
    return str(service["metadata"]["annotations"][VERSION])


def _before(service: Service) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], json.loads(service["metadata"]["annotations"].get(BEFORE, "[]")))


def _percent(service: Service) -> int:
    """The share that the specification gives to its version once it runs."""
    percent = service["spec"]["predictor"].get("canaryTrafficPercent")
    return 100 if percent is None else int(percent)


def _predictor_status(service: Service) -> dict[str, Any]:
    return cast(dict[str, Any], service.get("status", {}).get("components", {}).get("predictor", {}))


def _mode(service: Service) -> str | None:
    told = service.get("status", {}).get("deploymentMode")
    return told or (service["metadata"].get("annotations") or {}).get(_MODE)


def _is_raw(service: Service) -> bool:
    return _mode(service) in _WITHOUT_REVISIONS


def _has_newest_revision(service: Service) -> bool:
    """Whether the revision that was made last is one that requests can go to."""
    told = _predictor_status(service)
    return bool(told.get("latestCreatedRevision")) and told.get("latestReadyRevision") == told["latestCreatedRevision"]


def _is_rolled_out(service: Service) -> bool:
    """Whether the specification's version is what gets all requests, apart from what is being changed."""
    return _percent(service) == 100 and (_is_raw(service) or _has_newest_revision(service))


def _nothing_live(service: Service) -> bool:
    return not _is_raw(service) and not _predictor_status(service).get("latestRolledoutRevision")


def _held(live: Service, percent: int) -> int:
    """A share for the newest revision; where KServe splits nothing, all."""
    return 100 if _is_raw(live) or _nothing_live(live) else percent


def _share(service: Service) -> int:
    """Percent of the requests that the newest revision gets."""
    if not _has_newest_revision(service):
        return 0
    told = _predictor_status(service)
    newest = told["latestReadyRevision"]
    return sum(part.get("percent") or 0 for part in told.get("traffic", []) if part.get("revisionName") == newest)


def _shares(service: Service) -> dict[str, int]:
    """By version, percent of the requests; only those that get any."""
    if _is_raw(service):
        return {_annotated(service): 100}
    shares: dict[str, int] = {}
    for part in _predictor_status(service).get("traffic", []):
        version = _of_revision(service, part["revisionName"])
        shares[version] = shares.get(version, 0) + (part.get("percent") or 0)
    return {version: percent for version, percent in shares.items() if percent}


def _of_revision(service: Service, name: str) -> str:
    """The version of a revision."""
    recorded = json.loads(service["metadata"]["annotations"].get(REVISIONS, "{}"))
    return cast(str, recorded.get(name, _annotated(service)))


def _conditions(service: Service) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in service.get("status", {}).get("conditions", [])}


def _is_true(service: Service, condition: str) -> bool:
    return bool(_conditions(service).get(condition, {}).get("status") == "True")


def _is_ready(service: Service) -> bool:
    return _is_true(service, "Ready") and (_is_raw(service) or _has_newest_revision(service))


def _reason(service: Service) -> str:
    """Why a service is not ready, in KServe's words."""
    conditions = _conditions(service)
    words = []
    for name in ("PredictorConfigurationReady", "PredictorReady", "IngressReady", "Ready"):
        condition = conditions.get(name, {})
        if condition.get("status") in ("False", "Unknown") and (condition.get("message") or condition.get("reason")):
            words.append(f"{name}: {condition.get('message') or condition['reason']}")
            break
    failure = service.get("status", {}).get("modelStatus", {}).get("lastFailureInfo")
    if failure:
        words.append(f"{failure.get('reason', 'failure')}: {failure.get('message') or 'no message'}".strip())
    return "; ".join(words) or "KServe has said nothing of it yet"


def _template(service: Service) -> object:
    """All of a specification that makes a revision: a change of it is a new one."""
    metadata = service["metadata"]
    return _without_percent(service["spec"]["predictor"]), metadata.get("annotations"), metadata.get("labels")


def _has_arrived(service: Service, old: Service, percent: int) -> bool:
    """Whether a change is in effect.

    KServe's ``observedGeneration`` is that of what it made of the service, so it can only be compared with itself.
    """
    anew = _template(service) != _template(old)
    if _is_raw(service):
        is_seen = not anew or _observed(service) != _observed(old)
        return is_seen and _is_true(service, "Ready") and _transition(service) in (None, "", "UpToDate")
    return (not anew or _has_new_revision(service, old)) and _is_ready(service) and _share(service) == percent


def _observed(service: Service) -> int | None:
    return cast(int | None, service.get("status", {}).get("observedGeneration"))


def _has_new_revision(service: Service, old: Service) -> bool:
    created = "latestCreatedRevision"
    return bool(_predictor_status(service).get(created) != _predictor_status(old).get(created))


def _has_failed(service: Service, old: Service) -> bool:
    """Whether KServe has given a change up; what it says of the revision before, which may be broken, is no sign."""
    if _transition(service) == "InvalidSpec":
        return _transition(old) != "InvalidSpec"
    conditions = _conditions(service)
    if _is_raw(service):
        return bool(conditions.get("PredictorReady", {}).get("reason") == "ProgressDeadlineExceeded")
    failed = conditions.get("PredictorConfigurationReady", {}).get("status") == "False"
    return failed and _has_new_revision(service, old)


def _transition(service: Service) -> str | None:
    return cast(str | None, service.get("status", {}).get("modelStatus", {}).get("transitionStatus"))


def _create(services: "_Services", wanted: Service) -> None:
    made = services.create(wanted)
    try:
        _wait(services, _NOTHING, made, 100)
    except DeployError as error:
        services.delete()
        raise DeployError(f"{error}. Nothing was live, and what was begun is deleted again") from error


def _roll(services: "_Services", live: Service, wanted: Service, hold: int, percent: int) -> None:
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
    except _ChangedError:
        raise
    except DeployError as error:
        raise DeployError(f"{error}. {_restored(services, live)}") from error


def _change(services: "_Services", live: Service, wanted: Service, hold: int, percent: int) -> None:
    changed = services.replace(_with_percent(wanted, hold))
    now = _wait(services, live, changed, hold)
    if percent != hold:
        _wait(services, now, services.replace(_with_percent(now, percent)), percent)


def _restored(services: "_Services", live: Service) -> str:
    """Puts a specification back, so that one that failed does not stay pending. Says what is live now."""
    shares = " and ".join(f"version {version} gets {percent}%" for version, percent in _shares(live).items())
    said = f"As before, {shares or 'no version gets any'} of the requests"
    try:
        failed = services.get()
        if failed is None:
            return f"{services.named} is gone: deploy again"
        if failed["metadata"]["generation"] == live["metadata"]["generation"]:
            return said  # it was refused
        back = copy.deepcopy(failed)
        back["metadata"]["annotations"], back["spec"] = live["metadata"]["annotations"], live["spec"]
        # What failed to start may come up late, and must not get requests before the one that is put back runs anew.
        hold = _held(live, 0) if _template(back) != _template(failed) else _percent(live)
        _change(services, failed, back, hold, _percent(live))
    except DeployError as error:
        return (
            f"{said}; but the specification could not be put back as it was ({error}): see "
            f"kubectl describe inferenceservice {services.name} --namespace {services.namespace}"
        )
    return said


def _wait(services: "_Services", old: Service, changed: Service, percent: int) -> Service:
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
    said = ""
    while True:
        try:
            service = services.get()
        except _UnreachableError as error:  # that passes, or the time is up
            said = str(error)
        else:
            if service is None or service["metadata"]["generation"] != changed["metadata"]["generation"]:
                raise services.changed_meanwhile()
            if _has_arrived(service, old, percent):
                return service
            said = _reason(service)
            if _has_failed(service, old):
                raise DeployError(f"version {_annotated(service)} does not get ready: {said}")
        if time.monotonic() > deadline:
            raise DeployError(f"{services.named} was not ready after {services.timeout:g} s: {said}")
        time.sleep(_POLL_SECONDS)


class _Services:
    """The InferenceServices of a namespace, of which it is about one."""

    def __init__(self, config: DeployConfig):
        settings = _settings(config)
        self.name, self.namespace, self.timeout = str(config.name), settings.namespace, settings.timeout
        self.named = f"InferenceService {self.name} in namespace {self.namespace}"
        configuration = _connection(settings.context)
        configuration.retries = False  # a repeated PUT would look like a conflict with someone else
        self._host = configuration.host
        self._api = kubernetes.CustomObjectsApi(kubernetes.ApiClient(configuration))
        self._where = {
            "group": constants.KSERVE_GROUP,
            "version": constants.KSERVE_V1BETA1_VERSION,
            "namespace": self.namespace,
            "plural": constants.KSERVE_PLURAL_INFERENCESERVICE,
            "_request_timeout": _REQUEST_SECONDS,
        }

    def get(self) -> Service | None:
        """The service; None if there is none of that name."""
        try:
            with self._errors_in_words():
                return cast(Service, self._api.get_namespaced_custom_object(name=self.name, **self._where))
        except _MissingError:
            return None

    def ours(self) -> Service | None:
        """The same.

        Raises:
            DeployError: if it is not one that ``deploy`` made.
        """
        service = self.get()
        if service and VERSION not in service["metadata"].get("annotations", {}):
            raise DeployError(
                f"{self.named} was not made by imagepipe: give another deploy.name, or delete it with "
                f"kubectl delete inferenceservice {self.name} --namespace {self.namespace}"
            )
        return service

    def create(self, service: Service) -> Service:
        """Makes it, and returns it as the API gives it back."""
        with self._errors_in_words():
            return cast(Service, self._api.create_namespaced_custom_object(body=service, **self._where))

    def delete(self) -> None:
        """Deletes it, and thereby all that KServe made of it."""
        with self._errors_in_words():
            self._api.delete_namespaced_custom_object(name=self.name, **self._where)

    def replace(self, service: Service) -> Service:
        """Replaces a service's specification and annotations.

        Args:
            service: as it was read, changed.

        Returns:
            The service as the API gives it back.

        Raises:
            DeployError: if it is refused, or another one has changed the specification since it was read.
        """
        for _ in range(_CONFLICTS):
            try:
                with self._errors_in_words():
                    return cast(
                        Service, self._api.replace_namespaced_custom_object(name=self.name, body=service, **self._where)
                    )
            except _ConflictError:  # mostly with KServe, which writes the status
                now = self.get()
                if now is None or now["metadata"]["generation"] != service["metadata"]["generation"]:
                    break
                service["metadata"]["resourceVersion"] = now["metadata"]["resourceVersion"]
        raise self.changed_meanwhile()

    def changed_meanwhile(self) -> "_ChangedError":
        return _ChangedError(f"{self.named} was changed by someone else meanwhile: see `imagepipe status`")

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except kubernetes.ApiException as error:
            raise self._in_words(error) from None  # it has the headers of the answer
        except urllib3.exceptions.HTTPError as error:
            raise _UnreachableError(f"Kubernetes at {self._host} does not answer: {error}") from None

    def _in_words(self, error: kubernetes.ApiException) -> DeployError:
        try:
            answer = json.loads(error.body or "")
        except ValueError:
            answer = {}
        message, kind = answer.get("message") or error.reason, (answer.get("details") or {}).get("kind")
        if error.status == 401:
            return DeployError(
                f"Kubernetes at {self._host} does not take the credentials (401): log in to the cluster again; "
                "`kubectl get inferenceservices` shows whether it works"
            )
        if error.status == 404 and not answer:
            return DeployError(
                f"Kubernetes at {self._host} has no InferenceServices of {constants.KSERVE_V1BETA1}: install KServe"
            )
        if error.status == 404 and kind == "namespaces":
            return DeployError(
                f"there is no namespace {self.namespace} at {self._host}: make it with kubectl create namespace "
                f"{self.namespace}, or give deploy.kserve.namespace"
            )
        if error.status == 404:
            return _MissingError(f"{self.named} does not exist")
        if error.status == 409:
            return _ConflictError(str(message))
        if error.status >= 500 or error.status == 429:
            return _UnreachableError(f"Kubernetes at {self._host} can't answer now ({error.status}): {message}")
        return DeployError(f"Kubernetes refuses {self.named} ({error.status}): {message}")


class _MissingError(DeployError):
    """There is no such object."""


class _ConflictError(DeployError):
    """The object was written since it was read."""


class _ChangedError(DeployError):
    """Someone else has changed the specification, which is therefore left as it is."""


def _connection(context: str | None) -> kubernetes.Configuration:
    """How Kubernetes is reached: what the kubeconfig says, or inside a cluster its service account."""
    configuration = kubernetes.Configuration()
    try:
        kubeconfig.load_kube_config(
            config_file=os.environ.get("KUBECONFIG"), context=context, client_configuration=configuration
        )
    except (kubeconfig.ConfigException, yaml.YAMLError) as error:
        if context or not _inside_cluster(configuration):
            words = " ".join(str(error).split())
            raise DeployError(
                f"no way to a Kubernetes cluster: {words}. Set KUBECONFIG, or run where `kubectl get pods` works"
            ) from None
    if not is_private(configuration.host):
        raise DeployError(f"the kubeconfig's server is {configuration.host}: credentials go to https:// only")
    return configuration


def _inside_cluster(configuration: kubernetes.Configuration) -> bool:
    try:
        kubeconfig.load_incluster_config(client_configuration=configuration)
    except kubeconfig.ConfigException:
        return False
    return True
