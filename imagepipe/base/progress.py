"""Progress on stderr, with rates and the time left: bars on a terminal, a line every half minute elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from imagepipe.base.console import PlainConsole, show_controls

_BAR_SECONDS = 0.2
_LINE_SECONDS = 30.0


Counts = Mapping[str, int]
"""Number of units done, by kind of work."""


def print_note(note: str) -> None:
    """Prints a sentence for the user on stderr, on one line, such as what was found out about the input."""
    print(show_controls(note), file=sys.stderr, flush=True)


@contextlib.contextmanager
def show_progress(
    total: int, unit: str, counts: Callable[[], Counts], outcomes: Callable[[], Counts] = dict
) -> Iterator[None]:
    """Shows progress until the block ends.

    Args:
        total: number of units of each kind of work.
        unit: their name, such as ``images``.
        counts: returns the present counts, always of the same kinds of work.
        outcomes: returns how many of what is done ended how; these need not add up to ``total``.
    """
    stop = threading.Event()
    show = _show_bar if sys.stderr.isatty() else _print_lines
    thread = threading.Thread(target=show, args=(total, unit, counts, outcomes, stop), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _show_bar(
    total: int, unit: str, counts: Callable[[], Counts], outcomes: Callable[[], Counts], stop: threading.Event
) -> None:
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
        TextColumn("{task.fields[outcomes]}"),
    )
    start = time.monotonic()
    with Progress(*columns, console=PlainConsole(stderr=True), transient=True) as progress:
        bars = {name: progress.add_task(name, total=total, rate=0.0, outcomes="") for name in counts()}
        while True:
            ended = stop.wait(_BAR_SECONDS)
            seconds = time.monotonic() - start
            for name, done in counts().items():
                progress.update(bars[name], completed=done, rate=done / seconds, outcomes=_list_counts(outcomes()))
            if ended:
                return


def _print_lines(
    total: int, unit: str, counts: Callable[[], Counts], outcomes: Callable[[], Counts], stop: threading.Event
) -> None:
    start = time.monotonic()
    while not stop.wait(_LINE_SECONDS):
        seconds = time.monotonic() - start
        done = counts()
        rates = ", ".join(f"{count:,} {name}, {count / seconds:,.0f}/s" for name, count in done.items())
        parts = [f"of {total:,} {unit} {rates}", _list_counts(outcomes())]
        if done and all(done.values()):
            left = max((total - count) * seconds / count for count in done.values())
            parts.append(f"about {_format_time(left)} left")
        print("; ".join(filter(None, parts)), file=sys.stderr, flush=True)


def _list_counts(counts: Counts) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _format_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
