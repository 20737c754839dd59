"""Results of the targets: the versions of a model that are deployed, and the address at which they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Version:
    """A version of a model at a target.

    Attributes:
        version: name of the version, digits: seconds since 1970 when it was saved.
        uri: folder of the SavedModel, as this machine sees it.
        traffic: percent of the requests that it gets, 0 to 100.
        state: ``ready``, or what it is doing or why it isn't ready, in the target's words.
        rolled_back: whether it was taken out of service by a rollback, or by giving all requests to an older version.
        in_shadow: whether it is newer than the live version, and kept from callers until it is deployed again.
        passed_over: whether nothing is compared with it: its copy is incomplete, or a newer version went live while it
            was in shadow.
    """

    version: str
    uri: str
    traffic: int
    state: str = "ready"
    rolled_back: bool = False
    in_shadow: bool = False
    passed_over: bool = False


@dataclass(frozen=True)
class Address:
    """Where a deployed model answers, and what a client needs to know to ask it.

    Attributes:
        url: URL of the model, without ``:predict``.
        auth: adds the caller's credentials to each request; None if none are needed.
        labels: names of the outputs in the order of the scores; empty if the live versions disagree.
        headers: headers of each request, such as the ``Host`` by which a gateway finds the model.
        inputs: types of the inputs that the model takes by name, side features included; empty if unknown.
        max_bytes: size of a request that the service takes; None if there is no limit worth minding.
        image_size: height and width that the model sees; None if unknown.
    """

    url: str
    auth: httpx.Auth | None = None
    labels: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int | None = None
    image_size: tuple[int, int] | None = None


def rank_by_traffic(version: Version) -> tuple[int, int]:
    """Returns a sort key: the most requests first; of versions with equally many, the newest first."""
    return -version.traffic, -int(version.version)


def sort_by_traffic(versions: list[Version]) -> list[Version]:
    """Returns the versions in the order of ``rank_by_traffic``.

    Those that were rolled back, are in shadow or were passed over are left out: nothing is compared with them.
    """
    kept = [v for v in versions if v.traffic or not (v.rolled_back or v.in_shadow or v.passed_over)]
    return sorted(kept, key=rank_by_traffic)


def list_newer_live_versions(versions: list[Version], version: str) -> list[Version]:
    """Returns the versions with requests that are newer than ``version``.

    If that one gets all requests, they are as good as rolled back.
    """
    return [newer for newer in versions if newer.traffic and int(newer.version) > int(version)]
