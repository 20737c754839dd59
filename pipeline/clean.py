"""Removes what old runs have left in a workdir: `imagepipe clean`, and ``run.keep`` after a run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from imagepipe.base.console import quote
from imagepipe.base.errors import ConfigError, UnavailableError, describe_error
from imagepipe.base.full_disk import name_full_disk
from imagepipe.base.locks import lock_folder
from pipeline.logs import hide_output
from pipeline.runs.metadata_store import BusyError
from pipeline.runs.removal import Removal, measure, remove
from pipeline.runs.retention import Plan, plan_removal
from pipeline.workdir import Workdir

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


@dataclass
class Cleaning:
    """A plan for a workdir, and how far it was carried out.

    Attributes:
        workdir: the pipeline's folder.
        plan: the plan.
        sizes: bytes on disk of each folder that is removed, as ``du`` counts them.
        freed: bytes that were freed.
        failures: why a folder could not be removed, by path.
        stopped: why it ended before the artifacts were removed; None if it did not.
    """

    workdir: Workdir
    plan: Plan
    sizes: dict[Removal, int] = field(default_factory=dict)
    freed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain JSON values."""
        return {
            "workdir": str(self.workdir.root),
            "keep": self.plan.keep,
            "removals": [
                {"kind": removal.kind, "path": str(removal.path), "run": removal.run or None, "bytes": size}
                for removal, size in self.sizes.items()
            ],
            "bytes": sum(self.sizes.values()),
            "freed": self.freed,
            "kept": self.plan.kept,
            "problems": self.plan.problems,
            "failures": self.failures,
            "stopped": self.stopped,
        }


def clean(root: Path, keep: int | None = None, dry_run: bool = False) -> Cleaning:
    """Removes what old runs have left in a workdir.

    Args:
        root: the workdir.
        keep: number of runs of each pipeline, and of versions of each model, that stay in any case; by default the
            configuration's ``run.keep``, or 10.
        dry_run: whether it is only found out what would be removed.

    Raises:
        ConfigError: if the folder is not a pipeline's, or a run is using it.
        UnavailableError: if ML Metadata can't be read now; if it can't be written, the result says so.
        OSError: if a folder can't be read.
    """
    workdir = Workdir(root.resolve())
    if not workdir.metadata.is_file():
        raise ConfigError(
            f"{root} is not the folder of a pipeline, as it has no {workdir.metadata.name}: give the one that "
            "`imagepipe run` works in"
        )
    busy = ConfigError(f"a run is using {workdir.root}: wait for it")
    with name_full_disk(str(workdir.root)), lock_folder(workdir.root, busy):
        return clean_held(workdir, keep, dry_run)


def clean_held(workdir: Workdir, keep: int | None = None, dry_run: bool = False) -> Cleaning:
    """Removes as ``clean`` does, for a caller who holds the workdir's lock."""
    try:
        plan = plan_removal(workdir, keep)
    except BusyError as error:
        raise UnavailableError(f"{error} Try again later.") from error
    cleaning = Cleaning(workdir, plan, dict(zip(plan.removals, measure(plan.removals), strict=True)))
    if dry_run:
        return cleaning
    try:
        for removal, failure in remove(plan.removals, plan.artifacts, workdir):
            if failure:
                cleaning.failures[failure.filename or str(removal.path)] = failure.strerror or str(failure)
            else:
                cleaning.freed += cleaning.sizes[removal]
    except BusyError as error:  # what came before the artifacts is removed
        cleaning.stopped = f"{error} No artifact was removed. Try again later."
    return cleaning


def keep_newest(workdir: Workdir, keep: int, console: Console) -> None:
    """Cleans after a run, which holds the workdir's lock; an error is shown, as the run itself is done."""
    try:
        with hide_output():
            cleaning = clean_held(workdir, keep)
    except Exception as error:
        console.print(f"run.keep: old runs can't be removed: {escape(describe_error(error))}")
        return
    console.print(f"run.keep: kept the {keep} newest runs and versions, freed {format_size(cleaning.freed)}")
    stopped = [cleaning.stopped] if cleaning.stopped else []
    for problem in (*cleaning.plan.problems, *cleaning.failures.values(), *stopped):
        console.print(f"  {quote(problem)}")


def format_size(size: int) -> str:
    """Returns a number of bytes as text, such as 3.2 GB, which are 3.2 times 10^9 bytes."""
    value, unit = float(size), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size} bytes"
