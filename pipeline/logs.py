"""Keeps the output of TensorFlow, Beam and TFX apart from what is written for the user."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

MARK = "---- imagepipe node "
"""Start of the line that precedes a node's part of a log; the node's name follows."""


def open_closed_streams() -> None:
    """Opens standard output and error that whoever started this process has closed, as some daemons do; nobody reads.

    Without them, the next files that are opened get their numbers, and what native code prints.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.set_inheritable(descriptor, True)  # it may be ``null`` itself
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
            if null != descriptor:
                os.close(null)


def discard_output() -> None:
    """Discards what is printed from now on, and what waits: Python would try to write that when it ends, and fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


@contextmanager
def redirect_output(log: Path) -> Iterator[TextIO]:
    """Redirects everything that this process prints to a file; also C++ code, which bypasses Python's streams.

    Yields:
        A stream to the former standard error, for messages to the user.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    with log.open("ab", buffering=0) as file, os.fdopen(saved[1], "w", buffering=1, closefd=False) as terminal:
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


def mark_node(node: str) -> None:
    """Writes to standard error, and so to a run's log, that a node starts; the dashboard looks for this line."""
    os.write(2, f"{MARK}{node}\n".encode())


@contextmanager
def show_training(line: Callable[[str], None], moment: Callable[[str], None]) -> Iterator[None]:
    """Shows the progress of training, and logs it to standard error.

    Args:
        line: shows a message that stays, such as an epoch's results.
        moment: shows a message that stays until the next call, such as the number of the step.
    """

    class TerminalHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show = moment if record.name == "trainer.progress" else line
            show(record.getMessage())

    log_handler = logging.StreamHandler()
    log_handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    handlers = (TerminalHandler(), log_handler)
    trainer = logging.getLogger("trainer")
    level = trainer.level
    trainer.setLevel(logging.INFO)
    for handler in handlers:
        trainer.addHandler(handler)
    try:
        yield
    finally:
        trainer.setLevel(level)
        for handler in handlers:
            trainer.removeHandler(handler)


@contextmanager
def hide_output() -> Iterator[None]:
    """Discards everything that is printed, as TensorFlow and its like print when they are imported.

    Exceptions are raised as usual.
    """
    with redirect_output(Path(os.devnull)):
        yield
