"""Worker processes or threads, and bounded work ahead in them.

Python's lock is held about as long for a small image as the decoder works without it, so that threads get in each
other's way. Processes don't, but can only be forked safely before Beam and TensorFlow have started threads of theirs.

A decoder is C, and a file can crash it, or make it take all memory. So a worker process has a child that does its work,
and starts another one when it dies: nothing else notices. A worker has no threads and can always fork. Where there are
no workers, in a program with threads or on a remote runner, a crash ends the process that decodes.
"""

import contextlib
import copy
import gc
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import Pipe, active_children, current_process, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import TypeVar

from imagepipe.base.process import be_killed_first, end_with_parent

_THREADED_LIBRARIES = {"apache_beam", "tensorflow"}

In = TypeVar("In")
Out = TypeVar("Out")


@contextlib.contextmanager
def fork(count: int) -> Iterator[Executor]:
    """Forks worker processes, which end with the block; gives threads instead where forking isn't safe any more.

    They have the modules that are loaded here: what they are to call should be imported by now. If the block fails,
    they are killed: what they are at, nobody waits for.

    Args:
        count: number of processes or threads, 1 or more.
    """
    if not _can_fork():
        with ThreadPoolExecutor(count) as threads:
            yield threads
        return
    others = set(active_children())
    gc.freeze()  # what is loaded stays: searching it for garbage takes time here, and in each child copies its memory
    with ProcessPoolExecutor(count, mp_context=get_context("fork"), initializer=_initialize) as processes:
        processes.submit(os.getpid)  # the first call is when they are forked
        try:
            yield processes
        except BaseException:
            for process in set(active_children()) - others:
                process.kill()
            raise
        finally:
            gc.unfreeze()


def map_in_order(pool: Executor, do: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Maps in workers and yields in order, with at most ``ahead`` results or calls waiting."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(do, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def map_survivably(do: Callable[[In], Out], give_up: Callable[[In, str], Out], items: Sequence[In]) -> list[Out]:
    """Maps in a child of this worker process, which may die of an item.

    If the child dies, the items are tried again one by one. In any other process it maps right here, unprotected.

    Args:
        do: the work, which can be pickled.
        give_up: returns the result of an item that the child dies of even if it is alone, given the reason.
        items: what to work on.
    """
    if _worker is None:
        return [do(item) for item in items]
    try:
        return _worker.map(do, items)
    except _ChildDiedError as death:
        if len(items) == 1:
            return [give_up(items[0], str(death))]
        return [result for item in items for result in map_survivably(do, give_up, [item])]


class _ChildDiedError(Exception):
    """The child died; the message says of what."""


class _Worker:
    """The child of a worker process, started when it is needed."""

    def __init__(self) -> None:
        self._child: tuple[ForkProcess, Connection] | None = None

    def map(self, do: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
        """Maps in the child; raises what ``do`` raises, and _ChildDiedError if the child dies or lacks memory."""
        process, connection = self._child = self._child or _start_child()
        try:
            connection.send((do, items))
            results, error = connection.recv()
        except (EOFError, ConnectionError):
            process.join()
            connection.close()
            self._child = None
            raise _ChildDiedError(_describe_end(process.exitcode or 0)) from None
        if isinstance(error, MemoryError):
            raise _ChildDiedError("memory ran out while it was decoded") from None
        if error:
            raise error
        return results


def _can_fork() -> bool:
    is_alone = threading.active_count() == 1 and not _THREADED_LIBRARIES & sys.modules.keys()
    return is_alone and not current_process().daemon  # which may start none, as those of multiprocessing.Pool


_worker: _Worker | None = None  # in a worker process


def _start_child() -> tuple[ForkProcess, Connection]:
    """Forks a process that does what comes through the pipe of which this one has the other end."""
    ours, theirs = Pipe()
    process = get_context("fork").Process(target=_work, args=(theirs, ours), daemon=True)
    process.start()
    theirs.close()  # so that the child's end is closed when the child dies
    return process, ours


def _work(connection: Connection, parents: Connection) -> None:
    """Does what comes through the connection until the parent closes it or dies."""
    parents.close()
    end_with_parent()
    be_killed_first()
    while True:
        try:
            do, items = connection.recv()
        except EOFError:
            return
        try:
            connection.send(([do(item) for item in items], None))
        except Exception as error:  # nothing was sent, as all is pickled first
            _send_error(connection, error)


def _send_error(connection: Connection, error: Exception) -> None:
    """Sends an error, which the parent raises, in place of results; its traceback as a note, as none is pickled."""
    note = traceback.format_exc()
    error.add_note(note)
    try:
        connection.send(([], copy.copy(error)))  # which fails where the parent could not unpickle it
    except Exception:
        substitute = RuntimeError(repr(error))
        substitute.add_note(note)
        connection.send(([], substitute))


def _describe_end(status: int) -> str:
    """Returns why a process ended, for the quarantine, given its exit status: negative for a signal."""
    if status >= 0:
        return f"the decoder ended its process: exit status {status}"
    name = signal.Signals(-status).name
    return f"the decoder crashed ({name}{', as when memory runs out' if -status == signal.SIGKILL else ''})"


def _initialize() -> None:
    """Leaves Ctrl-C to the parent, and lets the kernel end this process if the parent is killed: nobody else would.

    The parent has precedence over its workers if all want a core: what it does (importing and starting Beam, writing)
    nobody else can.
    """
    global _worker
    _worker = _Worker()
    os.nice(10)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
