"""Worker processes beside the one that Beam runs in, and bounded work ahead in them or in threads.

Python's lock is held about as long for a small image as the decoder works without it, so that threads get in each
other's way. Processes don't, but can only be forked safely before Beam and TensorFlow have started threads of theirs.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

_THREADED_LIBRARIES = {"apache_beam", "tensorflow"}
_PR_SET_PDEATHSIG = 1  # prctl(2)

In = TypeVar("In")
Out = TypeVar("Out")


@contextlib.contextmanager
def fork(count: int) -> Iterator[Executor | None]:
    """Forks worker processes, which end with the block; gives None instead where forking isn't safe any more.

    They have the modules that are loaded here: what they are to call should be imported by now.

    Args:
        count: number of processes, 1 or more.
    """
    if threading.active_count() > 1 or _THREADED_LIBRARIES & sys.modules.keys():
        yield None
        return
    with ProcessPoolExecutor(count, mp_context=get_context("fork"), initializer=_initialize) as processes:
        processes.submit(os.getpid)  # the first call is when they are forked
        try:
            yield processes
        finally:
            processes.shutdown(cancel_futures=True)


def map_in_order(pool: Executor, do: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Maps in workers and yields in order, with at most ``ahead`` results or calls waiting."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(do, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _initialize() -> None:
    """Leaves Ctrl-C to the parent, and lets the kernel end this process if the parent is killed: nobody else would.

    The parent has precedence over its workers if all want a core: what it does (importing and starting Beam, writing)
    nobody else can.
    """
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
