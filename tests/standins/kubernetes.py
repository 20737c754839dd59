"""A Kubernetes cluster with KServe, on loopback: its API for InferenceServices, a controller, and a gateway.

The API takes what the real one takes: each InferenceService is read into KServe's own Python models, unknown fields are
refused, and the pod that it describes is checked against Kubernetes's schemas. The controller does what KServe's does
with Knative's help (pkg/controller/v1beta1/inferenceservice and inference_service_status.go in kserve/kserve): a change
of the pod's template, annotations included, makes a revision, which loads the SavedModel in its storageUri. The gateway
answers as TensorFlow Serving does, revisions chosen by their shares.

What it does not have: pods, schedulers, scaling, volumes, time that passes. One lock serializes everything.
"""

import copy
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes_validate
import tensorflow as tf
import yaml

from imagepipe.deploy.kserve_library import models as kserve_models
from tests.standins import tensorflow_serving

TICK_SECONDS = 0.02  # until the status follows a change
RUNTIME = {"image": "tensorflow/serving:2.19.0", "command": ["/usr/bin/tensorflow_model_server"]}
DEFAULT_RESOURCES = {"cpu": "1", "memory": "2Gi"}
NOT_HANDED_ON = ("kubectl.kubernetes.io/last-applied-configuration",)
_COLLECTION = re.compile(r"/apis/serving\.kserve\.io/v1beta1/namespaces/([^/]+)/inferenceservices(?:/([^/]+))?")


class RefusalError(Exception):
    """An answer of the API that is no success."""

    def __init__(self, status: int, reason: str, message: str, kind: str = "inferenceservices", name: str = ""):
        super().__init__(message)
        self.status = status
        details = {"name": name, "group": "serving.kserve.io", "kind": kind}
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": status,
        }


def parse_as(kind: str, value: Any, where: str) -> Any:
    """Parses JSON into the models of KServe and Kubernetes; refuses fields that they don't have."""
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        _expect(isinstance(value, list), value, where, "a list")
        return [parse_as(match[1], item, f"{where}[{number}]") for number, item in enumerate(value)]
    if match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        _expect(isinstance(value, dict), value, where, "an object")
        return {key: parse_as(match[1], item, f"{where}.{key}") for key, item in value.items()}
    plain = {"str": str, "int": int, "bool": bool, "float": float, "object": object}
    plain |= {"ResourceQuantity": str, "datetime": str}
    if kind in plain:
        is_one = isinstance(value, plain[kind]) and not (kind == "int" and isinstance(value, bool))
        _expect(is_one, value, where, kind)
        return value
    model = getattr(kserve_models, kind, None) or getattr(kubernetes.client, kind)
    _expect(isinstance(value, dict), value, where, "an object")
    attributes = {name: attribute for attribute, name in model.attribute_map.items()}
    if unknown := sorted(set(value) - set(attributes)):
        raise RefusalError(
            422, "Invalid", f'strict decoding error: unknown field "{where}.{unknown[0]}"'.replace('"."', '"')
        )
    parsed = {
        attributes[name]: parse_as(model.openapi_types[attributes[name]], item, f"{where}.{name}")
        for name, item in value.items()
    }
    try:
        return model(**parsed)
    except ValueError as error:
        raise RefusalError(422, "Invalid", f"{where}: {error}") from error


def _expect(holds: bool, value: Any, where: str, what: str) -> None:
    if not holds:
        raise RefusalError(422, "Invalid", f"{where}: Invalid value: {value!r}: must be {what}")


def _merge_patch(old: Any, patch: Any) -> Any:
    """Applies a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_patch(merged.get(key), value)
    return merged


def build_pod(service: dict[str, Any]) -> dict[str, Any]:
    """Returns the pod that KServe would make of an InferenceService."""
    predictor = service["spec"]["predictor"]
    spec = {key: value for key, value in predictor.items() if key in kubernetes.client.V1PodSpec.attribute_map.values()}
    if model := predictor.get("model"):
        own = {
            key: value for key, value in model.items() if key in kubernetes.client.V1Container.attribute_map.values()
        }
        arguments = [f"--model_name={service['metadata']['name']}", "--port=9000", "--rest_api_port=8080"]
        spec["containers"] = [RUNTIME | {"args": [*arguments, "--model_base_path=/mnt/models"]} | own]
        spec["containers"][0]["name"] = "kserve-container"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": service["metadata"]["name"]}, "spec": spec}


def find_storage_uri(predictor: dict[str, Any]) -> str:
    if "model" in predictor:
        return str(predictor["model"]["storageUri"])
    container = next(c for c in predictor["containers"] if c["name"] == "kserve-container")
    return str(next(variable["value"] for variable in container["env"] if variable["name"] == "STORAGE_URI"))


@dataclass
class Revision:
    """A template, and the model that its pods serve."""

    name: str
    template: Any
    uri: str
    model: tensorflow_serving.Servable | None = None
    failure: str | None = None


@dataclass
class DeployedService:
    """State that KServe and Knative keep of an InferenceService."""

    revisions: list[Revision] = field(default_factory=list)
    ready: Revision | None = None  # the newest that is
    rolled_out: str = ""
    previously_rolled_out: str = ""
    targets: list[tuple[bool, str, int]] = field(default_factory=list)  # latest or not, else which revision, percent
    generation: int = 0  # of the Knative Service, or the Deployment
    seen: Any = None
    asked: int = 0

    def traffic(self) -> list[dict[str, Any]]:
        if not self.ready:
            return []
        shown = []
        for latest, name, percent in self.targets:
            target = {"latestRevision": latest, "percent": percent, "revisionName": self.ready.name if latest else name}
            shown.append(target if latest else target | {"tag": "prev"})
        return shown

    def choose_revision(self) -> Revision | None:
        """Returns the revision for the next request; shares are exact in any hundred requests."""
        turn = self.asked * 37 % 100
        self.asked += 1
        for target in self.traffic():
            turn -= target["percent"]
            if turn < 0:
                return next(revision for revision in self.revisions if revision.name == target["revisionName"])
        return None


@dataclass
class Cluster:
    """The cluster, and its settings for tests.

    Attributes:
        token: the only token that is accepted.
        folders: local folders by the start of a storageUri.
        has_kserve: whether KServe's resources exist.
        mode: KServe's default deployment mode.
        formats: model formats that a ServingRuntime supports.
        refuses: message with which creations and changes are refused; '' for none.
        forbids: whether the token has no rights.
        failing: error messages of revisions that don't start, by number; '' for a revision that stays silent.
        paused: whether the controller does nothing, so that a status is outdated.
        by_host: whether services have hosts of their own, which only the gateway knows.
    """

    token: str
    namespaces: set[str] = field(default_factory=lambda: {"default"})
    folders: dict[str, str] = field(default_factory=dict)
    has_kserve: bool = True
    mode: str = "Knative"
    formats: set[str] = field(default_factory=lambda: {"tensorflow"})
    refuses: str = ""
    forbids: bool = False
    failing: dict[int, str] = field(default_factory=dict)
    paused: bool = False
    by_host: bool = False
    services: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    deployed: dict[tuple[str, str], DeployedService] = field(default_factory=dict)
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self):
        self.lock = threading.RLock()
        self._version = 1000
        self._stopped = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Cluster":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        threading.Thread(target=self._control, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, file: Path, token: str | None = None, server: str | None = None) -> Path:
        """Writes a kubeconfig, by default the right one."""
        name = {"name": "standin"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [name | {"cluster": {"server": server or self.url}}],
            "users": [name | {"user": {"token": token or self.token}}],
            "contexts": [name | {"context": {"cluster": "standin", "user": "standin"}}],
            "current-context": "standin",
        }
        file.write_text(yaml.safe_dump(content))
        return file

    # The API

    def answer(self, method: str, path: str, authorization: str, body: Any) -> tuple[int, Any]:
        with self.lock:
            try:
                return 200, self._answer(method, path, authorization, body)
            except RefusalError as refusal:
                return refusal.status, refusal.body

    def _answer(self, method: str, path: str, authorization: str, body: Any) -> Any:
        if authorization != f"Bearer {self.token}":
            raise RefusalError(401, "Unauthorized", "Unauthorized")
        match = _COLLECTION.fullmatch(path)
        if not match or not self.has_kserve:
            return None
        namespace, name = match[1], match[2] or (body or {}).get("metadata", {}).get("name", "")
        if self.forbids:
            user = 'User "system:serviceaccount:ci:deployer"'
            verb = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
            resource = 'resource "inferenceservices" in API group "serving.kserve.io"'
            words = f'"{name}" is forbidden: {user} cannot {verb} {resource} in the namespace "{namespace}"'
            raise RefusalError(403, "Forbidden", f"inferenceservices.serving.kserve.io {words}", name=name)
        key = (namespace, name)
        if method == "POST":
            if namespace not in self.namespaces:
                raise RefusalError(404, "NotFound", f'namespaces "{namespace}" not found', "namespaces", namespace)
            if key in self.services:
                raise RefusalError(409, "AlreadyExists", f'inferenceservices.serving.kserve.io "{name}" already exists')
            return self._store(key, body, {"uid": f"uid-{name}", "creationTimestamp": "2026-01-01T00:00:00Z"}, 1)
        if key not in self.services:
            raise RefusalError(404, "NotFound", f'inferenceservices.serving.kserve.io "{name}" not found', name=name)
        if method == "DELETE":
            del self.services[key]
            self.deployed.pop(key, None)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        if method == "PATCH":
            body = _merge_patch(self.services[key], body)
        if method in ("PUT", "PATCH"):
            return self._replace(key, body)
        return self.services[key]

    def _replace(self, key: tuple[str, str], body: dict[str, Any]) -> dict[str, Any]:
        old = self.services[key]
        version = body["metadata"].get("resourceVersion")
        if not version:
            raise RefusalError(
                422, "Invalid", "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
            )
        if version != old["metadata"]["resourceVersion"]:
            words = "the object has been modified; please apply your changes to the latest version and try again"
            raise RefusalError(409, "Conflict", f'Operation cannot be fulfilled on "{key[1]}": {words}', name=key[1])
        admitted = self._admit(body)
        changed = admitted["spec"] != old["spec"]
        kept = {name: old["metadata"][name] for name in ("uid", "creationTimestamp")}
        stored = self._store(key, body, kept, old["metadata"]["generation"] + changed)
        stored["status"] = old.get("status", {})
        return stored

    def _store(self, key: tuple[str, str], body: dict[str, Any], kept: dict[str, Any], generation: int) -> Any:
        service = self._admit(body)
        self.manifests.append(copy.deepcopy(body))
        self._version += 1
        service["metadata"] |= kept | {"generation": generation, "resourceVersion": str(self._version)}
        service["metadata"]["namespace"] = key[0]
        self.services[key] = service
        return service

    def _admit(self, body: dict[str, Any]) -> dict[str, Any]:
        """Checks a service and fills in defaults, as the webhooks do."""
        parse_as("V1beta1InferenceService", {key: value for key, value in body.items() if key != "status"}, "")
        if self.refuses:
            raise RefusalError(403, "Forbidden", self.refuses)
        service = {key: copy.deepcopy(value) for key, value in body.items() if key != "status"}
        predictor = service["spec"]["predictor"]
        server = predictor.get("model") or predictor["containers"][0]
        resources = server.setdefault("resources", {})
        for kind in ("limits", "requests"):
            resources[kind] = DEFAULT_RESOURCES | resources.get(kind, {})
        if "model" in predictor:
            predictor["model"] |= {"protocolVersion": "v1", "runtime": "kserve-tensorflow-serving"}
        try:
            kubernetes_validate.validate(build_pod(service), kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            raise RefusalError(422, "Invalid", f"{'.'.join(map(str, error.path))}: {error.message}") from error
        return service

    # The controller

    def _control(self) -> None:
        while not self._stopped.wait(TICK_SECONDS):
            with self.lock:
                if self.paused:
                    continue
                for key, service in self.services.items():
                    status = self._reconcile(key, service)
                    if status != service.get("status"):
                        self._version += 1
                        service["metadata"]["resourceVersion"] = str(self._version)
                        service["status"] = status

    def _reconcile(self, key: tuple[str, str], service: dict[str, Any]) -> dict[str, Any]:
        deployed = self.deployed.setdefault(key, DeployedService())
        predictor = service["spec"]["predictor"]
        if "model" in predictor and predictor["model"]["modelFormat"]["name"] not in self.formats:
            failure = {"reason": "NoSupportingRuntime", "message": "No runtime found to support specified framework"}
            return service.get("status", {}) | {
                "modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}
            }
        is_raw = self.mode in ("RawDeployment", "Standard")
        template = {k: v for k, v in predictor.items() if k != "canaryTrafficPercent"}
        annotations = service["metadata"].get("annotations") or {}
        handed_on = {k: v for k, v in annotations.items() if k not in NOT_HANDED_ON}
        template = copy.deepcopy([template, handed_on, service["metadata"].get("labels")])
        if not deployed.revisions or deployed.revisions[-1].template != template:
            self._add_revision(deployed, key[1], template, find_storage_uri(predictor), is_raw)
        for revision in deployed.revisions:
            self._start(revision)
            if revision.model:
                deployed.ready = revision
        percent = None if is_raw else predictor.get("canaryTrafficPercent")
        deployed.targets = [(True, "", 100)]
        if percent is not None and deployed.rolled_out:
            deployed.targets = [(True, "", percent)]
            if percent < 100:
                deployed.targets.append((False, deployed.rolled_out, 100 - percent))
        if (template, percent) != deployed.seen:
            deployed.seen = (template, percent)
            deployed.generation += 1 if deployed.generation else 3  # its own count, unlike the service's
        self._track_roll_out(deployed)
        return self._status(key, deployed, is_raw)

    def _add_revision(self, deployed: DeployedService, name: str, template: Any, uri: str, is_raw: bool) -> None:
        number = len(deployed.revisions) + 1
        revision = Revision(f"{name}-predictor-{number:05}", template, uri, failure=self.failing.get(number))
        for same in deployed.revisions:
            if is_raw and same.model and same.template == template:  # a Deployment goes back to pods that it has
                revision.model, revision.failure = same.model, None
        deployed.revisions.append(revision)

    def _start(self, revision: Revision) -> None:
        if revision.model or revision.failure is not None:
            return
        folder = revision.uri
        for start, local in self.folders.items():
            folder = folder.replace(start, local, 1) if folder.startswith(start) else folder
        try:
            revision.model = tensorflow_serving.load(Path(folder))
        except (OSError, tf.errors.OpError) as error:
            revision.failure = str(error)

    @staticmethod
    def _track_roll_out(deployed: DeployedService) -> None:
        """Records which revision had all requests last, and which one previously: KServe gives it a canary's rest."""
        ready = deployed.ready
        newest = next((target for target in deployed.traffic() if target["latestRevision"]), None)
        if not ready or not newest:
            return
        if deployed.rolled_out != ready.name:
            if newest["percent"] == 100:
                deployed.previously_rolled_out, deployed.rolled_out = deployed.rolled_out, ready.name
        elif ready is deployed.revisions[-1] and newest["percent"] < 100 and deployed.previously_rolled_out:
            # Less than all for what has all already means: go back.
            deployed.rolled_out = deployed.previously_rolled_out

    def _status(self, key: tuple[str, str], deployed: DeployedService, is_raw: bool) -> dict[str, Any]:
        namespace, name = key
        newest = deployed.revisions[-1]
        failed = newest.failure
        state = "True" if newest.model else "False" if failed else "Unknown"
        waiting = f'Configuration "{name}-predictor" is waiting for a Revision to become ready.'
        words = f'Revision "{newest.name}" failed with message: {newest.failure}.' if failed else waiting
        condition = {"status": state} | ({} if newest.model else {"message": words, "reason": "RevisionFailed"})
        types = ["PredictorReady", "Ready"] if is_raw else ["PredictorConfigurationReady", "PredictorReady", "Ready"]
        conditions = [{"type": type_} | condition for type_ in types]
        conditions.append({"type": "IngressReady", "status": "True" if deployed.ready else "False"})
        url = f"http://{name}.{namespace}.example.com" if self.by_host else f"{self.url}/{namespace}/{name}"
        component: dict[str, Any] = (
            {} if is_raw else {"latestCreatedRevision": newest.name, "traffic": deployed.traffic()}
        )
        if deployed.ready and not is_raw:
            component |= {"latestReadyRevision": deployed.ready.name, "latestRolledoutRevision": deployed.rolled_out}
            component |= {"previousRolledoutRevision": deployed.previously_rolled_out}
        model: dict[str, Any] = {"transitionStatus": "UpToDate" if newest.model else "InProgress"}
        if failed:
            failure = {"reason": "ModelLoadFailed", "message": newest.failure, "exitCode": 1}
            model = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failure}
        status = {
            "conditions": conditions,
            "components": {"predictor": {key: value for key, value in component.items() if value}},
            "deploymentMode": self.mode,
            "modelStatus": model,
            "observedGeneration": deployed.generation,
        }
        if deployed.ready:
            status["url"] = url
        return status

    # The gateway

    def ask(self, method: str, path: str, host: str, body: Any) -> tuple[int, Any]:
        """Returns a service's answer to a request; the service is found by host or by path."""
        with self.lock:
            for (namespace, name), deployed in self.deployed.items():
                start = "" if host == f"{name}.{namespace}.example.com" else f"/{namespace}/{name}"
                if path.startswith(f"{start}/v1/"):
                    revision = deployed.choose_revision()
                    if not revision or not revision.model:
                        return 503, {"error": "no healthy upstream"}
                    return revision.model.answer(method, path.removeprefix(start), name, body)
            return 404, {"error": "no such route"}


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it would hold each answer back for 40 ms

        def _do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = self.path.partition("?")[0]
            if path.startswith("/api"):
                status, answer = cluster.answer(self.command, path, self.headers.get("Authorization", ""), body)
            else:
                status, answer = cluster.ask(self.command, path, self.headers.get("Host", ""), body)
            data, kind = json.dumps(answer).encode(), "application/json"
            if answer is None:
                status, data, kind = 404, b"404 page not found\n", "text/plain"
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET: Callable[..., None] = _do  # noqa: N815
        do_POST: Callable[..., None] = _do  # noqa: N815
        do_PUT: Callable[..., None] = _do  # noqa: N815
        do_PATCH: Callable[..., None] = _do  # noqa: N815
        do_DELETE: Callable[..., None] = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler
