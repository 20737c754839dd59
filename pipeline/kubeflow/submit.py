"""Submits a compiled pipeline: to Kubeflow Pipelines or to Vertex AI, for a run now or for runs on a schedule."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagepipe.base.errors import ConfigError
from pipeline.config_file import read_config
from pipeline.kubeflow import package as packages
from pipeline.kubeflow.package import Package
from pipeline.kubeflow.progress import Progress
from pipeline.kubeflow_config import KubeflowConfig
from pipeline.logs import hide_output

TargetName = Literal["kubeflow", "vertex"]

_UNITS = {"m": 60, "h": 3600, "d": 86400}
_EVERY = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_CRON_FIELD = re.compile(r"[0-9A-Za-z*/,?-]+")
_CRON_FIELDS = 5

# Keys of the section kubeflow that are of use to a pipeline that is compiled already.
_AT_SUBMISSION = ("host", "namespace", "experiment", "pipeline_root", "labels", "vertex")


@dataclass(frozen=True)
class Schedule:
    """When runs begin by themselves.

    Attributes:
        seconds: from one to the next; or None, then by ``cron``.
        cron: minute, hour, day of the month, month, day of the week.
    """

    seconds: int | None = None
    cron: str | None = None


@dataclass(frozen=True)
class Asked:
    """What is to be done with a pipeline.

    Attributes:
        parameters: values by name.
        name: of the run, or of the recurring one.
        schedule: of recurring runs; None for one run now.
        create_experiment: whether an experiment that doesn't exist is made.
    """

    parameters: dict[str, Any]
    name: str | None = None
    schedule: Schedule | None = None
    create_experiment: bool = False


@dataclass(frozen=True)
class Submitted:
    """A run, or a recurring one.

    Attributes:
        id: its id there.
        name: for people.
        url: its page, if it is known where pages are.
        logs: where the logs of its tasks are, in words.
        replaced: ids of recurring runs in whose place it is.
        look: asks how far the run is, see ``progress.follow``; None of a recurring one.
    """

    id: str
    name: str
    url: str | None
    logs: str = ""
    replaced: tuple[str, ...] = ()
    look: Callable[[], Progress] | None = None

    def __str__(self) -> str:
        kind = "Run" if self.look else "Recurring run"
        instead = f", in place of {', '.join(self.replaced)}" if self.replaced else ""
        return f"{kind} {self.id} ({self.name}){instead}" + (f": {self.url}" if self.url else "")


def prepare(file: Path, config: Path, target: TargetName, overrides: tuple[str, ...]) -> tuple[Package, KubeflowConfig]:
    """Reads what is to be submitted, and where to.

    Args:
        file: a configuration, which is compiled; or what is compiled already.
        config: the configuration in that case, for its section ``kubeflow``.
        target: what is to run it.
        overrides: of the configuration, see ``pipeline.config_file.read_config``.

    Raises:
        ConfigError: if there is no such thing, or an override would change nothing.
    """
    if package := packages.find(file):
        for override in overrides:
            section, _, key = override.partition("=")[0].partition(".")
            if section != "kubeflow" or key.partition(".")[0] not in _AT_SUBMISSION:
                raise ConfigError(f"--set {override}: {file} is compiled already. Compile it again, or see --param")
        return package, read_config(config, overrides).kubeflow
    settings = read_config(file, overrides)
    with hide_output():
        from pipeline.kubeflow.compile import compile_pipeline

        text = compile_pipeline(settings, target)
    return packages.parse(text, str(file)), settings.kubeflow


def submit(package: Package, settings: KubeflowConfig, target: TargetName, asked: Asked) -> Submitted:
    """Submits a pipeline.

    Args:
        package: the compiled pipeline.
        settings: where to.
        target: what runs it.
        asked: how.

    Raises:
        ConfigError: if it can't be done as it is asked for; UnavailableError: if there is nobody, or a refusal.
    """
    if target == "kubeflow":
        from pipeline.kubeflow import pipelines

        return pipelines.submit(package, settings, asked)
    from pipeline.kubeflow import vertex

    return vertex.submit(package, settings, asked)


def schedule(every: str | None, cron: str | None) -> Schedule | None:
    """Reads ``6h`` or ``0 2 * * *``; None if neither is given.

    Raises:
        ConfigError: if it is no such thing, or both are given.
    """
    if every and cron:
        raise ConfigError("--every and --cron: give one of them")
    if every:
        if not (match := _EVERY.fullmatch(every)):
            raise ConfigError(f"--every {every}: expected a number of minutes, hours or days, such as 30m, 6h or 1d")
        return Schedule(seconds=int(match[1]) * _UNITS[match[2]])
    if cron:
        fields = cron.split()
        if len(fields) != _CRON_FIELDS or not all(map(_CRON_FIELD.fullmatch, fields)):
            raise ConfigError(
                f"--cron '{cron}': expected minute, hour, day, month and weekday, such as '0 2 * * *' for 2 at night"
            )
        return Schedule(cron=" ".join(fields))
    return None
