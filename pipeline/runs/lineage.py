"""What a version of a model was made from: data, code, configuration, packages, and the run to repeat."""

import shlex
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imagepipe.base.errors import IngestError, ModelError
from imagepipe.deploy.saved_model import FINGERPRINT
from imagepipe.deploy.versions import find_model
from pipeline.runs import provenance, store, summary
from pipeline.runs.provenance import Origin
from pipeline.runs.summary import Summary
from pipeline.workdir import Workdir


@dataclass(frozen=True)
class Lineage:
    """Where a model comes from.

    Attributes:
        model: the SavedModel's folder.
        version: its name, if it is a version folder.
        live: whether it is the newest of its folder, which a model server serves.
        verified: whether its fingerprint is that of the model which the run has kept. False where that is gone.
        run: the run that pushed it, or of a model that was not pushed, the first that had it.
        origin: what that run was made from; None if it left no ``run.json``.
        trained_by: the id of the run that trained it: an earlier one where the run found it in the cache. None if ML
            Metadata can't tell.
        trained_from: what that one was made from.
        data_now: the fingerprint of the dataset where it was, as it is now; None if it is gone, or was made elsewhere.
        executions: all that it comes from, by ML Metadata, the first first; empty if that can't be read.
        again: the command that runs the same again; None without ``origin``.
    """

    model: Path
    version: str
    live: bool
    verified: bool
    run: Summary
    origin: Origin | None
    trained_by: str | None
    trained_from: Origin | None
    data_now: str | None
    executions: list[store.Execution]
    again: str | None

    def as_json(self) -> dict[str, Any]:
        """The same, for programs."""
        return {
            "model": str(self.model),
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
            "executions": [asdict(each) for each in self.executions],
            "again": self.again,
        }


def trace(path: Path, workdir: Path | None = None) -> Lineage:
    """Finds what a model was made from.

    Args:
        path: a version (``serving/NAME/VERSION``, also one that was rolled back), the folder of versions, whose newest
            is meant, or a run.
        workdir: that of the pipeline; by default the folder above ``path`` that has ``runs/``.

    Raises:
        ModelError: there is no such model, or no run has made it.
    """
    model = find_model(path).resolve()
    root = workdir.resolve() if workdir else _workdir_above(path.resolve())
    place = Workdir(root)
    runs = [run for _, run in summary.read_each(place.runs) if run][::-1]  # oldest first
    run = _run_of(path.resolve(), model, runs, place)
    kept = Path(run.model_dir) if run.model_dir else None
    same = _same(model, kept)
    if same is False:
        raise ModelError(
            f"{model} is not the model that the run {run.run_id} has made under this name: its fingerprint is another. "
            "It was replaced by hand."
        )
    origin = provenance.read(place.runs / run.run_id)
    executions, trained_by = _recorded(place, run)
    return Lineage(
        model=model,
        version=model.name if model.name.isdigit() else "",
        live=summary.is_live(run) and model.name == run.pushed_version,
        verified=bool(same),
        run=run,
        origin=origin,
        trained_by=trained_by,
        trained_from=provenance.read(place.runs / trained_by) if trained_by else None,
        data_now=_data_now(origin),
        executions=executions,
        again=again(place, run.run_id) if origin else None,
    )


def again(workdir: Workdir, run_id: str) -> str:
    """The command that repeats a run with the configuration that it had."""
    config = workdir.runs / run_id / provenance.CONFIG
    return shlex.join(["imagepipe", "run", str(config), "--workdir", str(workdir.root)])


def _workdir_above(path: Path) -> Path:
    for folder in path.parents:
        if Workdir(folder).runs.is_dir():
            return folder
    raise ModelError(
        f"no folder above {path} has runs/, where a run says what it was made from. Give the pipeline's as --workdir."
    )


def _run_of(path: Path, model: Path, runs: list[Summary], workdir: Workdir) -> Summary:
    """The run that a model comes from: that which was asked about, that which pushed it, or the first that had it."""
    for run in runs:
        if path.name == run.run_id:
            return run
    for run in runs:
        # What was rolled back lies a folder below its name's; a workdir may have been moved.
        places = {Path(run.serving_dir).resolve(), workdir.serving(run.name)}
        if run.pushed_version == model.name and places & set(model.parents):
            return run
    for run in runs:
        if run.model_dir and _same(model, Path(run.model_dir)):
            return run
    raise ModelError(
        f"{model}: none of the {len(runs)} runs here has made this model. If it was copied from another workdir, "
        "give that as --workdir."
    )


def _same(one: Path, other: Path | None) -> bool | None:
    """Whether two folders hold one SavedModel; None where one of them has no fingerprint to tell by."""
    if other is None:
        return None
    try:
        return (one / FINGERPRINT).read_bytes() == (other / FINGERPRINT).read_bytes()
    except OSError:
        return None


def _data_now(origin: Origin | None) -> str | None:
    if origin is None or origin.dataset.of != "content":
        return None
    try:
        found = provenance.ingested(origin.dataset.path)
    except (IngestError, OSError):
        return None
    return found.fingerprint if found else None


def _recorded(workdir: Workdir, run: Summary) -> tuple[list[store.Execution], str | None]:
    """All that a run's model and its push come from, and the id of the run that trained the model."""
    try:
        with store.opened(workdir.metadata) as metadata:
            if metadata is None:
                return [], None
            # A run that found its push in the cache has the pushed model among its outputs as well.
            outputs = [a for each in store.executions(metadata, run.name, run.run_id) for a in each.outputs]
            models = {a.id for a in outputs if run.model_dir and Path(run.model_dir).is_relative_to(a.uri)}
            pushed = {a.id for a in outputs if a.kind == "PushedModel" and run.pushed_version}
            found = store.upstream(metadata, pushed or models)
    except store.BusyError:
        return [], None
    trainers = [each.run for each in found if {a.id for a in each.outputs} & models]
    return found, trainers[0] if trainers else None


def describe(found: Lineage) -> str:
    """The same in words, for a terminal."""
    lines = [
        f"{found.model}{' is live' if found.live else ''}",
        f"run       {found.run.run_id}, pipeline {found.run.name}: {_figures(found.run)}",
    ]
    if found.trained_by and found.trained_by != found.run.run_id:
        lines.append(f"trained   by an earlier run, {found.trained_by}, and taken from the cache")
    if not found.verified:
        lines.append("checked   no: the run's own copy of the model is gone, so that only its name says so")
    if found.origin is None:
        lines.append(
            "The run left no run.json, so nothing more is known: it is older than that file, or it was removed."
        )
        return "\n".join(lines)
    data = found.origin.dataset
    counts = ", ".join(f"{count:,} {split}" for split, count in data.records.items())
    now = ""
    if data.of == "content":
        now = "unchanged since" if found.data_now == data.fingerprint else "which has CHANGED since"
        now = f", {now if found.data_now else 'which is gone'}"
    lines.append(f"dataset   {data.fingerprint}")
    lines.append(f"          {data.path}{f' ({counts})' if counts else ''}{now}")
    lines.append(f"code      {commit_text(found.origin)}")
    if found.trained_from and found.trained_from.commit != found.origin.commit:
        lines.append(f"          when it was trained: {commit_text(found.trained_from)}")
    lines.append(f"packages  {', '.join(f'{name} {version}' for name, version in main_packages(found.origin).items())}")
    lines.append(f"          and {len(found.origin.packages) - len(main_packages(found.origin))} more, with --json")
    for each in found.executions:
        for artifact in each.outputs:
            lines.append(
                f"artifact  {each.node}: {artifact.uri}" + ("" if each.run == found.run.run_id else f" ({each.run})")
            )
    lines.append(f"again     {found.again}")
    lines.append(f"config\n{textwrap.indent(provenance.as_yaml(found.origin.config), '  ')}".rstrip())
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


def main_packages(origin: Origin) -> dict[str, str]:
    """The versions of the packages that results depend on most."""
    known = {name.lower().replace("_", "-"): version for name, version in origin.packages.items()}
    return {name: known[name] for name in _MAIN if name in known}


def commit_text(origin: Origin) -> str:
    """Where in git the code was, in words."""
    if origin.commit is None:
        return "not under git"
    return origin.commit.id + (" with changes that were not committed" if origin.commit.changed else "")


def _figures(run: Summary) -> str:
    shown = {name: value for name, value in run.metrics.items() if name != "example_count" and value is not None}
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items()) or "no metrics"
