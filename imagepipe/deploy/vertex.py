"""Vertex AI: versions of a model in the Model Registry, deployed to an endpoint that divides the requests among them.

Our version is a label of the registry's, which numbers its own. What is deployed gets no requests until it is ready:
then the shares are set, in a step of its own, so that a deployment that takes too long changes nothing when it ends at
last. A version that is replaced at 100% is undeployed, as it costs as much as one that is used, and stays in the
registry, for a rollback to deploy it again. A version that was rolled back is never gone back to.
"""

import concurrent.futures
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.api_core import exceptions
from google.api_core.future.polling import DEFAULT_POLLING
from google.cloud import aiplatform_v1 as vertex

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import gcp, storage
from imagepipe.deploy.config import DeployConfig, VertexConfig
from imagepipe.deploy.deployment import Address, Version

_VERSION, _ROLLED_BACK = "imagepipe_version", "imagepipe_rolled_back"  # labels of versions in the registry
_PREBUILT = "docker.pkg.dev/vertex-ai/"
_PORT, _PREDICT, _HEALTH = 8080, "/predict", "/health"  # for our own server, which takes what it is told
_FIRST_LOOK = 0.2  # seconds after which an operation is asked for; then ever less often


@dataclass(frozen=True)
class _Cloud:
    """Where it goes.

    Attributes:
        models: the registry.
        endpoints: what serves.
        location: project and region, as Google names them.
        name: of the model, and of the endpoint.
        settings: how it is to be served.
        deadline: by ``time.monotonic``.
    """

    models: vertex.ModelServiceClient
    endpoints: vertex.EndpointServiceClient
    location: str
    name: str
    settings: VertexConfig
    deadline: float

    @property
    def model(self) -> str:
        return f"{self.location}/models/{self.name}"


@dataclass(frozen=True)
class _Known:
    """A version in the registry.

    Attributes:
        version: ours.
        id: the registry's.
        deployed: its id at the endpoint; None if it isn't deployed.
        labels: the registry's.
    """

    version: Version
    id: str
    deployed: str | None
    labels: Mapping[str, str]


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Deploys a SavedModel as a new version, or changes the share of one that is deployed; see ``deploy.targets``."""
    cloud = _connect(config)
    endpoint = _endpoint(cloud)
    versions = _versions(cloud, endpoint)
    with gcp.staying([known.version for known in versions]):
        endpoint = endpoint or _create_endpoint(cloud)
        known = next((v for v in versions if v.deployed and storage.same_model(model, v.version.uri)), None)
        if not known:
            version = storage.add_version(model, str(config.path))
            known = next((v for v in versions if v.version.version == version), None)
            known = _start(cloud, endpoint, known) if known else _start_new(cloud, endpoint, version, config)
        share = _give(cloud, endpoint.name, known, traffic)
    if _ROLLED_BACK in known.labels:
        _label(cloud, known, {_VERSION: known.version.version})
    if traffic == 100:
        _retire_others(cloud, endpoint.name, known)
    return Version(known.version.version, known.version.uri, share)


def status(config: DeployConfig) -> list[Version]:
    """The versions in the registry, newest first, and how many of the requests they get."""
    cloud = _connect(config)
    return [known.version for known in _versions(cloud, _endpoint(cloud))]


def rollback(config: DeployConfig) -> Version:
    """Takes the newest version that gets requests out of service; see ``deploy.targets``."""
    cloud = _connect(config)
    endpoint = _endpoint(cloud)
    versions = _versions(cloud, endpoint)
    newest = next((known for known in versions if known.version.traffic), None)
    if not newest or not endpoint:
        raise DeployError(f"no version of {config.name} gets requests at Vertex AI: there is nothing to take out")
    older = versions[versions.index(newest) + 1 :]
    before = next((known for known in older if _ROLLED_BACK not in known.labels), None)
    if not before:
        raise DeployError(f"there is no version of {config.name} before {newest.version.version} to go back to")
    with gcp.staying([known.version for known in versions]):
        before = before if before.deployed else _start(cloud, endpoint, before)
        _give(cloud, endpoint.name, before, 100)
    _label(cloud, newest, {_VERSION: newest.version.version, _ROLLED_BACK: "true"})
    _retire_others(cloud, endpoint.name, before)
    return Version(before.version.version, before.version.uri, 100)


def find_address(config: DeployConfig) -> Address:
    """A client for the endpoint; the names are those that all versions have which get requests."""
    cloud = _connect(config)
    endpoint = _endpoint(cloud)
    serving = [known.version.uri for known in _versions(cloud, endpoint) if known.version.traffic]
    if not serving or not endpoint:
        raise DeployError(f"no version of {config.name} is live at Vertex AI: `imagepipe deploy` one")
    api = cloud.settings.api or f"https://{_host(cloud.settings)}"
    names, taken = storage.common_labels(serving), storage.inputs(serving[0])
    return Address(f"{api}/v1/{endpoint.name}", gcp.Auth(), names, inputs=taken)


def _connect(config: DeployConfig) -> _Cloud:
    settings = config.vertex
    if not settings:
        raise ModelError("deploy.vertex: has to be given: project and region at least")
    given: dict[str, Any] = {
        "credentials": gcp.credentials(),
        "transport": "rest",
        "client_options": {"api_endpoint": settings.api or _host(settings)},
    }
    return _Cloud(
        vertex.ModelServiceClient(**given),
        vertex.EndpointServiceClient(**given),
        f"projects/{settings.project}/locations/{settings.region}",
        str(config.name),
        settings,
        time.monotonic() + settings.timeout,
    )


def _host(settings: VertexConfig) -> str:
    return f"{settings.region}-aiplatform.googleapis.com"


def _endpoint(cloud: _Cloud) -> vertex.Endpoint | None:
    with gcp.in_words("Vertex AI would not list the endpoints", cloud.settings):
        request = {"parent": cloud.location, "filter": f'display_name="{cloud.name}"'}
        found = list(cloud.endpoints.list_endpoints(request, retry=gcp.AGAIN))
    if len(found) > 1:
        raise DeployError(
            f"Vertex AI has {len(found)} endpoints of the name {cloud.name}: {', '.join(e.name for e in found)}. "
            "Delete or rename all but the one that is meant"
        )
    return found[0] if found else None


def _create_endpoint(cloud: _Cloud) -> vertex.Endpoint:
    doing = f"Vertex AI would not create the endpoint {cloud.name}"
    with gcp.in_words(doing, cloud.settings):
        endpoint = vertex.Endpoint(display_name=cloud.name)
        return _done(cloud, cloud.endpoints.create_endpoint(parent=cloud.location, endpoint=endpoint), doing)


def _versions(cloud: _Cloud, endpoint: vertex.Endpoint | None) -> list[_Known]:
    """Those in the registry that we made, newest first."""
    with gcp.in_words(f"Vertex AI would not list the versions of {cloud.name}", cloud.settings):
        try:
            registered = list(cloud.models.list_model_versions(name=cloud.model, retry=gcp.AGAIN))
        except exceptions.NotFound:
            return []
    shares = dict(endpoint.traffic_split) if endpoint else {}
    at_endpoint = sorted(endpoint.deployed_models if endpoint else [], key=lambda each: shares.get(each.id, 0))
    # Google may name a project by its number. Of a version that is there twice the greater share counts.
    deployed = {each.model_version_id: each.id for each in at_endpoint if _model_id(each.model) == cloud.name}
    found = []
    for model in registered:
        name = model.labels.get(_VERSION, "")
        if name.isdigit():
            id_ = deployed.get(model.version_id)
            idle = "rolled back" if _ROLLED_BACK in model.labels else "not deployed"
            version = Version(name, model.artifact_uri, shares.get(str(id_), 0), "ready" if id_ else idle)
            found.append(_Known(version, model.version_id, id_, dict(model.labels)))
    return sorted(found, key=lambda known: -int(known.version.version))


def _model_id(resource: str) -> str:
    return resource.rpartition("/")[2].partition("@")[0]


def _upload(cloud: _Cloud, version: str, uri: str) -> _Known:
    """Makes a SavedModel a version in the registry."""
    doing = f"Vertex AI would not take version {version} of {cloud.name} into its registry"
    model = vertex.Model(
        display_name=cloud.name,
        artifact_uri=uri,
        container_spec=_container(cloud.settings),
        version_aliases=[f"v{version}"],
        labels={_VERSION: version},
    )
    request: dict[str, Any] = {"parent": cloud.location, "model": model}
    with gcp.in_words(doing, cloud.settings):
        try:
            request["parent_model"] = cloud.models.get_model(name=cloud.model, retry=gcp.AGAIN).name.partition("@")[0]
        except exceptions.NotFound:
            request["model_id"] = cloud.name
        answer = _done(cloud, cloud.models.upload_model(request), doing)
    return _Known(Version(version, uri, 0, "not deployed"), answer.model_version_id, None, dict(model.labels))


def _container(settings: VertexConfig) -> vertex.ModelContainerSpec:
    if _PREBUILT in settings.image:
        return vertex.ModelContainerSpec(image_uri=settings.image)
    return vertex.ModelContainerSpec(
        image_uri=settings.image,
        predict_route=_PREDICT,
        health_route=_HEALTH,
        ports=[vertex.Port(container_port=_PORT)],
    )


def _start_new(cloud: _Cloud, endpoint: vertex.Endpoint, version: str, config: DeployConfig) -> _Known:
    """Registers and deploys a version; if that fails, it isn't kept in the registry, as if it had served once."""
    known = _upload(cloud, version, f"{config.path}/{version}")
    try:
        return _start(cloud, endpoint, known)
    except gcp.UncertainError:
        raise
    except DeployError as error:
        raise DeployError(f"{error}{_remove(cloud, known)}") from error


def _start(cloud: _Cloud, endpoint: vertex.Endpoint, known: _Known) -> _Known:
    """Deploys a version from the registry, which gets no requests yet."""
    doing = f"Vertex AI would not deploy version {known.version.version} of {cloud.name}"
    deployed = vertex.DeployedModel(
        model=f"{cloud.model}@{known.id}",
        display_name=f"{cloud.name}-{known.version.version}",
        dedicated_resources=_resources(cloud.settings),
    )
    with gcp.in_words(doing, cloud.settings):
        operation = cloud.endpoints.deploy_model(endpoint=endpoint.name, deployed_model=deployed)
        answer = _done(cloud, operation, doing)
    return dataclasses.replace(known, deployed=answer.deployed_model.id)


def _resources(settings: VertexConfig) -> vertex.DedicatedResources:
    machine = vertex.MachineSpec(machine_type=settings.machine_type)
    if settings.accelerator:
        kinds = vertex.AcceleratorType.__members__
        if settings.accelerator.type not in kinds:
            raise ModelError(
                f"deploy.vertex.accelerator.type: {settings.accelerator.type} is unknown; known are {', '.join(kinds)}"
            )
        machine.accelerator_type = kinds[settings.accelerator.type]
        machine.accelerator_count = settings.accelerator.count
    return vertex.DedicatedResources(
        machine_spec=machine, min_replica_count=settings.min_replicas, max_replica_count=settings.max_replicas
    )


def _remove(cloud: _Cloud, known: _Known) -> str:
    """Takes a version that nothing uses out of the registry.

    Returns:
        Words for the one who has to do it, if that fails too.
    """
    doing = f"version {known.version.version} stays in the registry, from which Vertex AI would not delete it"
    try:
        with gcp.in_words(doing, cloud.settings):
            if len(list(cloud.models.list_model_versions(name=cloud.model, retry=gcp.AGAIN))) == 1:
                operation = cloud.models.delete_model(name=cloud.model)
            else:
                operation = cloud.models.delete_model_version(name=f"{cloud.model}@{known.id}")
            _done(cloud, operation, doing)
    except DeployError as error:
        return f". Besides, {error}"
    return ""


def _give(cloud: _Cloud, endpoint: str, known: _Known, share: int) -> int:
    """Gives a deployed version a share of the requests, and returns it: all, where nothing else gets any."""
    doing = f"Vertex AI would not give version {known.version.version} of {cloud.name} requests"
    with gcp.in_words(doing, cloud.settings):
        now = cloud.endpoints.get_endpoint(name=endpoint, retry=gcp.AGAIN)
        split = _split(now.traffic_split, str(known.deployed), share)
        changed = vertex.Endpoint(name=endpoint, traffic_split=split, etag=now.etag)
        cloud.endpoints.update_endpoint(endpoint=changed, update_mask={"paths": ["traffic_split"]})
    return split[str(known.deployed)]


def _split(before: Mapping[str, int], deployed: str, share: int) -> dict[str, int]:
    """Percents that sum to 100: ``share`` for one that is deployed, the rest for the others as they stood."""
    others = {id_: percent for id_, percent in before.items() if id_ != deployed and percent}
    total = sum(others.values())
    if not total or share == 100:
        return {deployed: 100}
    exact = {id_: percent * (100 - share) / total for id_, percent in others.items()}
    split = {id_: int(percent) for id_, percent in exact.items()}
    left = 100 - share - sum(split.values())
    for id_ in sorted(exact, key=lambda id_: (split[id_] - exact[id_], id_))[:left]:
        split[id_] += 1
    return split | {deployed: share}


def _retire_others(cloud: _Cloud, endpoint: str, known: _Known) -> None:
    """Undeploys all but the version that gets all requests, and makes it the registry's default."""
    doing = f"Version {known.version.version} is live and gets all requests, but Vertex AI would not retire the others"
    with gcp.in_words(doing, cloud.settings):
        cloud.models.merge_version_aliases(name=f"{cloud.model}@{known.id}", version_aliases=["default"])
        now = cloud.endpoints.get_endpoint(name=endpoint, retry=gcp.AGAIN)
        for other in now.deployed_models:
            if other.id != known.deployed:
                _done(cloud, cloud.endpoints.undeploy_model(endpoint=endpoint, deployed_model_id=other.id), doing)


def _label(cloud: _Cloud, known: _Known, labels: Mapping[str, str]) -> None:
    doing = f"What was wanted is live, but Vertex AI would not note it at version {known.version.version}"
    with gcp.in_words(doing, cloud.settings):
        model = vertex.Model(name=f"{cloud.model}@{known.id}", labels=labels)
        cloud.models.update_model(model=model, update_mask={"paths": ["labels"]})


def _done(cloud: _Cloud, operation: Any, doing: str) -> Any:
    """What a long-running operation gives, once it is done."""
    polling = DEFAULT_POLLING.with_delay(initial=_FIRST_LOOK)
    try:
        return operation.result(timeout=max(0.0, cloud.deadline - time.monotonic()), polling=polling)
    except concurrent.futures.TimeoutError as error:
        raise gcp.UncertainError(
            f"{doing} within deploy.vertex.timeout, {cloud.settings.timeout:g} seconds. It may still be at it "
            f"({operation.operation.name}): look with `imagepipe status`, and do the same again to go on from there"
        ) from error
