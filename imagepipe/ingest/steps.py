"""The Beam pipeline: rows to hashed rows, to decisions, to shards. Pixels and file contents never go through a shuffle.

    row files ─read, hash─▶ (bucket, rows) ─┐
    index files ──────────▶ (bucket, known) ─┴─group─▶ decide ─▶ ((split, shard), rows) ─group─▶ read, decode, write

Rows travel as JSON bytes, some hundred in one element, as Beam spends more on each element than a row is worth. What
the steps find out goes to small files in the staging folder (``outcomes``), one JSON object a line, told apart by
``kind``. A bundle that Beam runs twice writes the same outcome file again.
"""

import dataclasses
import functools
import json
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeVar

from imagepipe.base import filesystem
from imagepipe.base.images import BadImage
from imagepipe.ingest import counts, shards, workers
from imagepipe.ingest.beam import beam
from imagepipe.ingest.dataset import Options
from imagepipe.ingest.reading import Hashed, batches, hash_rows, row_batches, to_examples
from imagepipe.ingest.shards import Known

SHARD_BYTES = 128 * 2**20
"""Aimed-at size of a shard: large enough to stream, small enough to shuffle and to hand out to workers."""

_ELEMENT_ROWS = 500

In = TypeVar("In")
Out = TypeVar("Out")
Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What every worker must know.

    Attributes:
        staging: folder that is written to.
        options: of the dataset.
        features: side features and their types.
        buckets: the number of groups in which rows are compared.
        workers: threads or processes that read and decode, of one worker.
        prove: decode as soon as a file is read, see ``reading.hash_rows``.
    """

    staging: str
    options: Options
    features: dict[str, str]
    buckets: int
    workers: int
    prove: bool


def build(pipeline: Any, plan: Plan, row_files: list[str], index_files: list[str]) -> None:
    """Adds all steps to a Beam pipeline.

    Args:
        pipeline: a beam.Pipeline.
        plan: for the workers.
        row_files: JSON lines of Row.
        index_files: JSON lines of Known.
    """
    rows = pipeline | "Rows" >> beam.Create(row_files) | "Hash" >> beam.ParDo(_Hash(plan))
    if index_files:
        known = pipeline | "Index" >> beam.Create(index_files) | "Known" >> beam.FlatMap(_known, plan.buckets)
        rows = (rows, known) | beam.Flatten()
    kept = rows | "Group copies" >> beam.GroupByKey() | "Decide" >> beam.ParDo(_Decide(plan))
    split_bytes = kept | "Sizes" >> beam.Map(_size) | "Bytes of splits" >> beam.CombinePerKey(sum)
    (
        kept
        | "Assign to shards" >> beam.FlatMap(_assign, beam.pvalue.AsDict(split_bytes))
        | "Group shards" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(plan))
    )


def split_of(sha256: str, splits: Mapping[str, int]) -> str:
    """The split of an image, from its hash alone: it never changes as the set grows.

    Args:
        sha256: hex, of the file.
        splits: name to weight, whose sum is positive; their order matters.
    """
    place = int(sha256[:16], 16) * sum(splits.values()) >> 64
    for name, weight in splits.items():
        place -= weight
        if place < 0:
            return name
    raise AssertionError("the place is below the sum of the weights")


def in_order(pool: Executor, do: Callable[[In], Out], items: Iterable[In], ahead: int) -> Iterator[Out]:
    """Maps in workers and yields in order, with at most ``ahead`` results or calls waiting."""
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(do, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _count(read: int = 0, done: int = 0) -> None:
    """Adds to the progress that this process shows, and to the metrics by which another one can."""
    counts.local.read += read
    counts.local.done += done
    beam.metrics.Metrics.counter("ingest", "read").inc(read)
    beam.metrics.Metrics.counter("ingest", "done").inc(done)


# --- reading and hashing


class _Pooled(beam.DoFn):
    """A DoFn with a pool of workers, taken or made where it runs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def setup(self) -> None:
        self.pool = workers.shared() or ThreadPoolExecutor(self.plan.workers)

    def teardown(self) -> None:
        if self.pool is not workers.shared():
            self.pool.shutdown(cancel_futures=True)


class _Hash(_Pooled):
    """Row file -> (bucket, JSON of a list of Hashed)."""

    def process(self, path: str) -> Iterator[tuple[int, bytes]]:
        buckets: dict[int, list[Hashed]] = defaultdict(list)
        for batch in workers.begun(path) or self._hashed(path):
            _count(read=len(batch))
            for row in batch:
                # Rejected rows are not compared with any, and spread evenly.
                key = row["sha256"] or f"{zlib.crc32(row['path'].encode(errors='replace')):08x}"
                bucket = _bucket(key, self.plan.buckets)
                buckets[bucket].append(row)
                if len(buckets[bucket]) >= _ELEMENT_ROWS:
                    yield bucket, json.dumps(buckets.pop(bucket)).encode()
        for bucket, hashed in buckets.items():
            yield bucket, json.dumps(hashed).encode()

    def _hashed(self, path: str) -> Iterator[list[Hashed]]:
        hashing = functools.partial(hash_rows, self.plan.options, self.plan.prove)
        return in_order(self.pool, hashing, row_batches(path), 2 * self.plan.workers)


def _bucket(sha256: str, buckets: int) -> int:
    # Of the hash's last digits; the first ones choose the split, and those after them the shard.
    return int(sha256[-8:], 16) % buckets


# --- deciding


def _known(path: str, buckets: int) -> Iterator[tuple[int, bytes]]:
    """Index file -> (bucket, JSON of a list of Known)."""
    found: dict[int, list[Json]] = defaultdict(list)
    with filesystem.open_read(path) as file:
        for known in map(json.loads, file):
            found[_bucket(known["sha256"], buckets)].append(known)
    for bucket, entries in found.items():
        yield bucket, json.dumps(entries).encode()


class _Decide(beam.DoFn):
    """(bucket, lists of Hashed and Known) -> (split, (bytes, JSON of a list of Hashed to write))."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[str, tuple[int, bytes]]]:
        bucket, lists = element
        rows: dict[str, list[Hashed]] = defaultdict(list)
        known: dict[str, Known] = {}
        outcomes: list[Json] = []
        for entry in (entry for some in lists for entry in json.loads(some)):
            if "size" not in entry:
                known[entry["sha256"]] = entry
            elif entry["reason"]:
                outcomes.append(_aside(entry["path"], entry["row"], entry["reason"]))
            else:
                rows[entry["sha256"]].append(entry)

        kept: dict[str, list[Hashed]] = defaultdict(list)
        for sha256 in sorted(rows):
            keep, found = decide(rows[sha256], known.get(sha256))
            outcomes += found
            if keep is not None:
                kept[split_of(sha256, self.plan.options.splits)].append(keep)
        _report(self.plan, f"bucket-{bucket}", outcomes)
        _count(done=sum(outcome["kind"] in ("quarantine", "duplicate", "already") for outcome in outcomes))
        for split, some in kept.items():
            yield split, (sum(row["size"] for row in some), json.dumps(some).encode())


def decide(rows: list[Hashed], known: Known | None) -> tuple[Hashed | None, list[Json]]:
    """What becomes of the copies of one image.

    Args:
        rows: every copy that this ingest has seen, one or more, readable.
        known: what the dataset has of the image, if anything. A path that is seen again counts with its labels of now:
            a label that was put right is a change, not a contradiction.

    Returns:
        The copy to write, with the others in its ``copies``, or None; and the outcomes of all rows that are settled by
        this: ``quarantine``, ``duplicate`` or ``already``, and what changes in the dataset: ``removed``, ``refused``,
        ``accepted``.
    """
    rows = sorted(rows, key=lambda row: (row["path"], row["row"] or 0))
    labels = {row["path"]: row["labels"] for row in rows}
    unseen = {path: old for path, old in (known["copies"] if known else {}).items() if path not in labels}
    distinct = sorted({tuple(row["labels"]) for row in rows} | {tuple(old) for old in unseen.values()})
    is_in = known is not None and known["shard"] is not None
    sha256 = rows[0]["sha256"]

    if len(distinct) > 1:
        named = ", ".join("|".join(some) for some in distinct)
        reason = f"copies of one file carry different labels: {named}"
        outcomes = [_aside(row["path"], row["row"], reason) for row in rows]
        if known and is_in:
            outcomes.append({"kind": "removed", "known": known, "reason": reason, "unseen": sorted(unseen)})
        # Of a path that one manifest names twice with two labels, both are kept, as one that agrees with no other.
        copies = {
            path: sorted({label for row in rows if row["path"] == path for label in row["labels"]}) for path in labels
        }
        outcomes.append({"kind": "refused", "sha256": sha256, "copies": {**unseen, **copies}})
        return None, outcomes

    if known and is_in and list(distinct[0]) in known["copies"].values():
        (path,) = known["copies"]
        there = next((row for row in rows if row["path"] == path), None)
        outcomes = [_duplicate(row["path"], row["row"], path) for row in rows if row is not there]
        return None, [*outcomes, *([{"kind": "already"}] if there else [])]

    outcomes = []
    if known and is_in:
        outcomes.append({"kind": "removed", "known": known, "reason": None, "unseen": []})
    elif known:
        outcomes.append({"kind": "accepted", "sha256": sha256})
    return {**rows[0], "copies": [(row["path"], row["row"]) for row in rows[1:]]}, outcomes


def _aside(path: str, row: int | None, reason: str) -> Json:
    return {"kind": "quarantine", "path": path, "row": row, "reason": reason}


def _duplicate(path: str, row: int | None, same_as: str) -> Json:
    return {"kind": "duplicate", "path": path, "row": row, "same_as": same_as}


def _report(plan: Plan, name: str, outcomes: list[Json]) -> None:
    if outcomes:
        lines = "".join(json.dumps(outcome) + "\n" for outcome in outcomes)
        filesystem.write_whole(f"{plan.staging}/outcomes/{name}.jsonl", lines.encode())


# --- shards


def _size(element: tuple[str, tuple[int, bytes]]) -> tuple[str, int]:
    split, (size, _) = element
    return split, size


def _assign(
    element: tuple[str, tuple[int, bytes]], split_bytes: Mapping[str, int]
) -> Iterator[tuple[tuple[str, int], bytes]]:
    """(split, (bytes, rows)) -> ((split, shard), rows)."""
    split, (_, rows) = element
    shards = ceil(split_bytes[split] / SHARD_BYTES)
    assigned: dict[int, list[Hashed]] = defaultdict(list)
    for row in json.loads(rows):
        assigned[int(row["sha256"][16:32], 16) % shards].append(row)
    for shard, some in assigned.items():
        yield (split, shard), json.dumps(some).encode()


class _Write(_Pooled):
    """((split, shard), lists of Hashed) -> a staged shard and its outcomes."""

    def process(self, element: tuple[tuple[str, int], Iterable[bytes]]) -> None:
        (split, number), lists = element
        rows = sorted((row for some in lists for row in json.loads(some)), key=lambda row: row["sha256"])
        outcomes: list[Json] = []
        labels: Counter[str] = Counter()

        def records() -> Iterator[shards.Record]:
            for row, example in self._examples(rows):
                copies = [(row["path"], row["row"]), *row["copies"]]
                if isinstance(example, BadImage):
                    outcomes.extend(_aside(path, line, str(example)) for path, line in copies)
                    continue
                outcomes.extend(_duplicate(path, line, row["path"]) for path, line in row["copies"])
                labels.update(row["labels"])
                yield shards.Record(example, row["sha256"], {row["path"]: row["labels"]})

        shard = shards.write(self.plan.staging, split, self.plan.options.compress, records())
        if shard is not None:
            outcomes.append({"kind": "shard", "shard": dataclasses.asdict(shard), "labels": labels})
        _report(self.plan, f"shard-{split}-{number}", outcomes)

    def _examples(self, rows: list[Hashed]) -> Iterator[tuple[Hashed, bytes | BadImage]]:
        convert = functools.partial(to_examples, self.plan.options, self.plan.features)
        for batch in in_order(self.pool, convert, batches(rows), 2 * self.plan.workers):
            yield from batch
            _count(done=sum(1 + len(row["copies"]) for row, _ in batch))
