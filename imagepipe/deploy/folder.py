"""Target ``filesystem``: a folder in TensorFlow Serving's layout, watched by a server; its newest version is live."""

from typing import NoReturn

from imagepipe.base import filesystem
from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import storage
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import Version
from imagepipe.deploy.versions import PROMOTED

ROLLED_BACK = "rolled_back"
"""Folder for versions that were rolled back; model servers ignore folders whose name isn't a number."""


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Copies a SavedModel into a new version folder, see ``storage.add_version``.

    A version that is there, and the newest, becomes live on servers that hold it back, in shadow.
    """
    if traffic != 100:
        raise ModelError("a folder has no share of the requests: --traffic needs another target")
    # A server does not load a version number again that it has had: that of a rolled back version is not reused.
    rolled_back = storage.list_versions(f"{config.path}/{ROLLED_BACK}")
    minimum = int(rolled_back[-1]) + 1 if rolled_back else 0
    version = storage.add_version(model, str(config.path), minimum=minimum, key=config.sign)
    if model == f"{config.path}/{version}":
        filesystem.write_whole(f"{model}{PROMOTED}", b"")
    return Version(version, f"{config.path}/{version}", 100)


def status(config: DeployConfig) -> list[Version]:
    """Returns the versions in the folder, of which the newest gets all requests, and those that were rolled back."""
    newest_first = storage.list_versions(str(config.path))[::-1]
    versions = [Version(v, f"{config.path}/{v}", 0 if i else 100) for i, v in enumerate(newest_first)]
    folder = f"{config.path}/{ROLLED_BACK}"
    rolled_back = [Version(v, f"{folder}/{v}", 0, "rolled back", True) for v in storage.list_versions(folder)]
    return sorted([*versions, *rolled_back], key=lambda v: -int(v.version))


def rollback(config: DeployConfig) -> Version:
    """Moves the newest version to ``rolled_back/`` beside it, so that the previous one is live."""
    versions = [version for version in status(config) if not version.rolled_back]
    if len(versions) < 2:
        there = f"only version {versions[0].version}" if versions else "no version"
        raise DeployError(f"{config.path} has {there}: there is nothing to go back to")
    newest, previous = versions[:2]
    storage.move_model(newest.uri, f"{config.path}/{ROLLED_BACK}/{newest.version}")
    return Version(previous.version, previous.uri, 100)


def find_address(config: DeployConfig) -> NoReturn:
    """Fails, as a folder answers no requests.

    Raises:
        ModelError: always; it says what to do instead.
    """
    raise ModelError(
        f"{config.path} is a folder, which answers nobody online: give it instead of --target, "
        "or `imagepipe serve` it and give the server's address as --endpoint"
    )
