"""Submissions: requests to run a compiled pipeline on a cluster, and the runs that come of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from imagepipe.base.errors import ConfigError
from pipeline.kubeflow.progress import Progress

Cluster = Literal["kubeflow", "vertex"]
"""Kubeflow Pipelines on Kubernetes, or Vertex AI Pipelines."""

_UNITS = {"m": 60, "h": 3600, "d": 86400}
_EVERY = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_CRON_FIELD = re.compile(r"[0-9A-Za-z*/,?-]+")
_CRON_FIELDS = 5


@dataclass(frozen=True)
class Schedule:
    """When recurring runs start: at an interval, or by ``cron``.

    Attributes:
        seconds: seconds from one run to the next; None with ``cron``.
        cron: minute, hour, day of the month, month, day of the week, in UTC; None with ``seconds``.
    """

    seconds: int | None = None
    cron: str | None = None


@dataclass(frozen=True)
class Submission:
    """A request to run a pipeline on a cluster.

    Attributes:
        parameters: values of the run's parameters by name.
        name: name of the run, or of the recurring run.
        schedule: when recurring runs start; None for one run now.
        create_experiment: whether an experiment that doesn't exist is created.
    """

    parameters: dict[str, Any]
    name: str | None = None
    schedule: Schedule | None = None
    create_experiment: bool = False


@dataclass(frozen=True)
class SubmittedRun:
    """A run, or a recurring run.

    Attributes:
        id: its id on the cluster.
        name: its name, for people.
        url: its page, if the address of the pages is known.
        logs: where the logs of its tasks are: a command or a page.
        replaced: ids of the recurring runs that it replaces.
        poll: returns the run's progress, see ``progress.follow_run``; None for a recurring run.
    """

    id: str
    name: str
    url: str | None
    logs: str = ""
    replaced: tuple[str, ...] = ()
    poll: Callable[[], Progress] | None = None

    def __str__(self) -> str:
        kind = "Run" if self.poll else "Recurring run"
        instead = f", in place of {', '.join(self.replaced)}" if self.replaced else ""
        return f"{kind} {self.id} ({self.name}){instead}" + (f": {self.url}" if self.url else "")


def parse_schedule(every: str | None, cron: str | None) -> Schedule | None:
    """Parses an interval such as ``6h`` or a cron schedule such as ``0 2 * * *``; None if neither is given.

    Raises:
        ConfigError: if it can't be parsed, or both are given.
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
