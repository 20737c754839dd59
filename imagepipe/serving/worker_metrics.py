"""Reads the metrics for ``/metrics``: of this process, or of all workers of a server, out of their files.

The files of workers that have ended are added up in one, so that there are never more than a few to read, and no total
drops. Who reads and who adds up exclude each other by a lock.
"""

import fcntl
import logging
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, exposition, multiprocess
from prometheus_client.mmap_dict import MmapedDict

from imagepipe.serving.telemetry import METRICS_FOLDER, PRIVATE_MEMORY

LOCK = "lock"
"""The file in the folder of the metrics that is locked: shared to read, exclusively to add up."""

_TOTALS = ("counter", "histogram")

_log = logging.getLogger("imagepipe.serve")


def read_metrics(accept: str) -> tuple[bytes, str]:
    """Reads all metrics, which takes up to some 100 ms for the memory of the processes.

    Args:
        accept: the request's header of that name.

    Returns:
        The metrics, and their content type.
    """
    encode, kind = exposition.choose_encoder(accept)
    folder = os.environ.get(METRICS_FOLDER)
    if folder is None:
        return encode(REGISTRY), kind
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    registry.register(PRIVATE_MEMORY)
    with Path(folder, LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return encode(registry), kind


def keep_totals(folder: str, pids: Iterable[int]) -> bool:
    """Adds up the files of workers that have ended.

    Args:
        folder: of the metrics.
        pids: of the workers.

    Returns:
        False if somebody is reading: it is to be tried again.
    """
    try:
        with Path(folder, LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for pid in pids:
                multiprocess.mark_process_dead(pid, folder)
                for kind in _TOTALS:
                    _add_file(Path(folder, f"{kind}_{pid}.db"), Path(folder, f"{kind}_ended.db"))
    except BlockingIOError:
        return False
    except OSError as error:  # the folder was deleted, or the disk is full: no reason to end
        _log.error("the metrics of workers that have ended can't be added up: %s", error)
    return True


def _add_file(source: Path, target: Path) -> None:
    """Adds a file's values to those of another one, and removes it."""
    try:
        values = [(key, value) for key, value, _, _ in MmapedDict.read_all_values_from_file(source)]
    except FileNotFoundError:
        return
    except (struct.error, RuntimeError):  # it was killed before it had written anything
        values = []
    totals = MmapedDict(target)
    for key, value in values:
        totals.write_value(key, totals.read_value(key)[0] + value, 0.0)
    totals.close()
    source.unlink()
