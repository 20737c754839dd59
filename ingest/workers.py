"""Who reads and decodes: processes beside the one that Beam runs in, or threads inside it.

Python's lock is held about as long for a small image as the decoder works without it, so that threads get in each
other's way. Processes don't, but can only be forked safely before Beam and TensorFlow have started threads of theirs.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

_THREADED_LIBRARIES = {"apache_beam", "tensorflow"}
_PR_SET_PDEATHSIG = 1  # prctl(2)

_processes: Executor | None = None


@contextlib.contextmanager
def processes(count: int) -> Iterator[None]:
    """Forks worker processes, where that is safe, for ``shared`` to give until the block ends.

    Args:
        count: number of processes, 1 or more.
    """
    global _processes
    if threading.active_count() > 1 or _THREADED_LIBRARIES & sys.modules.keys():
        yield
        return
    with ProcessPoolExecutor(count, mp_context=get_context("fork"), initializer=_start) as pool:
        pool.submit(os.getpid)  # the first call is when they are forked
        _processes = pool
        try:
            yield
        finally:
            _processes = None
            pool.shutdown(cancel_futures=True)


def shared() -> Executor | None:
    """The processes, if there are any in this process."""
    return _processes


def _start() -> None:
    """Leaves Ctrl-C to the parent, ends when it is killed (nobody else would tell), and gets ready while it imports."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    importlib.import_module("ingest.reading")
