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
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

import joblib
from prometheus_client import multiprocess

from imagepipe.base.process import end_with_parent
from imagepipe.serving.telemetry import METRICS_FOLDER

CPUS = "LOKY_MAX_CPU_COUNT"
"""Environment variable that joblib.cpu_count() reads, and with it TensorFlow's, OpenVINO's and our threads."""

_CHECK_SECONDS = 0.2  # whether a signal has come
_RESTART_SECONDS = 1.0  # before one that was killed is started again: for want of memory it would be killed again

_log = logging.getLogger("imagepipe.serve")


def run_workers(count: int, work: Callable[[], None]) -> int:
    """Runs workers until SIGTERM or SIGINT, then until they have finished the requests that they have.

    A worker that is killed is started again. One that ends by itself has given its reason, and ends them all.

    Args:
        count: number of processes.
        work: what each does, to be pickled; it ends at SIGTERM.

    Returns:
        The exit status: 0, or that of the worker that ended by itself.
    """
    os.environ[CPUS] = str(math.ceil(joblib.cpu_count() / count))
    ending: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: ending.append(received))
    with tempfile.TemporaryDirectory(prefix="imagepipe-metrics-") as folder:
        os.environ[METRICS_FOLDER] = folder  # read when a worker imports Prometheus' client
        workers = [_start(work) for _ in range(count)]
        status, is_told = 0, False
        while workers:
            wait([worker.sentinel for worker in workers], timeout=_CHECK_SECONDS)
            for worker, ended in [(worker, worker.exitcode) for worker in workers]:
                if ended is None:
                    continue
                workers.remove(worker)
                if ending:
                    continue
                if ended >= 0:
                    status = ended
                    ending.append(signal.SIGTERM)
                    continue
                _log.warning("worker %s was killed (signal %s); another one takes its place", worker.pid, -ended)
                multiprocess.mark_process_dead(worker.pid, folder)
                time.sleep(_RESTART_SECONDS)
                workers.append(_start(work))
            if ending and not is_told:
                is_told = True
                for worker in workers:
                    worker.terminate()
        return status


def _start(work: Callable[[], None]) -> SpawnProcess:
    worker = multiprocessing.get_context("spawn").Process(target=_work, args=(work,))
    worker.start()
    return worker


def _work(work: Callable[[], None]) -> None:
    end_with_parent()
    work()
