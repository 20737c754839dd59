"""Target ``ml_engine``: versions of a model at AI Platform Prediction (ML Engine), one of which is the default.

A version ``v<version>`` becomes the default, which gets all requests, once it is ready. Older versions stay for a
rollback, and cost as much as their nodes. A version that was rolled back is marked in its description, the only free
field of a version that can be changed. No rollback returns to it.
"""

import contextlib
import dataclasses

from google.api_core import exceptions

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import gcp, storage
from imagepipe.deploy.config import DeployConfig, MLEngineConfig
from imagepipe.deploy.deployment import Address, Version, list_newer_live_versions
from imagepipe.deploy.ml_engine_api import (
    READY,
    ROLLED_BACK,
    Connection,
    Json,
    call,
    connect,
    describe_state,
    find_live_version,
    list_versions,
    poll,
    version_path,
    wait_for_operation,
)
from imagepipe.deploy.saved_model import read_inputs_and_size

_FAILED, _CHANGING = "FAILED", ("CREATING", "UPDATING")


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Makes a SavedModel the default version; see ``imagepipe.deploy.targets``."""
    if traffic != 100:
        raise ModelError("ML Engine can't divide the requests between versions: --traffic needs another target")
    cloud = connect(config)
    versions = list_versions(cloud)
    with gcp.report_live_versions([registered.version for registered in versions]):
        version = next(
            (v.version for v in versions if v.ready and storage.is_deployed(model, v.version.uri, config.sign)), None
        )
        if not version:
            name = storage.add_version(model, str(config.path), key=config.sign)
            version = Version(name, f"{config.path}/{name}", 0)
            _create_version(cloud, version, next((v.answer for v in versions if v.version.version == name), None))
        _set_default(cloud, version)
    if any(registered.rolled_back and registered.version.version == version.version for registered in versions):
        _set_description(cloud, version, "")
    for newer in list_newer_live_versions([registered.version for registered in versions], version.version):
        _set_description(cloud, newer, ROLLED_BACK)
    return dataclasses.replace(version, traffic=100, state="ready", rolled_back=False)


def status(config: DeployConfig) -> list[Version]:
    """Returns the versions that this pipeline deployed, newest first; the default gets all requests."""
    return [registered.version for registered in list_versions(connect(config))]


def rollback(config: DeployConfig) -> Version:
    """Makes the version before the default one the default; see ``imagepipe.deploy.targets``."""
    cloud = connect(config)
    versions = list_versions(cloud)
    newest = next((registered for registered in versions if registered.version.traffic), None)
    if not newest:
        raise DeployError(f"no version of {config.name} gets requests at ML Engine: there is nothing to take out")
    older = versions[versions.index(newest) + 1 :]
    previous = next((v.version for v in older if v.ready and not v.rolled_back), None)
    if not previous:
        raise DeployError(
            f"ML Engine has no version of {config.name} before {newest.version.version} that is ready to go back to"
        )
    with gcp.report_live_versions([registered.version for registered in versions]):
        _set_default(cloud, previous)
    _set_description(cloud, newest.version, ROLLED_BACK)
    return dataclasses.replace(previous, traffic=100)


def find_address(config: DeployConfig) -> Address:
    """Returns the address of the model, at which its default version answers."""
    cloud = connect(config)
    uri = find_live_version(cloud).uri
    labels, (inputs, size) = storage.read_common_labels([uri]), read_inputs_and_size([uri])
    return Address(f"{cloud.api}/v1/{cloud.model}", gcp.Auth(), labels, {}, inputs, gcp.MAX_REQUEST_BYTES, size)


def _create_version(cloud: Connection, version: Version, answer: Json | None) -> None:
    """Creates a version, or what is missing of it, and waits until it is ready; if that fails, deletes it.

    Args:
        cloud: the connection.
        version: its name, and where the SavedModel is.
        answer: Google's description of the version, if an earlier attempt created it.
    """
    failure = f"ML Engine would not make version {version.version}"
    state = answer and answer.get("state")
    if state == _FAILED:
        _delete_version(cloud, version)
    try:
        with gcp.explain_errors(failure, cloud.settings):
            if state in (None, _FAILED):
                _create_model(cloud)
                operation = call(cloud, "POST", f"{cloud.model}/versions", _build_version(cloud.settings, version))
                wait_for_operation(cloud, operation, failure)
            path = version_path(cloud, version)
            current = poll(cloud, path, lambda answer: answer.get("state") not in _CHANGING, failure)
        if current.get("state") != READY:
            raise DeployError(f"{failure}: it is {describe_state(current)}")
    except gcp.UncertainError:
        raise
    except DeployError as error:
        try:
            _delete_version(cloud, version)
        except DeployError as besides:
            raise DeployError(f"{error}. Besides, {besides}") from error
        raise


def _build_version(settings: MLEngineConfig, version: Version) -> Json:
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
    maximum = {"maxNodes": settings.max_nodes} if settings.max_nodes else {}
    return body | {"autoScaling": {"minNodes": settings.min_nodes, **maximum}}


def _create_model(cloud: Connection) -> None:
    body = {"name": cloud.model.rpartition("/")[2], "regions": [cloud.settings.region]}
    with contextlib.suppress(exceptions.Conflict):  # it exists
        call(cloud, "POST", f"{cloud.project}/models", body)


def _set_default(cloud: Connection, version: Version) -> None:
    with gcp.explain_errors(f"ML Engine would not make version {version.version} the default", cloud.settings):
        call(cloud, "POST", f"{version_path(cloud, version)}:setDefault", {})


def _set_description(cloud: Connection, version: Version, description: str) -> None:
    failure = f"The change is live, but ML Engine would not change the description of {version.version}"
    with gcp.explain_errors(failure, cloud.settings):
        mask = {"updateMask": "description"}
        operation = call(cloud, "PATCH", version_path(cloud, version), {"description": description}, mask)
        wait_for_operation(cloud, operation, failure)


def _delete_version(cloud: Connection, version: Version) -> None:
    """Deletes a version if it exists."""
    failure = f"ML Engine would not delete version {version.version}, which did not get ready"
    with gcp.explain_errors(failure, cloud.settings), contextlib.suppress(exceptions.NotFound):
        wait_for_operation(cloud, call(cloud, "DELETE", version_path(cloud, version)), failure)
