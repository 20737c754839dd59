"""Target ``vertex``: versions in Vertex AI's Model Registry, deployed to an endpoint that splits the requests.

Our version is a label in the registry, which has version numbers of its own. A version gets no requests until it is
deployed and ready: then the shares are set, in a step of its own, so that a deployment that times out changes nothing
when it finally ends. A version that is replaced at 100% is undeployed, as it costs as much as one in use, and stays in
the registry, from which a rollback deploys it again. A rollback never goes back to a version that was rolled back.
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
from imagepipe.deploy.deployment import Address, Version, list_newer_live_versions
from imagepipe.deploy.saved_model import read_inputs_and_size
from imagepipe.deploy.versions import is_version

_VERSION, _ROLLED_BACK = "imagepipe_version", "imagepipe_rolled_back"  # labels of versions in the registry
_PORT, _PREDICT, _HEALTH = 8080, "/predict", "/health"  # of our own server: Vertex AI passes them to it
_FIRST_POLL = 0.2  # seconds until an operation is asked for the first time; then at growing intervals


@dataclass(frozen=True)
class _Connection:
    """Vertex AI in a project and region, for one model.

    Attributes:
        models: client of the registry.
        endpoints: client of the endpoints.
        location: project and region, as Google names them.
        name: name of the model, and of the endpoint.
        settings: how the model is served.
        deadline: when to give up, by ``time.monotonic``.
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
class _Registered:
    """A version in the registry.

    Attributes:
        version: our version.
        id: the registry's number.
        deployed: its id at the endpoint; None if it isn't deployed.
        labels: its labels in the registry.
    """

    version: Version
    id: str
    deployed: str | None
    labels: Mapping[str, str]


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Deploys a SavedModel as a new version, or changes the share of a deployed one; see ``deploy.targets``."""
    cloud = _connect(config)
    endpoint = _find_endpoint(cloud)
    versions = _list_versions(cloud, endpoint)
    with gcp.report_live_versions([registered.version for registered in versions]):
        endpoint = endpoint or _create_endpoint(cloud)
        candidate = next(
            (v for v in versions if v.deployed and storage.is_deployed(model, v.version.uri, config.sign)), None
        )
        if not candidate:
            version = storage.add_version(model, str(config.path), key=config.sign)
            earlier = next((v for v in versions if v.version.version == version), None)
            if earlier:
                candidate = _deploy_registered(cloud, endpoint, earlier)
            else:
                candidate = _register_and_deploy(cloud, endpoint, version, config)
        share = _set_traffic(cloud, endpoint.name, candidate, traffic)
    if _ROLLED_BACK in candidate.labels:
        _set_labels(cloud, candidate, {_VERSION: candidate.version.version})
    if traffic == 100:
        newer = list_newer_live_versions([v.version for v in versions], candidate.version.version)
        for registered in versions:
            if registered.version in newer:
                _mark_rolled_back(cloud, registered)
        _undeploy_others(cloud, endpoint.name, candidate)
    return Version(candidate.version.version, candidate.version.uri, share)


def status(config: DeployConfig) -> list[Version]:
    """Returns the versions in the registry, newest first, with the percentage of the requests that they get."""
    cloud = _connect(config)
    return [registered.version for registered in _list_versions(cloud, _find_endpoint(cloud))]


def rollback(config: DeployConfig) -> Version:
    """Takes the newest version that gets requests out of service; see ``deploy.targets``."""
    cloud = _connect(config)
    endpoint = _find_endpoint(cloud)
    versions = _list_versions(cloud, endpoint)
    newest = next((registered for registered in versions if registered.version.traffic), None)
    if not newest or not endpoint:
        raise DeployError(f"no version of {config.name} gets requests at Vertex AI: there is nothing to take out")
    older = versions[versions.index(newest) + 1 :]
    previous = next((registered for registered in older if _ROLLED_BACK not in registered.labels), None)
    if not previous:
        raise DeployError(f"there is no version of {config.name} before {newest.version.version} to go back to")
    with gcp.report_live_versions([registered.version for registered in versions]):
        previous = previous if previous.deployed else _deploy_registered(cloud, endpoint, previous)
        _set_traffic(cloud, endpoint.name, previous, 100)
    _mark_rolled_back(cloud, newest)
    _undeploy_others(cloud, endpoint.name, previous)
    return Version(previous.version.version, previous.version.uri, 100)


def find_address(config: DeployConfig) -> Address:
    """Returns the endpoint's address; its labels are those that all versions with requests have in common."""
    cloud = _connect(config)
    endpoint = _find_endpoint(cloud)
    live = [registered.version.uri for registered in _list_versions(cloud, endpoint) if registered.version.traffic]
    if not live or not endpoint:
        raise DeployError(f"no version of {config.name} is live at Vertex AI: `imagepipe deploy` one")
    api = cloud.settings.api or f"https://{_build_host(cloud.settings)}"
    labels, (inputs, size) = storage.read_common_labels(live), read_inputs_and_size(live)
    return Address(f"{api}/v1/{endpoint.name}", gcp.Auth(), labels, {}, inputs, gcp.MAX_REQUEST_BYTES, size)


def _connect(config: DeployConfig) -> _Connection:
    settings = config.vertex
    if not settings:
        raise ModelError("deploy.vertex: has to be given: project and region at least")
    arguments: dict[str, Any] = {
        "credentials": gcp.find_credentials(),
        "transport": "rest",
        "client_options": {"api_endpoint": settings.api or _build_host(settings)},
    }
    return _Connection(
        vertex.ModelServiceClient(**arguments),
        vertex.EndpointServiceClient(**arguments),
        f"projects/{settings.project}/locations/{settings.region}",
        str(config.name),
        settings,
        time.monotonic() + settings.timeout,
    )


def _build_host(settings: VertexConfig) -> str:
    return f"{settings.region}-aiplatform.googleapis.com"


# --- The endpoint


def _find_endpoint(cloud: _Connection) -> vertex.Endpoint | None:
    with gcp.explain_errors("Vertex AI would not list the endpoints", cloud.settings):
        request = {"parent": cloud.location, "filter": f'display_name="{cloud.name}"'}
        endpoints = list(cloud.endpoints.list_endpoints(request, retry=gcp.RETRY))
    if len(endpoints) > 1:
        names = ", ".join(endpoint.name for endpoint in endpoints)
        raise DeployError(
            f"Vertex AI has {len(endpoints)} endpoints of the name {cloud.name}: {names}. "
            "Delete or rename all but the one that is meant"
        )
    return endpoints[0] if endpoints else None


def _create_endpoint(cloud: _Connection) -> vertex.Endpoint:
    failure = f"Vertex AI would not create the endpoint {cloud.name}"
    with gcp.explain_errors(failure, cloud.settings):
        endpoint = vertex.Endpoint(display_name=cloud.name)
        return _wait(cloud, cloud.endpoints.create_endpoint(parent=cloud.location, endpoint=endpoint), failure)


def _deploy_registered(cloud: _Connection, endpoint: vertex.Endpoint, registered: _Registered) -> _Registered:
    """Deploys a version from the registry, which gets no requests yet."""
    failure = f"Vertex AI would not deploy version {registered.version.version} of {cloud.name}"
    deployed = vertex.DeployedModel(
        model=f"{cloud.model}@{registered.id}",
        display_name=f"{cloud.name}-{registered.version.version}",
        dedicated_resources=_build_resources(cloud.settings),
    )
    with gcp.explain_errors(failure, cloud.settings):
        operation = cloud.endpoints.deploy_model(endpoint=endpoint.name, deployed_model=deployed)
        answer = _wait(cloud, operation, failure)
    return dataclasses.replace(registered, deployed=answer.deployed_model.id)


def _build_resources(settings: VertexConfig) -> vertex.DedicatedResources:
    machine = vertex.MachineSpec(machine_type=settings.machine_type)
    if settings.accelerator:
        types = vertex.AcceleratorType.__members__
        if settings.accelerator.type not in types:
            raise ModelError(
                f"deploy.vertex.accelerator.type: {settings.accelerator.type} is unknown; known are {', '.join(types)}"
            )
        machine.accelerator_type = types[settings.accelerator.type]
        machine.accelerator_count = settings.accelerator.count
    return vertex.DedicatedResources(
        machine_spec=machine, min_replica_count=settings.min_replicas, max_replica_count=settings.max_replicas
    )


def _set_traffic(cloud: _Connection, endpoint: str, registered: _Registered, share: int) -> int:
    """Gives a deployed version a share of the requests, and returns it: 100 if nothing else gets any."""
    failure = f"Vertex AI would not give version {registered.version.version} of {cloud.name} requests"
    with gcp.explain_errors(failure, cloud.settings):
        current = cloud.endpoints.get_endpoint(name=endpoint, retry=gcp.RETRY)
        split = _split_traffic(current.traffic_split, str(registered.deployed), share)
        changed = vertex.Endpoint(name=endpoint, traffic_split=split, etag=current.etag)
        cloud.endpoints.update_endpoint(endpoint=changed, update_mask={"paths": ["traffic_split"]})
    return split[str(registered.deployed)]


def _split_traffic(current: Mapping[str, int], deployed: str, share: int) -> dict[str, int]:
    """Returns percentages that sum to 100: ``share`` for one version, the rest for the others as they stood."""
    others = {id_: percent for id_, percent in current.items() if id_ != deployed and percent}
    total = sum(others.values())
    if not total or share == 100:
        return {deployed: 100}
    exact = {id_: percent * (100 - share) / total for id_, percent in others.items()}
    split = {id_: int(percent) for id_, percent in exact.items()}
    remainder = 100 - share - sum(split.values())
    for id_ in sorted(exact, key=lambda id_: (split[id_] - exact[id_], id_))[:remainder]:
        split[id_] += 1
    return split | {deployed: share}


def _undeploy_others(cloud: _Connection, endpoint: str, live: _Registered) -> None:
    """Undeploys all but the version that gets all requests, and makes it the registry's default."""
    failure = f"Version {live.version.version} is live and gets all requests, but Vertex AI would not retire the others"
    with gcp.explain_errors(failure, cloud.settings):
        cloud.models.merge_version_aliases(name=f"{cloud.model}@{live.id}", version_aliases=["default"])
        current = cloud.endpoints.get_endpoint(name=endpoint, retry=gcp.RETRY)
        for other in current.deployed_models:
            if other.id != live.deployed:
                _wait(cloud, cloud.endpoints.undeploy_model(endpoint=endpoint, deployed_model_id=other.id), failure)


# --- The registry


def _list_versions(cloud: _Connection, endpoint: vertex.Endpoint | None) -> list[_Registered]:
    """Returns our versions in the registry, newest first."""
    with gcp.explain_errors(f"Vertex AI would not list the versions of {cloud.name}", cloud.settings):
        try:
            models = list(cloud.models.list_model_versions(name=cloud.model, retry=gcp.RETRY))
        except exceptions.NotFound:
            return []
    shares = dict(endpoint.traffic_split) if endpoint else {}
    at_endpoint = sorted(endpoint.deployed_models if endpoint else [], key=lambda model: shares.get(model.id, 0))
    # Google may name a project by its number. Of a version that is deployed twice the greater share counts.
    deployed = {
        model.model_version_id: model.id
        for model in at_endpoint
        if model.model.rpartition("/")[2].partition("@")[0] == cloud.name
    }
    versions = []
    for model in models:
        name = model.labels.get(_VERSION, "")
        if is_version(name):
            id_ = deployed.get(model.version_id)
            is_rolled_back = _ROLLED_BACK in model.labels
            state = "ready" if id_ else "rolled back" if is_rolled_back else "not deployed"
            version = Version(name, model.artifact_uri, shares.get(str(id_), 0), state, is_rolled_back)
            versions.append(_Registered(version, model.version_id, id_, dict(model.labels)))
    return sorted(versions, key=lambda registered: -int(registered.version.version))


def _register_and_deploy(
    cloud: _Connection, endpoint: vertex.Endpoint, version: str, config: DeployConfig
) -> _Registered:
    """Registers and deploys a version; if that fails, removes it, or it would look as if it had served."""
    registered = _register(cloud, version, f"{config.path}/{version}")
    try:
        return _deploy_registered(cloud, endpoint, registered)
    except gcp.UncertainError:
        raise
    except DeployError as error:
        raise DeployError(f"{error}{_unregister(cloud, registered)}") from error


def _register(cloud: _Connection, version: str, uri: str) -> _Registered:
    """Makes a SavedModel a version in the registry."""
    failure = f"Vertex AI would not take version {version} of {cloud.name} into its registry"
    model = vertex.Model(
        display_name=cloud.name,
        artifact_uri=uri,
        container_spec=_build_container(cloud.settings),
        version_aliases=[f"v{version}"],
        labels={_VERSION: version},
    )
    request: dict[str, Any] = {"parent": cloud.location, "model": model}
    with gcp.explain_errors(failure, cloud.settings):
        try:
            request["parent_model"] = cloud.models.get_model(name=cloud.model, retry=gcp.RETRY).name.partition("@")[0]
        except exceptions.NotFound:
            request["model_id"] = cloud.name
        answer = _wait(cloud, cloud.models.upload_model(request), failure)
    return _Registered(Version(version, uri, 0, "not deployed"), answer.model_version_id, None, dict(model.labels))


def _build_container(settings: VertexConfig) -> vertex.ModelContainerSpec:
    if settings.is_prebuilt:
        return vertex.ModelContainerSpec(image_uri=settings.image)
    return vertex.ModelContainerSpec(
        image_uri=settings.image,
        predict_route=_PREDICT,
        health_route=_HEALTH,
        ports=[vertex.Port(container_port=_PORT)],
    )


def _unregister(cloud: _Connection, registered: _Registered) -> str:
    """Takes a version that nothing uses out of the registry.

    Returns:
        A sentence for the error message if that fails too, else nothing.
    """
    failure = f"version {registered.version.version} stays in the registry, from which Vertex AI would not delete it"
    try:
        with gcp.explain_errors(failure, cloud.settings):
            if len(list(cloud.models.list_model_versions(name=cloud.model, retry=gcp.RETRY))) == 1:
                operation = cloud.models.delete_model(name=cloud.model)
            else:
                operation = cloud.models.delete_model_version(name=f"{cloud.model}@{registered.id}")
            _wait(cloud, operation, failure)
    except DeployError as error:
        return f". Besides, {error}"
    return ""


def _mark_rolled_back(cloud: _Connection, registered: _Registered) -> None:
    _set_labels(cloud, registered, {_VERSION: registered.version.version, _ROLLED_BACK: "true"})


def _set_labels(cloud: _Connection, registered: _Registered, labels: Mapping[str, str]) -> None:
    failure = f"The change is live, but Vertex AI would not label version {registered.version.version}"
    with gcp.explain_errors(failure, cloud.settings):
        model = vertex.Model(name=f"{cloud.model}@{registered.id}", labels=labels)
        cloud.models.update_model(model=model, update_mask={"paths": ["labels"]})


def _wait(cloud: _Connection, operation: Any, failure: str) -> Any:
    """Waits for a long-running operation, and returns its result."""
    polling = DEFAULT_POLLING.with_delay(initial=_FIRST_POLL)
    try:
        return operation.result(timeout=max(0.0, cloud.deadline - time.monotonic()), polling=polling)
    except concurrent.futures.TimeoutError as error:
        raise gcp.UncertainError(
            f"{failure} within deploy.vertex.timeout, {cloud.settings.timeout:g} seconds. It may still be at it "
            f"({operation.operation.name}): look with `imagepipe status`, and do the same again to go on from there"
        ) from error
