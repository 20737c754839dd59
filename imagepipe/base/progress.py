"""Progress on stderr, with rates and the time left: bars on a terminal, a line every half minute elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

_BAR_SECONDS = 0.2
_LINE_SECONDS = 30.0


Counts = Mapping[str, int]
"""Number of units done, by kind of work."""


def print_note(note: str) -> None:
    """Prints a sentence for the user on stderr, such as what was found out about the input."""
    print(note, file=sys.stderr, flush=True)


@contextlib.contextmanager
def show_progress(total: int, unit: str, counts: Callable[[], Counts]) -> Iterator[None]:
    """Shows progress until the block ends.

    Args:
        total: number of units of each kind of work.
        unit: their name, such as ``images``.
        counts: returns the present counts, always of the same kinds of work.
    """
    stop = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _print_lines
    thread = threading.Thread(target=show, args=(total, unit, counts, stop), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _show_bar(total: int, unit: str, counts: Callable[[], Counts], stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} " + f"{unit}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars = {name: progress.add_task(name, total=total, rate=0.0) for name in counts()}
        while True:
            ended = stop.wait(_BAR_SECONDS)
            seconds = time.monotonic() - start
            for name, done in counts().items():
                progress.update(bars[name], completed=done, rate=done / seconds)
            if ended:
                return


def _print_lines(total: int, unit: str, counts: Callable[[], Counts], stop: threading.Event) -> None:
    start = time.monotonic()
    while not stop.wait(_LINE_SECONDS):
        seconds = time.monotonic() - start
        rates = ", ".join(f"{done:,} {name}, {done / seconds:,.0f}/s" for name, done in counts().items())
        left = max(((total - done) * seconds / done for done in counts().values() if done), default=0)
        print(f"of {total:,} {unit} {rates}; about {_format_time(left)} left", file=sys.stderr, flush=True)


def _format_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
