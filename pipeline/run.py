"""Runs the pipeline on this machine: ``imagepipe.run`` and ``imagepipe run``."""

import datetime
import os
import shutil
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from imagepipe.base.console import PlainConsole
from imagepipe.base.errors import ConfigError, describe_error
from imagepipe.base.full_disk import name_full_disk
from imagepipe.base.locks import LOCK, lock_folder
from imagepipe.base.names import SUMMARY
from imagepipe.base.signals import end_on_signals
from pipeline.clean import keep_newest
from pipeline.config import Config
from pipeline.config_file import make_paths_absolute, read_config
from pipeline.logs import hide_output, redirect_output
from pipeline.preflight import check_run
from pipeline.runs.summary import Summary, mark_killed, read_summaries, write_summary
from pipeline.runs.tracking import track_after_run
from pipeline.workdir import Workdir


def run(
    config: str | os.PathLike[str] | Config,
    *,
    overrides: Sequence[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Summary:
    """Runs the pipeline once: validates the data, trains, evaluates, and pushes the model if it passes the gate.

    Results of earlier runs in the same workdir are used again as far as nothing that they depend on has changed.

    Examples:
        >>> summary = imagepipe.run("flowers/pipeline.yaml", overrides=["trainer.epochs=5"])
        >>> if summary.pushed_version:
        ...     print(summary.metrics["accuracy"], summary.serving_dir)
        ... else:
        ...     print(summary.error or summary.not_blessed_because or summary.push)

    Args:
        config: the configuration file (pipeline.yaml), or a configuration.
        overrides: ``key.path=value`` each, as for ``--set``; only with a file.
        workdir: folder for artifacts, models and runs, made if missing; by default the folder of the configuration
            file. With a configuration it has to be given.
        console: shows a line per node and the training's progress; by default stderr does. While the pipeline runs,
            everything else that this process prints goes to the run's log.

    Returns:
        The summary, which is in ``runs/<run_id>/summary.json`` as well. Its status is ``failed`` if a node failed.

    Raises:
        ConfigError: if the pipeline can't be run as configured; nothing is left behind.
        TypeError: if ``overrides`` is a single one.
        UnavailableError: if the target that serves the live model can't be asked.
        OSError: if files can't be read or written. After this and any error but ConfigError, the run's summary, in
            ``runs/<run_id>``, has the status ``failed`` and the reason.
        Stopped: after SIGTERM or Ctrl+C, a KeyboardInterrupt; likewise. Handlers of the application are left in place.
    """
    if isinstance(config, Config):
        if overrides or workdir is None:
            raise ConfigError("a configuration needs a workdir and takes no overrides; give the path of a file instead")
        settings = make_paths_absolute(config, Path.cwd())
    else:
        settings = read_config(Path(config), overrides)
        workdir = workdir or Path(config).absolute().parent  # not of what it leads to, if it is a link: as its paths
    folders = Workdir(Path(workdir).resolve())
    console = console or PlainConsole(stderr=True)

    busy = ConfigError(
        f"another run, or `imagepipe clean`, is using {folders.root}; wait for it, or give another --workdir"
    )
    new = [path for path in (folders.root / LOCK, folders.root, *folders.root.parents) if not path.exists()]
    with name_full_disk(str(folders.root)), lock_folder(folders.root, busy), _remove_if_refused(new):
        _close_killed_runs(folders)
        run_id = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
        deploy = settings.make_deployment(str(folders.serving(settings.name)))
        summary = Summary(
            run_id=run_id,
            name=settings.name,
            task=settings.task,
            status="running",
            target=deploy.target,
            serving_dir=str(deploy.path),
            log=str(folders.runs / run_id / "log.txt"),
            host=socket.gethostname(),
        )
        log = Path(summary.log)
        with _record_run(summary, folders.runs / run_id), end_on_signals(), redirect_output(log) as terminal:
            shown = PlainConsole(file=terminal, force_terminal=console.is_terminal, width=console.width)
            source = check_run(settings, deploy)
            shown.print("loading TFX …")
            with hide_output():  # only now, as it takes some 20 s
                from pipeline.execution import execute_dag

            execute_dag(settings, source, deploy, folders, summary, shown)
        track_after_run(settings.tracking, deploy, folders, run_id, console)  # first, as old models are removed then
        if settings.run.keep and summary.status == "done":
            keep_newest(folders, settings.run.keep, console)
    return summary


@contextmanager
def _remove_if_refused(new: Sequence[Path]) -> Iterator[None]:
    """Removes the file of the lock, the workdir and what is above it, as far as a run that is refused has made them.

    Only the holder of a lock may remove its file: who waits for it looks whether it is still there.
    """
    try:
        yield
    except ConfigError:
        with suppress(OSError):  # a folder with results stays
            for path in new:
                path.rmdir() if path.is_dir() else path.unlink()
        raise


@contextmanager
def _record_run(summary: Summary, run_dir: Path) -> Iterator[None]:
    """Creates a run's folder with its summary; if the run fails, the summary says why.

    A run that is refused before its first node leaves nothing behind, nor does one whose summary can't be written.
    """
    run_dir.mkdir(parents=True)
    try:
        write_summary(summary, run_dir)
        yield
    except BaseException as error:
        if isinstance(error, ConfigError) and not summary.nodes:
            shutil.rmtree(run_dir, ignore_errors=True)
            with suppress(OSError):  # other runs are there
                run_dir.parent.rmdir()
            raise
        if summary.status == "running" or not isinstance(error, KeyboardInterrupt):  # a signal may come at the end
            summary.status, summary.error = "failed", describe_error(error)
        with suppress(OSError):  # what a full disk does to the summary must not hide what it did to the run
            write_summary(summary, run_dir)
            with Path(summary.log).open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        if not (run_dir / SUMMARY).exists():  # there was no room for the first one either
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def _close_killed_runs(workdir: Workdir) -> None:
    """Marks runs that never came to an end as killed: as this one holds the lock, none is running."""
    for run_id, killed in read_summaries(workdir.runs):
        if killed and killed.status == "running":
            write_summary(mark_killed(killed), workdir.runs / run_id)
