"""Lists what a new model may be compared with: models at a target, and the data that these were trained on."""

import hashlib
from collections.abc import Iterator

from imagepipe.base import filesystem
from imagepipe.base.names import TRAIN_STATISTICS
from imagepipe.deploy import storage, targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import sort_by_traffic

_ENOUGH = 2  # of the first two that differ, at most one is the candidate's own

HashedPaths = list[tuple[str, str]]
"""Paths, each with a hash of what is there; '' if that has nothing to know it by."""


def list_models(deploy: DeployConfig) -> HashedPaths:
    """Returns folders of SavedModels, of which the first that is not the candidate is the one that it has to beat.

    Args:
        deploy: where models are deployed to.

    Returns:
        The versions with the most requests first, without copies of one model; at most two.
    """
    return _take_distinct((uri, storage.read_fingerprint(uri)) for uri in _list_uris(deploy))


def list_statistics(deploy: DeployConfig) -> HashedPaths:
    """Returns files with the statistics that deployed models were trained on.

    Of these, the first that are not the statistics of the data at hand are what that is compared with.

    Args:
        deploy: where models are deployed to.

    Returns:
        Those of the version with the most requests first, without copies; at most two. The list ends where a model has
        none, as it was made elsewhere, or can't be read from here.
    """
    return _take_distinct(_read_statistics(deploy))


def _list_uris(deploy: DeployConfig) -> list[str]:
    return [version.uri for version in sort_by_traffic(targets.load_target(deploy).status(deploy))]


def _read_statistics(deploy: DeployConfig) -> Iterator[tuple[str, bytes]]:
    for uri in _list_uris(deploy):
        file = f"{uri}/{TRAIN_STATISTICS}"
        try:
            if not filesystem.exists(file):
                return
            yield file, filesystem.read_bytes(file)
        except OSError:
            return


def _take_distinct(contents: Iterator[tuple[str, bytes]]) -> HashedPaths:
    paths: dict[str, str] = {}  # by hash
    for path, content in contents:
        paths.setdefault(hashlib.sha256(content).hexdigest() if content else "", path)
        if not content or len(paths) == _ENOUGH:
            break
    return [(path, digest) for digest, path in paths.items()]
