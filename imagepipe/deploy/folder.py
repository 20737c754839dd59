"""Target ``filesystem``: a folder in TensorFlow Serving's layout, watched by a server; its newest version is live."""

from typing import NoReturn

from imagepipe.base.errors import DeployError, ModelError
from imagepipe.deploy import storage
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import Version
from imagepipe.deploy.signing import is_signed
from imagepipe.deploy.versions import ROLLED_BACK, SHADOW


def deploy(model: str, config: DeployConfig, traffic: int = 100) -> Version:
    """Copies a SavedModel into a new version folder, see ``storage.add_version``.

    With 0 % of the requests it comes into ``shadow/`` beside the versions, if there is a live one to compare it with.
    With 100 % a version in there is moved out, under the number that it has, unless a newer one is live by then.
    """
    if traffic not in (0, 100):
        raise ModelError("a folder has no share of the requests: --traffic needs another target")
    path, shadow = str(config.path), f"{config.path}/{SHADOW}"
    if traffic == 0 and (live := storage.find_newest_version(path)):
        if storage.is_deployed(model, f"{path}/{live}", config.sign):
            raise ModelError(f"{model} is version {live}, and live: `imagepipe rollback` takes it out of service")
        added = storage.add_version(model, path, place=SHADOW, key=config.sign)
        return Version(added, f"{shadow}/{added}", 0, "in shadow", in_shadow=True)
    version = _find_in_shadow(model, config)
    if version:
        storage.move_model(f"{shadow}/{version}", f"{path}/{version}")
    else:
        version = storage.add_version(model, path, key=config.sign)
    return Version(version, f"{path}/{version}", 100)


def _find_in_shadow(model: str, config: DeployConfig) -> str | None:
    """Returns the version in shadow that a SavedModel is, or is a copy of; None if it has to be copied to be live."""
    path, shadow = str(config.path), f"{config.path}/{SHADOW}"
    live = storage.find_newest_version(path)
    for version in reversed(storage.list_complete_versions(shadow)):
        uri = f"{shadow}/{version}"
        is_newer = live is None or int(version) > int(live)
        is_it = is_newer and (model == uri or storage.is_same_model(model, uri))
        if is_it and (config.sign is None or is_signed(uri, config.sign)):
            return version
    return None


def status(config: DeployConfig) -> list[Version]:
    """Returns the versions in the folder, newest first: the live one, those before it, in shadow, and rolled back.

    A copy that is under way, or was killed, is incomplete, and passed over, as servers do.
    """
    path, shadow, rolled_back = str(config.path), f"{config.path}/{SHADOW}", f"{config.path}/{ROLLED_BACK}"
    complete, in_shadow = storage.list_complete_versions(path), storage.list_complete_versions(shadow)
    live = complete[-1] if complete else None
    versions = [Version(v, f"{path}/{v}", 100 if v == live else 0) for v in complete]
    for version in in_shadow:
        is_newer = live is None or int(version) > int(live)
        state = "in shadow" if is_newer else "was in shadow"
        uri = f"{shadow}/{version}"
        versions.append(Version(version, uri, 0, state, in_shadow=is_newer, passed_over=not is_newer))
    for folder, names in ((path, complete), (shadow, in_shadow)):
        copies = [version for version in storage.list_versions(folder) if version not in names]
        versions += [Version(v, f"{folder}/{v}", 0, "incomplete", passed_over=True) for v in copies]
    versions += [Version(v, f"{rolled_back}/{v}", 0, "rolled back", True) for v in storage.list_versions(rolled_back)]
    return sorted(versions, key=lambda v: -int(v.version))


def rollback(config: DeployConfig) -> Version:
    """Moves the newest complete version to ``rolled_back/`` beside it, so that the previous one is live."""
    folder = str(config.path)
    versions = [v for v in status(config) if v.uri == f"{folder}/{v.version}" and not v.passed_over]
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
