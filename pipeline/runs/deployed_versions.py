"""The versions of a pipeline's models, wherever its runs have deployed them, and why each has to stay."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from imagepipe.base import filesystem
from imagepipe.base.errors import ConfigError, ModelError
from imagepipe.base.in_use import is_in_use
from imagepipe.deploy import storage, targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.versions import ROLLED_BACK, SHADOW
from pipeline.config_file import read_config
from pipeline.runs import provenance
from pipeline.workdir import Workdir


@dataclass(frozen=True)
class PushedVersion:
    """A version that a run pushed: the folder of the model's versions, and the version's name."""

    folder: str
    version: str


@dataclass
class VersionFolder:
    """A folder of versions.

    Attributes:
        path: its path or URI.
        pushed_to: the folder of the model's versions: itself, or the one above ``rolled_back/`` or ``shadow/``.
        versions: the versions in it, oldest first.
        newest: those of them that stay in any case: the newest complete ones, and copies that came later.
        reasons: why a version has to stay, and the run that made it, by version.
        fallbacks: versions that their target may go back to: only their folders have to stay.
        models: fingerprints of the versions.
        problem: why it isn't known which version is live, so that all have to stay; '' if it is known.
    """

    path: str
    pushed_to: str
    versions: list[str] = field(default_factory=list)
    newest: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    fallbacks: set[str] = field(default_factory=set)
    models: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""

    def locate(self, version: str) -> str:
        """Returns the folder of a version."""
        return f"{self.path}/{version}"

    def explain(self, version: str) -> str:
        """Returns why a version and its run have to stay; '' if they have not."""
        return self.reasons.get(version, "it may be live" if self.problem else "")


def read_fingerprint(model: str) -> bytes:
    """Returns the bytes that tell a SavedModel from others; b'' if it has none, or can't be read."""
    with suppress(OSError):
        return storage.read_fingerprint(model)
    return b""


def parse_push(destination: str, version: str) -> PushedVersion:
    """Returns the push of a SavedModel to ``destination``, which is, or lies in, the folder of the version."""
    folder = destination.rstrip("/")
    while folder.endswith(f"/{version}"):
        folder = folder.removesuffix(f"/{version}")
    return PushedVersion(folder.removesuffix(f"/{SHADOW}"), version)


def mentions(text: str, path: str) -> bool:
    """Returns whether a text names a path, or one below it."""
    return re.search(rf"{re.escape(path)}(?![\w.-])", text) is not None


def list_folders(
    workdir: Workdir, runs: Iterable[str], pushes: Iterable[PushedVersion], keep: int, parameters: str
) -> list[VersionFolder]:
    """Returns the folders of versions that runs have deployed to, and asks the targets which versions are live.

    Args:
        workdir: the pipeline's folder.
        runs: all runs, by id.
        pushes: the versions that they pushed.
        keep: number of the newest complete versions of a folder that stay.
        parameters: of the nodes of runs that stay; the versions that they name stay.
    """
    deployments = _read_deployments(workdir, runs)
    own = [str(folder) for folder in (workdir.root / "serving").glob("[!.]*") if folder.is_dir()]
    folders = []
    for path in dict.fromkeys([*own, *(str(deploy.path) for deploy in deployments), *(push.folder for push in pushes)]):
        folder = VersionFolder(path, path)
        deployed = [deploy for deploy in deployments if deploy.path == path]
        if not deployed and path not in own:
            folder.problem = f"no run says any more what serves the versions in {path}: all of them stay"
        for deploy in deployed:
            _add_live_versions(folder, deploy)
        folders.append(folder)
        if not filesystem.is_uri(path):
            folders += [VersionFolder(f"{path}/{inner}", path) for inner in (ROLLED_BACK, SHADOW)]
    for folder in folders:
        _add_other_reasons(folder, keep, parameters)
    return folders


def _read_deployments(workdir: Workdir, runs: Iterable[str]) -> list[DeployConfig]:
    """Returns all places that the runs deployed to, and those of the configurations in the workdir."""
    deployments: list[DeployConfig] = []
    for run in runs:
        if (origin := provenance.read_origin(workdir.runs / run)) is not None:
            name = str(origin.config.get("name"))
            with suppress(ValidationError):  # of another version: where it deployed to is among the pushes
                deploy = DeployConfig.model_validate(origin.config.get("deploy", {}))
                deployments.append(deploy.complete(name, str(workdir.serving(name))))
    for file in sorted(workdir.root.glob("*.yaml")):
        with suppress(ConfigError):  # it may be another file
            config = read_config(file)
            deployments.append(config.make_deployment(str(workdir.serving(config.name))))
    return [deploy for number, deploy in enumerate(deployments) if deploy not in deployments[:number]]


def _add_live_versions(folder: VersionFolder, deploy: DeployConfig) -> None:
    try:
        for version in targets.load_target(deploy).status(deploy):
            if version.traffic:
                folder.reasons[version.version] = f"it gets {version.traffic}% of the requests"
            elif deploy.target != "filesystem" and not version.rolled_back:  # a folder has all versions in its list
                folder.fallbacks.add(version.version)
    except (ModelError, OSError) as error:
        folder.problem = (
            f"{deploy.target} can't be asked which version of {deploy.name} is live ({error}): all versions in "
            f"{folder.path} stay, and the runs that made them"
        )


def _add_other_reasons(folder: VersionFolder, keep: int, parameters: str) -> None:
    try:
        folder.versions = storage.list_versions(folder.path)
        folder.newest = _list_newest(folder, keep)
    except OSError as error:
        folder.problem = folder.problem or f"{folder.path} can't be read ({error}): all versions in it stay"
    is_local = not filesystem.is_uri(folder.path)
    for version in folder.versions:
        path = folder.locate(version)
        if mentions(parameters, path):
            folder.reasons.setdefault(version, "a newer model was compared with it")
        if is_local and is_in_use(Path(path)):
            folder.reasons.setdefault(version, "a process is using it")
    for version in folder.newest:
        folder.reasons.setdefault(version, f"it is one of the {keep} newest" if keep > 1 else "it is the newest")
    for version in folder.versions:
        if is_local or folder.explain(version):  # a store is asked for each of them
            path = folder.locate(version)
            folder.models[version] = read_fingerprint(path) or read_fingerprint(f"{path}/{version}")  # as for KServe


def _list_newest(folder: VersionFolder, keep: int) -> list[str]:
    """Returns the newest complete versions and all that are newer than the oldest of them: they may be on their way."""
    complete = (v for v in reversed(folder.versions) if storage.is_complete(folder.path, v, storage.LAYOUTS))
    oldest = next(islice(complete, keep - 1, None), "0")
    return [version for version in folder.versions if int(version) >= int(oldest)]
