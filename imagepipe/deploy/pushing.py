"""Pushes a model to a deploy target, unless the target has it already, or had it and it was taken out of service.

A pipeline that runs every night has the same candidate until its data changes. A version of it that somebody rolled
back, or replaced by another one, must not come back by itself; one that was lost has to.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from imagepipe.base import filesystem
from imagepipe.base.names import REFERENCE
from imagepipe.deploy import storage, targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import Version, list_newer_live_versions, rank_by_traffic
from imagepipe.deploy.signing import is_signed

Outcome = Literal["pushed", "already_deployed", "rolled_back", "replaced"]


@dataclass(frozen=True)
class Push:
    """The result of a push.

    Attributes:
        outcome: ``pushed``, or why it was not pushed: the model gets requests already (``already_deployed``), all or a
            share, or is in shadow; it was ``rolled_back``; it was ``replaced`` by a newer version.
        version: the version at the target that is the model.
    """

    outcome: Outcome
    version: Version

    @property
    def is_deployed(self) -> bool:
        """Whether the version is in service, or in shadow."""
        return self.outcome in ("pushed", "already_deployed")


def push_model(model: str, config: DeployConfig, reference: str | None = None) -> Push:
    """Asks the target for the model, and deploys it with the share ``deploy.traffic`` if it has to be.

    A share that somebody has changed since stays. A version that is live, but not signed with the key ``deploy.sign``,
    is pushed again as a signed one.

    Args:
        model: folder of the SavedModel.
        config: the target.
        reference: file that the version gets as its REFERENCE, before it is signed; None for none.

    Raises:
        DeployError: if the target refuses, fails or can't be asked.
    """
    target = targets.load_target(config)
    versions = target.status(config)
    existing = find_version(model, versions, config.sign)
    if existing and (existing.traffic or existing.in_shadow) and storage.is_deployed(model, existing.uri, config.sign):
        return Push("already_deployed", existing)
    if existing and existing.rolled_back:
        return Push("rolled_back", existing)
    if existing and not existing.traffic and list_newer_live_versions(versions, existing.version):
        return Push("replaced", existing)
    # The target doesn't have it, or not as signed, or an earlier push of it did not get to its end.
    with add_reference(model, reference) as complete:
        return Push("pushed", target.deploy(complete, config, config.traffic))


@contextlib.contextmanager
def add_reference(model: str, reference: str | None) -> Iterator[str]:
    """Yields a folder with a SavedModel and the reference; the model's own, the Trainer's, is left unchanged."""
    if reference is None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="imagepipe-push-") as folder:
        filesystem.copy_folder(model, folder)
        filesystem.copy(reference, f"{folder}/{REFERENCE}")
        yield folder


def find_version(model: str, versions: list[Version], key: str | None) -> Version | None:
    """Returns the version that is a copy of a SavedModel; of several, the one with the most requests, then the newest.

    Copies are recognised by their fingerprints; those that are signed with the key go first. A version whose files are
    gone is none.
    """
    wanted = storage.read_fingerprint(model)
    unsigned = None
    for version in sorted(versions, key=rank_by_traffic):
        if wanted and storage.read_fingerprint(version.uri) == wanted:
            if key is None or is_signed(version.uri, key):
                return version
            unsigned = unsigned or version
    return unsigned
