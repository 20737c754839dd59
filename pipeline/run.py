"""Runs the pipeline on this machine: ``imagepipe.run`` and ``imagepipe run``."""

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from imagepipe.base.errors import ConfigError
from imagepipe.base.locks import lock_folder
from imagepipe.base.names import SUMMARY
from pipeline.config import Config
from pipeline.config_file import make_paths_absolute, read_config
from pipeline.logs import hide_output, redirect_output
from pipeline.preflight import check_run
from pipeline.runs.summary import Summary, read_all, write_summary
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
        ...     print(summary.error or summary.not_blessed_because)

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
        UnavailableError: if the target that serves the live model can't be asked.
        OSError: if files can't be read or written.
    """
    if isinstance(config, Config):
        if overrides or workdir is None:
            raise ConfigError("a configuration needs a workdir and takes no overrides; give the path of a file instead")
        settings = make_paths_absolute(config, Path.cwd())
    else:
        settings = read_config(Path(config), overrides)
        workdir = workdir or Path(config).resolve().parent
    folders = Workdir(Path(workdir).resolve())
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    busy = ConfigError(f"another run is using {folders.root}; wait for it, or give another --workdir")
    with lock_folder(folders.root, busy), _create_run_dir(folders) as run_dir:
        _close_killed_runs(folders)
        deploy = settings.make_deployment(str(folders.serving(settings.name)))
        summary = Summary(
            run_id=run_dir.name,
            name=settings.name,
            task=settings.task,
            status="running",
            target=deploy.target,
            serving_dir=str(deploy.path),
            log=str(run_dir / "log.txt"),
        )
        with redirect_output(Path(summary.log)) as terminal:
            shown = Console(
                file=terminal, force_terminal=console.is_terminal, width=console.width, highlight=False, soft_wrap=True
            )
            source = check_run(settings, deploy)
            shown.print("loading TFX …")
            with hide_output():  # only now, as it takes some 20 s
                from pipeline.execution import execute_dag

            execute_dag(settings, source, deploy, folders, summary, shown)
    return summary


@contextmanager
def _create_run_dir(workdir: Workdir) -> Iterator[Path]:
    """Creates a folder for the run, and removes it again if the run is refused before it has a summary."""
    folder = workdir.runs / datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    folder.mkdir(parents=True)
    try:
        yield folder
    except ConfigError:
        if not (folder / SUMMARY).exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        raise


def _close_killed_runs(workdir: Workdir) -> None:
    """Marks runs that never came to an end as killed: as this one holds the lock, none is running."""
    for killed in read_all(workdir.runs):
        if killed.status == "running":
            closed = killed.model_copy(update={"status": "failed", "error": "the run was killed"})
            write_summary(closed, workdir.runs / killed.run_id)
