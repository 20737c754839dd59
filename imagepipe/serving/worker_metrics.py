"""Reads the metrics for ``/metrics``: of this process, or of all workers of a server, out of their files.

The files of workers that have ended are added up in one, so that there are never more than a few to read, and no total
drops. Who reads and who adds up exclude each other by a lock.
"""

import fcntl
import logging
import os
import struct
from collections.abc import Iterable, Mapping
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
    with Path(folder, LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return encode(registry), kind


def keep_totals(folder: str, pids: Iterable[int]) -> bool:
    """Adds up the files of workers that have ended. Those that can't be, as the disk is full, stay and count as before.

    Args:
        folder: of the metrics.
        pids: of the workers.

    Returns:
        False if somebody is reading: it is to be tried again.
    """
    pids = list(pids)
    try:
        with Path(folder, LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for pid in pids:  # first, as it needs no space
                multiprocess.mark_process_dead(pid, folder)
            for pid in pids:
                for kind in _TOTALS:
                    _move_totals(Path(folder, f"{kind}_{pid}.db"), Path(folder, f"{kind}_ended.db"))
    except BlockingIOError:
        return False
    except OSError as error:  # the folder was deleted: no reason to end
        _explain(error)
    return True


def _move_totals(source: Path, target: Path) -> None:
    """Adds a file's values to those of another one, which is replaced as a whole, and removes it."""
    if not source.exists():
        return
    new = target.with_suffix(".db.new")
    try:
        totals = _read_values(target)
        for key, value in _read_values(source).items():
            totals[key] = totals.get(key, 0.0) + value
        # MmapedDict would map a file with holes: who writes there on a full disk is killed by a signal.
        new.write_bytes(_pack_values(totals))
        new.replace(target)
        source.unlink(missing_ok=True)
    except OSError as error:
        _explain(error)
        new.unlink(missing_ok=True)


def _explain(error: OSError) -> None:
    _log.error("the metrics of workers that have ended can't be added up: %s", error)


def _read_values(file: Path) -> dict[str, float]:
    """Returns the values in a file of metrics; none if there is no such file, or nothing was written into it yet."""
    try:
        return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(file)}
    except FileNotFoundError:
        return {}
    except (struct.error, RuntimeError):  # its process was killed before
        return {}


def _pack_values(values: Mapping[str, float]) -> bytes:
    """Returns the content of a file of metrics, as ``MmapedDict`` reads it; each value has a time, here 0 for none."""
    parts = []
    for key, value in values.items():
        encoded = key.encode()
        padded = encoded + b" " * (8 - (len(encoded) + 4) % 8)
        parts.append(struct.pack(f"i{len(padded)}sdd", len(encoded), padded, value, 0.0))
    content = b"".join(parts)
    return struct.pack("ii", len(content) + 8, 0) + content
