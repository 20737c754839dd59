"""How far an ingest is, shown on stderr: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_BAR_SECONDS = 0.2
_LINE_SECONDS = 30.0


@dataclass
class Counts:
    """Images read and hashed, and images decoded and written or set aside, so far."""

    read: int = 0
    done: int = 0


local = Counts()
"""What this process has done since the ingest began: a Beam runner inside the process adds to it."""


@contextlib.contextmanager
def shown(total: int, counts: Callable[[], Counts]) -> Iterator[None]:
    """Shows the counts against a total number of images until the block ends."""
    stop = threading.Event()
    show = _bar if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(total, counts, stop), name="ingest-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _bar(total: int, counts: Callable[[], Counts], stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} images/s"),
        TimeElapsedColumn(),
    )
    begun = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        reading = progress.add_task("reading", total=total, rate=0.0)
        writing = progress.add_task("checking and writing", total=total, rate=0.0)
        while True:
            ended = stop.wait(_BAR_SECONDS)
            now, seconds = counts(), time.monotonic() - begun
            progress.update(reading, completed=now.read, rate=now.read / seconds)
            progress.update(writing, completed=now.done, rate=now.done / seconds)
            if ended:
                return


def _lines(total: int, counts: Callable[[], Counts], stop: threading.Event) -> None:
    begun = time.monotonic()
    while not stop.wait(_LINE_SECONDS):
        now, seconds = counts(), time.monotonic() - begun
        print(
            f"{now.read:,} of {total:,} images read, {now.done:,} checked and written, "
            f"{now.done / seconds:,.0f} images/s",
            file=sys.stderr,
            flush=True,
        )
