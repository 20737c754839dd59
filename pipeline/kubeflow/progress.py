"""Follows a run on a cluster, and reports its progress."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from imagepipe.base.errors import UnavailableError

State = Literal["pending", "running", "succeeded", "cached", "skipped", "failed", "canceled"]

_PATIENCE = 600.0  # seconds without an answer: a cluster's API restarts, a laptop sleeps
_SILENT = ("pending", "skipped")


class NoAnswerError(UnavailableError):
    """The cluster does not answer, which may pass; the message says why."""


@dataclass(frozen=True)
class Task:
    """A task of a run.

    Attributes:
        name: name of the task.
        state: its state now.
        seconds: how long it took; None while it runs.
        error: why it failed, as far as the cluster says.
    """

    name: str
    state: State
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        state: state of the run.
        tasks: the tasks that have started, in that order.
        error: why the run failed, as far as the cluster says.
    """

    state: State
    tasks: tuple[Task, ...] = ()
    error: str = ""

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.state in ("succeeded", "failed", "canceled", "skipped")

    def __str__(self) -> str:
        failed = [task for task in self.tasks if task.state == "failed"]
        reason = "; ".join(f"{task.name} failed" + (f": {task.error}" if task.error else "") for task in failed)
        reason = reason or self.error
        return self.state + (f": {reason}" if reason else "")


def follow_run(poll: Callable[[], Progress], show: Callable[[str], None], seconds: float) -> Progress:
    """Waits until a run is over; reports each task when it starts and when it ends.

    Args:
        poll: returns the run's progress; raises ``NoAnswerError`` for what may pass.
        show: shows a line.
        seconds: seconds between two polls.

    Returns:
        The progress at the end.

    Raises:
        UnavailableError: if the cluster does not answer for ten minutes, or refuses.
    """
    shown: dict[str, State] = {}
    answered = time.monotonic()
    while True:
        try:
            progress = poll()
            answered = time.monotonic()
        except NoAnswerError:
            if time.monotonic() - answered > _PATIENCE:
                raise
        else:
            for task in progress.tasks:
                if task.state not in (shown.get(task.name), *_SILENT):
                    shown[task.name] = task.state
                    duration = "" if task.seconds is None else f", {task.seconds:.0f} s"
                    show(f"{task.name}: {task.state}{duration}" + (f": {task.error}" if task.error else ""))
            if progress.over:
                return progress
        time.sleep(seconds)
