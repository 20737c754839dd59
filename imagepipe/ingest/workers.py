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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

_THREADED_LIBRARIES = {"apache_beam", "tensorflow"}
_PR_SET_PDEATHSIG = 1  # prctl(2)

Item = TypeVar("Item")

_processes: Executor | None = None
_begun: dict[str, list[Future[Any]]] = {}


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
            _begun.clear()
            pool.shutdown(cancel_futures=True)


def shared() -> Executor | None:
    """The processes, if there are any in this process."""
    return _processes


def begin(key: str, do: Callable[[Item], Any], items: Iterable[Item]) -> None:
    """Lets the processes, if there are any, work on items that ``begun`` will be asked for."""
    if _processes:
        _begun[key] = [_processes.submit(do, item) for item in items]


def begun(key: str) -> Iterator[Any] | None:
    """The results of what was begun under a key, in order, once; None where nothing was."""
    futures = _begun.pop(key, None)
    return None if futures is None else (future.result() for future in futures)


def _start() -> None:
    """Leaves Ctrl-C to the parent, ends when it is killed (nobody else would tell), and gets ready while it imports.

    The parent goes first where all want a core: what it does (importing and starting Beam, writing) nobody else can.
    """
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    importlib.import_module("imagepipe.ingest.reading")
