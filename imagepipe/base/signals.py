"""SIGTERM and SIGINT (Ctrl+C): they end what this process does, or are held back until it has saved its state."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_DEFAULT_HANDLERS = (signal.SIG_DFL, signal.default_int_handler)
_AGAIN_SECONDS = 1.0


class Stopped(KeyboardInterrupt):
    """A signal has asked this process to end. No ``Exception``, so that nobody takes it for a failure.

    Attributes:
        number: the signal's.
        status: the exit status that shells give to a process that the signal has ended.
    """

    def __init__(self, number: int, where: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}{where and f' in {where}'}")
        self.number = number
        self.status = 128 + number


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Raises ``Stopped`` in the block if SIGTERM or SIGINT comes, wherever the block is.

    An exception that is raised by a signal's handler can get lost: Python drops it inside ``__del__``, some libraries
    catch everything, and TensorFlow turns it into an error of its own. So it is raised again each second until it
    unwinds the stack, and once more at the end of the block.

    Handlers of the application are left in place. Outside the main thread, which alone can catch signals, this does
    nothing.
    """
    first = 0
    is_over = False

    def end(number: int, _: Any) -> None:
        nonlocal first
        first = first or number
        if is_over:  # Python runs a handler some time after its signal: a timer set now would kill the process
            return
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        if not _is_unwinding():  # what is cleaned up on the way must not be interrupted
            raise Stopped(first)

    numbers = [number for number in _NUMBERS if signal.getsignal(number) in _DEFAULT_HANDLERS]
    if threading.current_thread() is not threading.main_thread() or not numbers:
        yield
        return
    previous_handlers = {number: signal.signal(number, end) for number in (*numbers, signal.SIGALRM)}
    try:
        try:
            yield
        finally:
            is_over = True
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
    except BaseException as error:
        if first and not isinstance(error, Stopped):
            raise Stopped(first) from error
        raise
    if first:
        raise Stopped(first)


def _is_unwinding() -> bool:
    """Returns whether a ``finally`` or ``except`` that a ``Stopped`` has reached is running."""
    error = sys.exception()
    while error and not isinstance(error, Stopped):
        error = error.__context__
    return error is not None


@contextmanager
def hold_signals() -> Iterator[Callable[[], bool]]:
    """Holds back SIGTERM and SIGINT in the block; afterwards they have the effect that they would have had.

    Yields:
        A function that returns whether one has come; always False outside the main thread, which alone can catch
        signals.
    """
    pending: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous_handlers = {
        number: signal.signal(number, lambda number, _: pending.append(number))
        for number in _NUMBERS
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    try:
        yield lambda: bool(pending)
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
