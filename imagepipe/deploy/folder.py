"""A folder in TensorFlow Serving's layout, which a model server watches: its newest version is live."""

from typing import NoReturn

import tensorflow as tf

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import storage
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import Version

_ASIDE = "rolled_back"  # model servers ignore folders whose name isn't a number


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Copies a SavedModel into a new version folder, see ``storage.add_version``."""
    if traffic != 100:
        raise ModelError("a folder has no share of the requests: --traffic needs another target")
    # A server takes a version that it knows for what it has: the number of one that was rolled back is not used again.
    gone = storage.version_names(f"{config.path}/{_ASIDE}")
    version = storage.add_version(model, str(config.path), least=int(gone[-1]) + 1 if gone else 0)
    return Version(version, f"{config.path}/{version}", 100)


def status(config: DeployConfig) -> list[Version]:
    """The versions in the folder, newest first; the newest gets all requests."""
    newest_first = storage.version_names(str(config.path))[::-1]
    return [Version(v, f"{config.path}/{v}", 0 if i else 100) for i, v in enumerate(newest_first)]


def rollback(config: DeployConfig) -> Version:
    """Moves the newest version to ``rolled_back/`` beside it, so that the one before is live."""
    versions = status(config)
    if len(versions) < 2:
        there = f"only version {versions[0].version}" if versions else "no version"
        raise DeployError(f"{config.path} has {there}: there is nothing to go back to")
    newest, before = versions[:2]
    tf.io.gfile.makedirs(f"{config.path}/{_ASIDE}")
    storage.move(newest.uri, f"{config.path}/{_ASIDE}/{newest.version}")
    return Version(before.version, before.uri, 100)


def find_address(config: DeployConfig) -> NoReturn:
    """A folder answers nobody.

    Raises:
        ModelError: always; it says what to do instead.
    """
    raise ModelError(
        f"{config.path} is a folder, which answers nobody online: give it instead of --target, "
        "or `imagepipe serve` it and give the server's address as --endpoint"
    )
