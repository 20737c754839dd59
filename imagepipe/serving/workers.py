"""Worker processes of the server that share its ports, for machines with more CPUs than one process keeps busy.

The kernel spreads connections over them (SO_REUSEPORT). Each loads the model, follows its versions, and has its share
of the CPUs. Their metrics are files in a folder, which whichever of them is asked adds up.
"""

import logging
import math
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

import joblib

from imagepipe.base.process import end_with_parent
from imagepipe.serving.streams import ALL_CPUS
from imagepipe.serving.telemetry import METRICS_FOLDER
from imagepipe.serving.worker_metrics import keep_totals

CPUS = "LOKY_MAX_CPU_COUNT"
"""Environment variable that joblib.cpu_count() reads, and with it TensorFlow's, OpenVINO's and our threads."""

_CHECK_SECONDS = 0.2  # whether a signal has come
_RESTART_SECONDS = 1.0  # before one that was killed is started again: for want of memory it would be killed again
_RETRY_SECONDS = 10.0  # before one that ended by itself is: what it needs may be there again

ReportReady = Callable[[], None]
Work = Callable[[ReportReady], None]
"""A worker's task; it reports when it can do it, and ends at SIGTERM."""

_KILLED = "worker %s was killed (signal %s); another one takes its place"
_ENDED = "worker %s ended by itself, with status %s; another one is tried after %.0f s if others serve"

_log = logging.getLogger("imagepipe.serve")


@dataclass
class _Worker:
    """A process.

    Attributes:
        process: the process.
        news: where it reports that it is ready.
        is_ready: whether it has.
    """

    process: SpawnProcess
    news: Connection
    is_ready: bool = False

    def listen(self) -> None:
        """Takes its report, if it has come."""
        with suppress(EOFError):  # it has ended
            self.is_ready = self.is_ready or (self.news.poll() and self.news.recv())


def run_workers(count: int, work: Work) -> int:
    """Runs workers until SIGTERM or SIGINT, then until they have finished the requests that they have.

    A worker that is killed is started again. One that ends by itself, as it can't load the model, has given its reason;
    as long as others serve it is tried again, and if all end so, that is the end.

    Args:
        count: number of processes.
        work: what each does, to be pickled.

    Returns:
        The exit status: 0, or that of the last worker if all have ended by themselves.
    """
    cpus = joblib.cpu_count()
    os.environ |= {ALL_CPUS: str(cpus), CPUS: str(math.ceil(cpus / count))}
    ending: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: ending.append(received))
    with tempfile.TemporaryDirectory(prefix="imagepipe-metrics-") as folder:
        os.environ[METRICS_FOLDER] = folder  # read when a worker imports Prometheus' client
        workers = [_start(work) for _ in range(count)]
        retries: list[float] = []  # when those that ended by themselves are tried again
        status, is_told = 0, False
        dead: list[int] = []  # whose metrics are not added up yet
        while workers:
            wait([worker.process.sentinel for worker in workers], timeout=_CHECK_SECONDS)
            for worker, ended in [(worker, worker.process.exitcode) for worker in workers]:
                worker.listen()
                if ended is None:
                    continue
                workers.remove(worker)
                worker.news.close()
                if ending:
                    continue
                dead.append(cast(int, worker.process.pid))
                if ended >= 0:
                    status = ended
                    retries.append(time.monotonic() + _RETRY_SECONDS)
                    _log.warning(_ENDED, worker.process.pid, ended, _RETRY_SECONDS)
                    continue
                _log.warning(_KILLED, worker.process.pid, -ended)
                time.sleep(_RESTART_SECONDS)
                workers.append(_start(work))
            if dead and keep_totals(folder, dead):
                dead.clear()
            if retries and retries[0] <= time.monotonic() and any(worker.is_ready for worker in workers) and not ending:
                retries.pop(0)
                workers.append(_start(work))
            if ending and not is_told:
                is_told = True
                for worker in workers:
                    worker.process.terminate()
        return 0 if ending else status


def _start(work: Work) -> _Worker:
    context = multiprocessing.get_context("spawn")
    news, report = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, report))
    process.start()
    report.close()  # so that the worker's end is closed when it ends
    return _Worker(process, news)


def _work(work: Work, report: Connection) -> None:
    end_with_parent()
    work(partial(report.send, True))
