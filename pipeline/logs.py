"""Keeps what TensorFlow, Beam and TFX print away from what a person reads."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

MARK = "---- imagepipe node "
"""How the line before a node's part of a log starts; its name follows."""


@contextmanager
def redirect_output(log: Path) -> Iterator[TextIO]:
    """Sends all that this process prints to a file, C++ code included: that prints past Python's streams.

    Yields:
        A stream to what was standard error, for what a person should read.
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
    """Writes into the log, where output is redirected to one, that a node begins; the dashboard looks for it."""
    os.write(2, f"{MARK}{node}\n".encode())


@contextmanager
def show_training(line: Callable[[str], None], moment: Callable[[str], None]) -> Iterator[None]:
    """Shows how training goes, and writes it to standard error, which is the log's.

    Args:
        line: shows what a person should find again later, such as an epoch's results.
        moment: shows how far it is, until the next time it is called.
    """

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show = moment if record.name == "trainer.progress" else line
            show(record.getMessage())

    shown = Shown()
    logged = logging.StreamHandler()
    logged.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    trainer = logging.getLogger("trainer")
    level = trainer.level
    trainer.setLevel(logging.INFO)
    for handler in (shown, logged):
        trainer.addHandler(handler)
    try:
        yield
    finally:
        trainer.setLevel(level)
        for handler in (shown, logged):
            trainer.removeHandler(handler)


@contextmanager
def hide_output() -> Iterator[None]:
    """Drops what is printed, around the import of TensorFlow and its likes. Exceptions are raised as ever."""
    with redirect_output(Path(os.devnull)):
        yield
