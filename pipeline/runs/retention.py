"""Decides which results of old runs `imagepipe clean` removes.

The newest runs stay, and so does every run whose model is in a version that stays: one that is live at a target, gets a
share of the requests or can be rolled back to, is the champion of one of the newest runs, is in use, or is itself among
the newest. Of a run that stays, all artifacts stay that it made or used, whichever run made them. So the next run finds
everything in the cache that it would have found without.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imagepipe.base.filesystem import is_uri
from imagepipe.base.in_use import is_in_use
from pipeline.runs import metadata_store, provenance
from pipeline.runs.deployed_versions import (
    PushedVersion,
    VersionFolder,
    list_folders,
    mentions,
    parse_push,
    read_fingerprint,
)
from pipeline.runs.leftovers import find_leftovers
from pipeline.runs.removal import Removal
from pipeline.runs.summary import read_summaries
from pipeline.workdir import Workdir

DEFAULT_KEEP = 10
_LINK = "there is a symbolic link on the way to it"


@dataclass(frozen=True)
class Plan:
    """The folders to remove, and those that stay besides the newest runs and versions.

    Attributes:
        keep: number of runs of a pipeline, and of complete versions in a folder, that stay in any case.
        removals: the folders that are removed, artifacts last.
        artifacts: ids of the artifacts that are then gone, in ML Metadata.
        kept: the older runs, and the folders, that stay all the same, with the reason.
        problems: reasons why less is removed than could be.
    """

    keep: int
    removals: list[Removal]
    artifacts: list[int]
    kept: dict[str, str]
    problems: list[str]


@dataclass(frozen=True)
class _Run:
    """A run in ML Metadata; ``done`` by its summary. Models are fingerprints."""

    id: str
    pipeline: str
    done: bool
    executions: list[metadata_store.Execution]
    pushes: set[PushedVersion]
    models: set[bytes]

    def list_artifacts(self) -> Iterator[metadata_store.Artifact]:
        for execution in self.executions:
            yield from (*execution.inputs, *execution.outputs)


def plan_removal(workdir: Workdir, keep: int | None = None) -> Plan:
    """Decides what is removed; the caller holds the workdir's lock.

    Args:
        workdir: the pipeline's folder.
        keep: see ``Plan``; by default ``run.keep`` of the newest run, or 10 if it has none.

    Raises:
        BusyError: if ML Metadata can't be read now, or isn't there.
    """
    with metadata_store.open_store(workdir.metadata) as store:
        if store is None:
            raise metadata_store.BusyError(f"There is no {workdir.metadata}.")
        runs = _read_runs(store, workdir)
        keep = keep or _read_keep(workdir, runs)
        newest = _choose_newest(runs, keep)
        executions = [execution for run in newest for execution in run.executions]
        outputs = {output.id for execution in executions for output in execution.outputs}
        # What a node was compared with is recorded where it ran, not where its outputs were taken from the cache.
        executions += metadata_store.read_producers(store, outputs).values()
        recorded = metadata_store.read_parameters(store, {execution.id for execution in executions})
        parameters = "\n".join([*recorded, *_read_configs(workdir, newest)])

    pushes = {push for run in runs for push in run.pushes}
    folders = list_folders(workdir, [run.id for run in runs], pushes, keep, parameters)
    _keep_models(folders, {model for run in newest for model in run.models})
    reasons = {run.id: reason for run in runs if run not in newest and (reason := _find_reason(run, folders))}
    staying = {run.id for run in newest} | reasons.keys()

    kept = {f"run {run}": reason for run, reason in reasons.items()}
    artifacts, ids = _choose_artifacts(workdir, runs, staying, parameters, kept)
    versions = _choose_versions(workdir, folders, pushes, kept)
    leftovers = find_leftovers(
        workdir,
        serving=[folder.path for folder in folders],
        nodes={execution.node for run in runs for execution in run.executions},
        recorded={tail for run in runs for artifact in run.list_artifacts() for tail in _list_tails(artifact.uri)},
        resumes=bool(runs) and not runs[0].done,
    )
    problems = [folder.problem for folder in folders if folder.problem]
    return Plan(keep, [*leftovers, *versions, *artifacts], ids, kept, problems)


def _read_runs(store: metadata_store.Store, workdir: Workdir) -> list[_Run]:
    """Returns all runs, newest first."""
    done = {run_id for run_id, summary in read_summaries(workdir.runs) if summary and summary.status == "done"}
    runs = []
    for run_id, pipeline in sorted(metadata_store.read_run_ids(store).items(), reverse=True):
        executions = metadata_store.read_executions(store, pipeline, run_id)
        pushes, models = set(), set()
        for output in (output for execution in executions for output in execution.outputs):
            if _locate_artifact(workdir, output) is None:
                continue
            version, destination = (output.properties.get(f"pushed_{key}") for key in ("version", "destination"))
            if version and destination:
                pushes.add(parse_push(destination, version))
            if output.key == "model" and (fingerprint := read_fingerprint(f"{output.uri}/Format-Serving")):
                models.add(fingerprint)
        runs.append(_Run(run_id, pipeline, run_id in done, executions, pushes, models))
    return runs


def _read_keep(workdir: Workdir, runs: list[_Run]) -> int:
    origin = provenance.read_origin(workdir.runs / runs[0].id) if runs else None
    settings = origin.config.get("run") if origin else None
    keep = settings.get("keep") if isinstance(settings, dict) else None
    return keep if isinstance(keep, int) and keep > 0 else DEFAULT_KEEP


def _choose_newest(runs: list[_Run], keep: int) -> list[_Run]:
    """Returns the newest runs of each pipeline; if some of them failed, the newest that did not as well."""
    newest = []
    for pipeline in dict.fromkeys(run.pipeline for run in runs):
        own = [run for run in runs if run.pipeline == pipeline]
        done = [run for run in own if run.done]
        newest += [run for run in own if run in own[:keep] or run in done[:keep]]
    return newest


def _read_configs(workdir: Workdir, runs: Iterable[_Run]) -> Iterator[str]:
    """Yields the configurations of runs, and those in the workdir: they may name files of an old artifact."""
    for file in (*(workdir.runs / run.id / provenance.CONFIG for run in runs), *workdir.root.glob("*.yaml")):
        try:
            yield file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def _keep_models(folders: list[VersionFolder], models: set[bytes]) -> None:
    """Keeps the versions of the newest runs' models, also if rolled back: the next run must see what became of them."""
    for folder in folders:
        for version, model in folder.models.items():
            if model in models:
                folder.reasons.setdefault(version, "it is the model of one of the newest runs")


def _find_reason(run: _Run, folders: list[VersionFolder]) -> str:
    """Returns why an older run has to stay for its model; '' if it has not."""
    for folder in folders:
        pushed = {push.version for push in run.pushes if push.folder == folder.pushed_to}
        same = {version for version, model in folder.models.items() if model in run.models}
        for version in sorted(pushed | same):
            if reason := folder.explain(version):
                return f"it made version {version}: {reason}"
    return ""


def _choose_artifacts(
    workdir: Workdir, runs: list[_Run], staying: set[str], parameters: str, kept: dict[str, str]
) -> tuple[list[Removal], list[int]]:
    """Returns the folders of artifacts that are removed, and the ids of these artifacts; adds to ``kept``."""
    makers: dict[Path, str] = {}
    needed: set[Path] = set()
    ids: dict[int, Path] = {}  # of the artifacts that are not yet recorded as removed
    for run in reversed(runs):  # the oldest that has it made it
        for artifact in run.list_artifacts():
            if (folder := _locate_artifact(workdir, artifact)) is not None:
                makers.setdefault(folder, run.id)
                if run.id in staying:
                    needed.add(folder)
                if not artifact.removed:
                    ids[artifact.id] = folder
    gone, removals = set(), []
    for folder, run_id in makers.items():
        if folder in needed:
            continue
        if folder.is_dir():
            if reason := _find_obstacle(folder, workdir, parameters):
                kept[str(folder)] = reason
                continue
            removals.append(Removal("artifact", folder, run_id))
        gone.add(folder)
    return removals, sorted(artifact for artifact, folder in ids.items() if folder in gone)


def _find_obstacle(folder: Path, workdir: Workdir, parameters: str) -> str:
    """Returns why the folder of an artifact stays although its run goes; '' if it goes too."""
    if mentions(parameters, str(folder.relative_to(workdir.artifacts))):
        return "a configuration names it"
    if folder.resolve() != folder:
        return _LINK
    return "a process is using it" if is_in_use(folder) else ""


def _choose_versions(
    workdir: Workdir, folders: list[VersionFolder], pushes: set[PushedVersion], kept: dict[str, str]
) -> list[Removal]:
    """Returns the versions that are removed, outside the workdir only those that a run pushed; adds to ``kept``."""
    removals = []
    for folder in folders:
        for version in folder.versions:
            path = Path(folder.locate(version))
            if version in folder.newest:
                continue
            if reason := folder.explain(version):
                if not folder.problem:
                    kept[folder.locate(version)] = reason
            elif version in folder.fallbacks:
                kept[folder.locate(version)] = "its target may go back to it"
            elif is_uri(folder.path):
                kept[folder.path] = "versions in a store stay until they are removed there"
            elif path.resolve() != path:
                kept[str(path)] = _LINK
            elif not path.is_relative_to(workdir.root) and PushedVersion(folder.pushed_to, version) not in pushes:
                kept[str(path)] = "no run of this folder pushed it"
            else:
                removals.append(Removal("version", path))
    return removals


def _locate_artifact(workdir: Workdir, artifact: metadata_store.Artifact) -> Path | None:
    """Returns an artifact's folder, ``NODE/KEY/EXECUTION``; None if it isn't in this workdir, but where that was."""
    prefix = f"{workdir.artifacts}/"
    parts = artifact.uri.removeprefix(prefix).split("/")
    return workdir.artifacts.joinpath(*parts[:3]) if artifact.uri.startswith(prefix) and len(parts) >= 3 else None


def _list_tails(uri: str) -> Iterator[str]:
    """Yields all places at which a path may have ``NODE/KEY/EXECUTION``, wherever the workdir was then."""
    parts = uri.split("/")
    return ("/".join(parts[number : number + 3]) for number in range(len(parts) - 2))
