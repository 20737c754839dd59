"""The lineage of a model version: data, code, configuration, packages, and the command that repeats the run."""

import shlex
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError, ModelError
from imagepipe.base.names import REFERENCE
from imagepipe.deploy import storage
from imagepipe.deploy.saved_model import FINGERPRINT
from imagepipe.deploy.signing import SIGNATURE
from imagepipe.deploy.versions import is_version
from pipeline.runs import metadata_store, provenance, summary
from pipeline.runs.provenance import Origin
from pipeline.runs.summary import Summary
from pipeline.workdir import Workdir


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    Attributes:
        model: folder or URI of the SavedModel.
        version: its name, if it is a version folder.
        live: whether it is the newest of its folder, which a model server serves.
        verified: whether each of its files is as in the run's own copy; False if that copy is gone.
        run: the run that pushed it; or the first run that had it, if it was not pushed.
        origin: what that run was made from; None if it left no ``run.json``.
        trained_by: id of the run that trained it: an earlier one if the run took it from the cache. None if ML Metadata
            can't tell.
        trained_from: what that run was made from.
        data_now: current fingerprint of the dataset at its old place; None if it is gone, or was made elsewhere.
        executions: all executions that it depends on, the earliest first; empty if ML Metadata can't be read.
        rerun: the command that repeats the run; None without ``origin``.
    """

    model: str
    version: str
    live: bool
    verified: bool
    run: Summary
    origin: Origin | None
    trained_by: str | None
    trained_from: Origin | None
    data_now: str | None
    executions: list[metadata_store.Execution]
    rerun: str | None

    def to_json(self) -> dict[str, Any]:
        """Returns the same as plain JSON values."""
        return {
            "model": self.model,
            "version": self.version or None,
            "live": self.live,
            "verified": self.verified,
            "run_id": self.run.run_id,
            "metrics": self.run.metrics,
            "dataset": self.origin and self.origin.dataset.model_dump(),
            "dataset_fingerprint_now": self.data_now,
            "commit": self.origin and self.origin.commit and self.origin.commit.model_dump(),
            "packages": self.origin and self.origin.packages,
            "config": self.origin and self.origin.config,
            "trained_by": self.trained_by,
            "trained_with_commit": self.trained_from
            and self.trained_from.commit
            and self.trained_from.commit.model_dump(),
            "executions": [asdict(execution) for execution in self.executions],
            "again": self.rerun,
        }


def trace_model(path: str, workdir: Path | None = None) -> Lineage:
    """Finds out what a model was made from.

    Args:
        path: a version (``serving/NAME/VERSION``, also one that was rolled back), a folder of versions (its newest is
            taken), by path or URI, or a run.
        workdir: the pipeline's folder; by default the folder above ``path`` that has ``runs/``. With a URI it has to be
            given.

    Raises:
        ModelError: if there is no such model, or no run made it.
        OSError: if it can't be read.
    """
    model, path = _resolve(storage.find_model(path)), _resolve(path)
    pipeline_workdir = Workdir(workdir.resolve() if workdir else find_workdir(path))
    summaries = dict(summary.read_summaries(pipeline_workdir.runs))
    run = _find_run(path, model, summaries, pipeline_workdir)
    verified = run.model_dir is not None and filesystem.exists(f"{run.model_dir}/{FINGERPRINT}")
    if run.model_dir and verified and (difference := _find_difference(model, run.model_dir)):
        raise ModelError(
            f"{model} is not the model that the run {run.run_id} made under this name: {difference} differs. "
            "It was replaced or changed by hand."
        )
    origin = provenance.read_origin(pipeline_workdir.runs / run.run_id)
    executions, trained_by = _read_executions(pipeline_workdir, run)
    name = PurePosixPath(model).name
    return Lineage(
        model=model,
        version=name if is_version(name) else "",
        live=summary.is_live(run) and name == run.pushed_version,
        verified=verified,
        run=run,
        origin=origin,
        trained_by=trained_by,
        trained_from=provenance.read_origin(pipeline_workdir.runs / trained_by) if trained_by else None,
        data_now=_fingerprint_dataset_now(origin),
        executions=executions,
        rerun=make_rerun_command(pipeline_workdir, run.run_id) if origin else None,
    )


def make_rerun_command(workdir: Workdir, run_id: str) -> str:
    """Returns the command that repeats a run with the configuration that it had."""
    config = workdir.runs / run_id / provenance.CONFIG
    return shlex.join(["imagepipe", "run", str(config), "--workdir", str(workdir.root)])


def _resolve(path: str) -> str:
    return filesystem.absolute(path) if filesystem.is_uri(path) else str(Path(path).resolve())


def find_workdir(path: str) -> Path:
    """Returns the pipeline's folder that a path lies in.

    Raises:
        ModelError: if it lies in none.
    """
    for folder in Path(path).parents if not filesystem.is_uri(path) else ():
        if Workdir(folder).runs.is_dir():
            return folder
    raise ModelError(
        f"no folder above {path} has runs/, where each run leaves its run.json. Give the pipeline's as --workdir."
    )


def _find_run(path: str, model: str, summaries: dict[str, Summary | None], workdir: Workdir) -> Summary:
    """Returns the run that a model comes from: that at ``path``, the one that pushed it, or the first that had it."""
    runs = [run for run in summaries.values() if run][::-1]  # oldest first
    for run in runs:
        if PurePosixPath(path).name == run.run_id:
            return run
    for run in runs:
        # A version that was rolled back lies one folder deeper; a workdir may have been moved.
        folders = (_resolve(run.serving_dir), str(workdir.serving(run.name)))
        if PurePosixPath(model).name == run.pushed_version and model.startswith(tuple(f"{f}/" for f in folders)):
            return run
    for run in runs:
        if run.model_dir and storage.is_same_model(model, run.model_dir):
            return run
    unreadable = [run_id for run_id, run in summaries.items() if run is None]
    besides = f" Run {unreadable[0]}: {summary.UNREADABLE}." if unreadable else ""
    raise ModelError(
        f"{model}: none of the {len(runs)} runs here made this model. If it was copied from another workdir, "
        f"give that as --workdir.{besides}"
    )


def _find_difference(model: str, copy: str) -> str | None:
    """Returns the first file in which a version differs from a run's copy of its model; None if it doesn't.

    What a push adds is left out: signature and reference.
    """
    one, other = ({path[len(root) + 1 :]: size for path, size in filesystem.walk(root)} for root in (model, copy))
    for name in sorted((one.keys() | other.keys()) - {SIGNATURE, REFERENCE}):
        if one.get(name) != other.get(name):
            return name
        if filesystem.read_bytes(f"{model}/{name}") != filesystem.read_bytes(f"{copy}/{name}"):
            return name
    return None


def _fingerprint_dataset_now(origin: Origin | None) -> str | None:
    if origin is None or origin.dataset.of != "content":
        return None
    try:
        current = provenance.fingerprint_dataset(origin.dataset.path)
    except (IngestError, OSError):
        return None
    return current.fingerprint if current else None


def _read_executions(workdir: Workdir, run: Summary) -> tuple[list[metadata_store.Execution], str | None]:
    """Returns all executions behind a run's model and its push, and the id of the run that trained the model."""
    try:
        with metadata_store.open_store(workdir.metadata) as metadata:
            if metadata is None:
                return [], None
            # A run that took its push from the cache has the pushed model among its outputs as well.
            executions = metadata_store.read_executions(metadata, run.name, run.run_id)
            outputs = [artifact for execution in executions for artifact in execution.outputs]
            models = {a.id for a in outputs if run.model_dir and Path(run.model_dir).is_relative_to(a.uri)}
            pushed = {a.id for a in outputs if a.kind == "PushedModel" and run.pushed_version}
            upstream = metadata_store.read_upstream(metadata, pushed or models)
    except metadata_store.BusyError:
        return [], None
    trainers = [execution.run for execution in upstream if {a.id for a in execution.outputs} & models]
    return upstream, trainers[0] if trainers else None


def describe_lineage(lineage: Lineage) -> str:
    """Returns the lineage as text for a terminal."""
    lines = [
        f"{lineage.model}{' is live' if lineage.live else ''}",
        f"run       {lineage.run.run_id}, pipeline {lineage.run.name}: {_format_metrics(lineage.run)}",
    ]
    if lineage.trained_by and lineage.trained_by != lineage.run.run_id:
        lines.append(f"trained   by an earlier run, {lineage.trained_by}, and taken from the cache")
    if not lineage.verified:
        lines.append("checked   no: the run's own copy of the model is gone, so that only its name says so")
    if lineage.origin is None:
        lines.append(
            "The run has no run.json, so nothing more is known: it is older than that file, or it was removed or "
            "damaged."
        )
        return "\n".join(lines)
    data = lineage.origin.dataset
    counts = ", ".join(f"{count:,} {split}" for split, count in data.records.items())
    now = ""
    if data.of == "content":
        now = "unchanged since" if lineage.data_now == data.fingerprint else "which has CHANGED since"
        now = f", {now if lineage.data_now else 'which is gone'}"
    lines.append(f"dataset   {data.fingerprint}")
    lines.append(f"          {data.path}{f' ({counts})' if counts else ''}{now}")
    lines += [f"          {ingest}" for ingest in data.ingests]
    lines.append(f"code      {describe_commit(lineage.origin)}")
    if lineage.trained_from and lineage.trained_from.commit != lineage.origin.commit:
        lines.append(f"          when it was trained: {describe_commit(lineage.trained_from)}")
    packages = select_main_packages(lineage.origin)
    lines.append(f"packages  {', '.join(f'{name} {version}' for name, version in packages.items())}")
    lines.append(f"          and {len(lineage.origin.packages) - len(packages)} more, with --json")
    for execution in lineage.executions:
        for artifact in execution.outputs:
            lines.append(
                f"artifact  {execution.node}: {artifact.uri}"
                + (", which imagepipe clean removed" if artifact.removed else "")
                + ("" if execution.run == lineage.run.run_id else f" ({execution.run})")
            )
    lines.append(f"again     {lineage.rerun}")
    lines.append(f"config\n{textwrap.indent(provenance.to_yaml(lineage.origin.config), '  ')}".rstrip())
    return "\n".join(lines)


_MAIN = (
    "python",
    "imagepipe-tfx",
    "tfx",
    "tensorflow",
    "keras",
    "tensorflow-transform",
    "tensorflow-model-analysis",
    "tensorflow-data-validation",
    "apache-beam",
    "ml-metadata",
    "numpy",
    "pillow",
)


def select_main_packages(origin: Origin) -> dict[str, str]:
    """Returns the versions of the packages that results depend on most."""
    versions = {name.lower().replace("_", "-"): version for name, version in origin.packages.items()}
    return {name: versions[name] for name in _MAIN if name in versions}


def describe_commit(origin: Origin) -> str:
    """Returns the commit of the code as text."""
    if origin.commit is None:
        return "not under git"
    return origin.commit.id + (" with changes that were not committed" if origin.commit.changed else "")


def _format_metrics(run: Summary) -> str:
    shown = {name: value for name, value in run.metrics.items() if name != "example_count" and value is not None}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items()) or "no metrics"
