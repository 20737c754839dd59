"""The folder of a batch prediction's results, a path or URI.

- ``predictions-<id>.jsonl`` (or ``.parquet``, ``.tfrecord``), for each shard: ``metadata`` (the image's path, or the
  request's own), ``label``, ``score``, ``classes`` and ``novelty``, as the model's signature gives them; for rows of a
  manifest also its ``line``, and ``kept``, the columns that the model doesn't take, if they are wanted;
- ``quarantine-<id>.jsonl``, if there were any: images without a prediction, with the reason;
- ``done/<id>.json``, which comes last: the shard's inputs. Without it the shard does not count: the next run deletes
  its files and predicts it again. An input that no such file names is new; a file of requests without a request gets
  none, as whoever writes it may not have begun;
- ``.attempts/<run>/``: inputs of a run, and what attempts at its shards have written, see ``shards``.

Only the process that holds the folder moves files into place, and of each shard those of one attempt. So whatever other
attempts do, and jobs of which nobody knows any more, nothing is lost or there twice.
"""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError, UnavailableError
from imagepipe.base.filesystem import PARTIAL
from imagepipe.base.on_disk import DiskCounter
from imagepipe.base.workers import map_in_order
from imagepipe.capture.batch import move_files

_ATTEMPTS, _DONE = ".attempts", "done"
_RESULT_FILE = re.compile(r"(predictions|quarantine)-([0-9a-f]{32})\.(jsonl|parquet|tfrecord)")
_THREADS = 16  # that wait for a store
_SECONDS = 2.0  # between two looks at what is done

Record = dict[str, Any]


def recover(out: str, renew: Callable[[], bool]) -> DiskCounter:
    """Moves into place what earlier runs have done, and deletes all else that they have left.

    Args:
        out: folder of the results, which the caller holds.
        renew: returns whether it still does, see ``locks.lock_folder``.

    Returns:
        The keys of all inputs that have a result.

    Raises:
        ModelError: if the record of a shard is damaged.
        UnavailableError: if another process has taken over the folder.
    """
    done = DiskCounter()
    finished = {name.removesuffix(".json") for name in filesystem.list_folder(f"{out}/{_DONE}") if _is_record(name)}
    with ThreadPoolExecutor(_THREADS) as pool:
        paths = (f"{out}/{_DONE}/{shard}.json" for shard in finished)
        for record in map_in_order(pool, _read_record, paths, 2 * _THREADS):
            for key in record["items"]:
                done.add(key)
    for run in filesystem.list_folder(f"{out}/{_ATTEMPTS}"):
        _check_held(out, renew)
        attempts = f"{out}/{_ATTEMPTS}/{run}"
        for name in filter(_is_record, filesystem.list_folder(attempts)):
            record = _read_record(f"{attempts}/{name}")
            keys = record["items"]
            # A job that went on after its driver was killed may have done again what a later run has done.
            if not record.get("is_empty") and not any(key in done for key in keys):
                _settle(out, attempts, name)
                finished.add(_find_shard(name))
                for key in keys:
                    done.add(key)
    _check_held(out, renew)
    _remove_leftovers(out, finished)
    return done


def _check_held(out: str, renew: Callable[[], bool]) -> None:
    if not renew():
        raise UnavailableError(f"another run has taken over {out}, as this one could not renew its lock")


def _remove_leftovers(out: str, finished: set[str]) -> None:
    filesystem.delete_folder(f"{out}/{_ATTEMPTS}")
    for name in filesystem.list_folder(out):
        match = _RESULT_FILE.fullmatch(name)
        if name.startswith(PARTIAL) or (match and match[2] not in finished):
            filesystem.delete(f"{out}/{name}")
    for name in filesystem.list_folder(f"{out}/{_DONE}"):
        if name.startswith(PARTIAL):
            filesystem.delete(f"{out}/{_DONE}/{name}")


class Run:
    """The part of the results that a run adds.

    Attributes:
        folder: for its inputs and attempts.
        inputs: number of inputs whose shard is in place.
        predicted: images with a prediction there.
        quarantined: images without one.
        unused: side features that files of requests have, and the model doesn't take.
    """

    def __init__(self, out: str, renew: Callable[[], bool]):
        """Names the folder of a run.

        Args:
            out: folder of the results.
            renew: returns whether this process still holds it, see ``locks.lock_folder``.
        """
        self.folder = f"{out}/{_ATTEMPTS}/{uuid.uuid4().hex}"
        self.inputs = self.predicted = self.quarantined = 0
        self.unused: dict[str, None] = {}
        self._out, self._renew = out, renew
        self._settled: set[str] = set()
        self._lock, self._looked = threading.Lock(), 0.0

    def count(self) -> dict[str, int]:
        """Moves into place what is done by now, if it can be, and returns the progress."""
        if time.monotonic() - self._looked > _SECONDS:
            try:
                self.settle()
            except (OSError, ModelError):  # it is tried again, and the last time it counts
                self._looked = time.monotonic()
        return {"done": self.inputs}

    def count_outcomes(self) -> dict[str, int]:
        """Returns how many images have a prediction, and how many have none; a file of requests has any number."""
        return {"predicted": self.predicted, "quarantined": self.quarantined}

    def settle(self) -> None:
        """Moves into place what is done by now: of each shard one attempt.

        Raises:
            UnavailableError: if another process has taken over the folder.
            OSError: if it can't be read or written.
        """
        with self._lock, ThreadPoolExecutor(_THREADS) as pool:
            names = filter(_is_record, filesystem.list_folder(self.folder))
            first = {_find_shard(name): name for name in sorted(names, reverse=True)}
            new = {shard: name for shard, name in first.items() if shard not in self._settled}
            if new:
                _check_held(self._out, self._renew)
            settle = partial(_try_to_settle, self._out, self.folder)
            errors: list[Exception] = []
            for shard, record in zip(new, map_in_order(pool, settle, new.values(), 2 * _THREADS), strict=True):
                if isinstance(record, Exception):
                    errors.append(record)
                    continue
                self._settled.add(shard)
                self.inputs += len(record["items"])
                self.predicted += record["predicted"]
                self.quarantined += record["quarantined"]
                self.unused |= dict.fromkeys(record.get("unused", ()))
            self._looked = time.monotonic()
        if errors:
            raise errors[0]

    def remove_attempts(self) -> None:
        """Deletes its inputs, and what is left of its attempts; those of others may be of a run that has taken over."""
        filesystem.delete_folder(self.folder)


def _try_to_settle(out: str, attempts: str, name: str) -> Record | Exception:
    """Returns the error if there is one: whatever becomes of one shard, the others count."""
    try:
        return _settle(out, attempts, name)
    except (OSError, ModelError) as error:
        return error


def _settle(out: str, attempts: str, name: str) -> Record:
    """Moves the files of an attempt into place, from wherever that was interrupted, and returns its record."""
    shard, path = _find_shard(name), f"{attempts}/{name.removesuffix('.json')}"
    record = _read_record(f"{path}.json")
    if capture := record.get("capture"):
        move_files(f"{path}.capture", capture)
    _move(f"{path}.predictions", f"{out}/predictions-{shard}.{record['format']}")
    if record["quarantined"]:
        _move(f"{path}.quarantine", f"{out}/quarantine-{shard}.jsonl")
    else:
        filesystem.delete(f"{out}/quarantine-{shard}.jsonl")  # that of another attempt, which got no further
    filesystem.flush_folder(out)
    if record.get("is_empty"):
        filesystem.delete(f"{path}.json")
    else:
        filesystem.rename(f"{path}.json", f"{out}/{_DONE}/{shard}.json")
    return record


def _move(source: str, target: str) -> None:
    if filesystem.size(source) is not None:  # else it was moved already
        filesystem.rename(source, target)


def _is_record(name: str) -> bool:
    return name.endswith(".json") and not name.startswith((PARTIAL, "inputs-"))


def _find_shard(name: str) -> str:
    return name.partition("-")[0]


def _read_record(path: str) -> Record:
    try:
        record = json.loads(filesystem.read_bytes(path))
        if not isinstance(record["items"], list):
            raise TypeError("items are no list")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}): delete it, and its images are asked about again") from error
    return dict(record)
