"""Follows a run that goes on somewhere else, and says how it goes. Imports nothing heavy."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from imagepipe.base.errors import UnavailableError

State = Literal["pending", "running", "succeeded", "cached", "skipped", "failed", "canceled"]

_PATIENCE = 600.0  # seconds without an answer: a cluster's API restarts, a laptop sleeps
_SILENT = ("pending", "skipped")


class NoAnswerError(UnavailableError):
    """Nobody answers, which may pass; the message says why."""


@dataclass(frozen=True)
class Task:
    """A task of a run.

    Attributes:
        name: the task's.
        state: what it does now.
        seconds: how long it took, or None while it goes on.
        error: why it failed, as far as it is told.
    """

    name: str
    state: State
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        state: the run's.
        tasks: those that have begun, in that order.
        error: why the run failed, as far as it is told.
    """

    state: State
    tasks: tuple[Task, ...] = ()
    error: str = ""

    @property
    def over(self) -> bool:
        """Whether it goes on no more."""
        return self.state in ("succeeded", "failed", "canceled", "skipped")

    def __str__(self) -> str:
        failed = [task for task in self.tasks if task.state == "failed"]
        why = "; ".join(f"{task.name} failed" + (f": {task.error}" if task.error else "") for task in failed)
        why = why or self.error
        return self.state + (f": {why}" if why else "")


def follow(look: Callable[[], Progress], say: Callable[[str], None], seconds: float) -> Progress:
    """Waits until a run is over; says of each task when it begins and how it ends.

    Args:
        look: asks how far the run is; raises ``NoAnswerError`` for what may pass.
        say: shows a line.
        seconds: from one look to the next.

    Returns:
        How it ended.

    Raises:
        UnavailableError: if nobody answers for ten minutes, or the answer is a refusal.
    """
    shown: dict[str, State] = {}
    answered = time.monotonic()
    while True:
        try:
            progress = look()
            answered = time.monotonic()
        except NoAnswerError:
            if time.monotonic() - answered > _PATIENCE:
                raise
        else:
            for task in progress.tasks:
                if task.state not in (shown.get(task.name), *_SILENT):
                    shown[task.name] = task.state
                    say(_line(task))
            if progress.over:
                return progress
        time.sleep(seconds)


def _line(task: Task) -> str:
    took = "" if task.seconds is None else f", {task.seconds:.0f} s"
    return f"{task.name}: {task.state}{took}" + (f": {task.error}" if task.error else "")
