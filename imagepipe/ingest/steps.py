"""The Beam pipeline: rows to hashed rows, to decisions, to shards. Pixels and file contents never go through a shuffle.

    row files ─read, hash─▶ (bucket, rows) ──┐
    index files ─────────▶ (bucket, entries) ┴─group─▶ decide ─▶ (bucket, rows) ─group, if images have groups─▶ draw,
    move so that each class is in each split ─▶ ((split, shard), rows) ─group─▶ read, encode, write

Rows travel as JSON bytes, some hundred in one element, as Beam spends more on each element than a row is worth. What
becomes of them goes to small files in the staging folder, see ``outcomes``. A bundle that Beam runs twice writes the
same outcome file again.
"""

import contextlib
import dataclasses
import functools
import json
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import Any, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.utils.shared import Shared

from imagepipe.base import progress
from imagepipe.base.beam_options import LOCAL_ARGUMENTS, LOCAL_RUNNER, hide_step_errors, query_metrics
from imagepipe.base.images import BadImage
from imagepipe.base.process import hide_modules
from imagepipe.base.splits import Draw
from imagepipe.base.workers import map_in_order
from imagepipe.ingest import policy, shards
from imagepipe.ingest.dataset import Options
from imagepipe.ingest.holders import Listing
from imagepipe.ingest.outcomes import Json, mark_duplicate, quarantine, write_outcomes
from imagepipe.ingest.policy import Cell
from imagepipe.ingest.records import HashedRow, encode_rows, hash_rows, make_batches, read_batches
from imagepipe.ingest.rows import digest_side
from imagepipe.ingest.shards import IndexEntry

SHARD_BYTES = 128 * 2**20
"""Desired size of a shard: large enough to stream, small enough to shuffle and to hand out to workers."""

_ELEMENT_ROWS = 500


@dataclass(frozen=True)
class Plan:
    """Settings of a run that every worker needs.

    Attributes:
        staging: folder that is written to.
        options: of the dataset.
        features: side features and their types.
        buckets: number of groups in which rows are compared.
        workers: threads or processes that read and decode, of one Beam worker.
        decode: decode while hashing, see ``records.hash_rows``.
        draw: from which splits images are drawn.
        listing: of the source.
        present: number of the dataset's images by label and split.
    """

    staging: str
    options: Options
    features: dict[str, str]
    buckets: int
    workers: int
    decode: bool
    draw: Draw
    listing: Listing
    present: dict[tuple[str, str], int]


class _Local:
    """Processes, work and progress that the steps share with the caller if Beam runs them in this process.

    Attributes:
        processes: to read and decode in, instead of threads.
        hashed: by row file: hashing of its rows that has been started.
        read: number of images read and hashed so far.
        done: number of images decoded and written, or quarantined, so far.
    """

    def __init__(self, processes: Executor | None, hashed: Mapping[str, list[Future[list[HashedRow]]]]) -> None:
        self.processes = processes
        self.hashed = dict(hashed)
        self.read = self.done = 0


def run(
    plan: Plan,
    row_files: list[str],
    rows: int,
    index_files: list[str],
    beam_args: Sequence[str],
    processes: Executor | None,
    hashed: Mapping[str, list[Future[list[HashedRow]]]],
) -> None:
    """Runs all steps, and shows progress on stderr.

    Args:
        plan: for the workers.
        row_files: JSON lines of Row.
        rows: number of rows.
        index_files: JSON lines of IndexEntry.
        beam_args: Beam pipeline options, which override those of a run in this process.
        processes: to read and decode in, if Beam runs in this process.
        hashed: by row file: hashing of its rows that has been started in the processes.
    """
    options = PipelineOptions([*LOCAL_ARGUMENTS, *beam_args])
    # Beam pickles its steps, also for this process. Its handle, once unpickled, leads back to the object, and in
    # other processes to nothing.
    local, handle = _Local(processes, hashed), Shared()
    handle.acquire(lambda: local)
    job: list[Any] = []  # once a remote runner has accepted it

    is_local = options.view_as(StandardOptions).runner == LOCAL_RUNNER

    def count() -> dict[str, int]:
        if is_local:
            read, done = local.read, local.done
        else:
            read, done = query_metrics(job[0]) if job else (0, 0)
        return {"read": read, "checked and written": done}

    hide_log = hide_step_errors() if is_local else contextlib.nullcontext()
    with warnings.catch_warnings(), hide_modules("IPython"), hide_log:
        # Pillow warns of broken metadata in good images, one line per image.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        pipeline = beam.Pipeline(options=options)
        build(pipeline, plan, handle, row_files, index_files)
        with progress.show_progress(rows, "images", count):
            job.append(pipeline.run())
            job[0].wait_until_finish()


def build(pipeline: Any, plan: Plan, handle: Shared, row_files: list[str], index_files: list[str]) -> None:
    """Adds all steps to a beam.Pipeline; the arguments are those of ``run``."""
    rows = pipeline | "Rows" >> beam.Create(row_files) | "Hash" >> beam.ParDo(_Hash(plan, handle))
    if index_files:
        index = pipeline | "Index" >> beam.Create(index_files) | "Entries" >> beam.FlatMap(_read_index, plan.buckets)
        rows = (rows, index) | beam.Flatten()
    decide = beam.ParDo(_Decide(plan, handle)).with_outputs("cells", main="rows")
    decided = rows | "Group copies" >> beam.GroupByKey() | "Decide" >> decide
    if plan.options.group is None:
        units = decided.rows | "Units" >> beam.Map(lambda element: (element[0], [element[1]]))
    else:
        units = decided.rows | "Group units" >> beam.GroupByKey()
    drawn = units | "Draw" >> beam.ParDo(_Draw(plan)).with_outputs("cells", "sizes", main="rows")
    present = pipeline | "Present" >> beam.Create([(key, Cell(count)) for key, count in plan.present.items()])
    cells = (present, decided.cells, drawn.cells) | "All cells" >> beam.Flatten()
    cells |= "Cells" >> beam.CombinePerKey(policy.add_cells)
    splits = [name for name, weight in plan.options.splits.items() if weight]
    moves = (
        pipeline
        | "Once" >> beam.Create([splits])
        | "Moves" >> beam.FlatMap(lambda splits, cells: policy.plan_moves(cells, splits), beam.pvalue.AsDict(cells))
    )
    split_bytes = drawn.sizes | "Bytes of splits" >> beam.CombinePerKey(sum)
    (
        drawn.rows
        | "Assign to shards" >> beam.FlatMap(_assign, beam.pvalue.AsDict(moves), beam.pvalue.AsDict(split_bytes))
        | "Group shards" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_Write(plan, handle))
    )


class _Step(beam.DoFn):
    """A step with workers and a count of its progress."""

    def __init__(self, plan: Plan, handle: Shared) -> None:
        self.plan, self.handle = plan, handle

    def setup(self) -> None:
        self.local: _Local | None = self.handle.acquire(lambda: None)
        processes = self.local.processes if self.local else None
        self.pool: Executor = processes or ThreadPoolExecutor(self.plan.workers)
        self.owns_pool = processes is None

    def teardown(self) -> None:
        if self.owns_pool:
            self.pool.shutdown(cancel_futures=True)

    def count(self, read: int = 0, done: int = 0) -> None:
        """Adds to the progress that this process shows, and to the metrics by which another one can."""
        if self.local:
            self.local.read += read
            self.local.done += done
        beam.metrics.Metrics.counter("ingest", "read").inc(read)
        beam.metrics.Metrics.counter("ingest", "done").inc(done)


# --- hashing


class _Hash(_Step):
    """Row file -> (bucket, JSON of a list of HashedRow)."""

    def process(self, path: str) -> Iterator[tuple[int, bytes]]:
        buckets: dict[int, list[HashedRow]] = defaultdict(list)
        for batch in self._hash(path):
            self.count(read=len(batch))
            for row in batch:
                # Rejected rows are not compared with any, and spread evenly.
                key = row["sha256"] or f"{zlib.crc32(row['path'].encode(errors='replace')):08x}"
                bucket = _choose_bucket(key, self.plan.buckets)
                buckets[bucket].append(row)
                if len(buckets[bucket]) >= _ELEMENT_ROWS:
                    yield bucket, json.dumps(buckets.pop(bucket)).encode()
        for bucket, hashed in buckets.items():
            yield bucket, json.dumps(hashed).encode()

    def _hash(self, path: str) -> Iterator[list[HashedRow]]:
        started = self.local.hashed.pop(path, None) if self.local else None
        if started is not None:
            return (future.result() for future in started)
        hashing = functools.partial(hash_rows, self.plan.options, self.plan.decode)
        return map_in_order(self.pool, hashing, read_batches(path), 2 * self.plan.workers)


def _choose_bucket(sha256: str, buckets: int) -> int:
    # By the hash's last digits; the first ones choose the split, and those after them the shard.
    return int(sha256[-8:], 16) % buckets


# --- deciding


def _read_index(path: str, buckets: int) -> Iterator[tuple[int, bytes]]:
    """Index file -> (bucket, JSON of a list of IndexEntry)."""
    by_bucket: dict[int, list[IndexEntry]] = defaultdict(list)
    for entry in shards.read_index(path):
        by_bucket[_choose_bucket(entry["sha256"], buckets)].append(entry)
    for bucket, entries in by_bucket.items():
        yield bucket, json.dumps(entries).encode()


class _Decide(_Step):
    """(bucket, lists of HashedRow and IndexEntry) -> (bucket, JSON of a list of HashedRow to write, or of Fact).

    The buckets are those of units. A further output has a Cell for each label that loses an image.
    """

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        bucket, lists = element
        rows: dict[str, list[HashedRow]] = defaultdict(list)
        index: dict[str, IndexEntry] = {}
        outcomes: list[Json] = []
        for entry in (entry for some in lists for entry in json.loads(some)):
            if "size" not in entry:
                index[entry["sha256"]] = entry
            elif entry["reason"]:
                outcomes.append(quarantine(entry["path"], entry["row"], entry["reason"], entry["group"] is not None))
            else:
                rows[entry["sha256"]].append(entry)

        units: dict[int, list[HashedRow | policy.Fact]] = defaultdict(list)
        for sha256 in sorted(rows):
            row, decided = policy.decide(
                rows[sha256], index.get(sha256), self.plan.draw, self.plan.listing, self.plan.features
            )
            outcomes += decided
            if row is not None:
                units[self._find_bucket(row["sha256"], row["group"])].append(row)
        leaving = [outcome["entry"] for outcome in outcomes if outcome["kind"] in ("removed", "replaced")]
        left = {entry["sha256"] for entry in leaving}
        for entry in index.values():
            if entry["shard"] is None and entry["sha256"] not in rows:
                outcomes += policy.forget_copies(entry, self.plan.listing)
            if entry["shard"] is None or entry["sha256"] in left:
                continue
            compared = policy.compare_copies(rows.get(entry["sha256"], []), entry, self.plan.listing)
            outcomes += compared
            if any(outcome.get("leaves") for outcome in compared):
                leaving.append(entry)
                continue
            if group := entry.get("group"):
                fact = policy.Fact(group=group, present=shards.read_split(entry["shard"]))
                units[self._find_bucket(entry["sha256"], group)].append(fact)
        write_outcomes(self.plan.staging, f"bucket-{bucket}", outcomes)
        self.count(done=sum(outcome["kind"] in ("quarantine", "duplicate", "already") for outcome in outcomes))
        for entry in leaving:
            for label in policy.list_classes(next(iter(entry["copies"].values())), self.plan.options.task):
                yield beam.pvalue.TaggedOutput("cells", ((label, shards.read_split(entry["shard"])), Cell(-1)))
        for key, some in units.items():
            yield key, json.dumps(some).encode()

    def _find_bucket(self, sha256: str, group: str | None) -> int:
        return _choose_bucket(policy.find_unit(sha256, group), self.plan.buckets)


# --- drawing


class _Draw(beam.DoFn):
    """(bucket, lists of HashedRow and Fact) -> JSON of a list of HashedRow with their splits.

    Further outputs have Cells by label, and the bytes of files by split.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        bucket, lists = element
        rows: list[HashedRow] = []
        facts: list[policy.Fact] = []
        for entry in (entry for some in lists for entry in json.loads(some)):
            (facts if "present" in entry else rows).append(entry)
        drawn, cells, torn = policy.draw_rows(rows, facts, self.plan.options.task)
        write_outcomes(self.plan.staging, f"draw-{bucket}", torn)
        for cell in cells.items():
            yield beam.pvalue.TaggedOutput("cells", cell)
        sizes: Counter[str] = Counter()
        for row in drawn:
            sizes[str(row["split"])] += row["size"]
        for size in sizes.items():
            yield beam.pvalue.TaggedOutput("sizes", size)
        yield json.dumps(drawn).encode()


# --- shards


def _assign(
    rows: bytes, moves: Mapping[str, str], split_bytes: Mapping[str, int]
) -> Iterator[tuple[tuple[str, int], bytes]]:
    """JSON of a list of HashedRow -> ((split, shard), JSON of those in it), where units that are to be moved are.

    The number of shards is by the size of a split before that: few units are moved, and to some a split owes its all.
    """
    assigned: dict[tuple[str, int], list[HashedRow]] = defaultdict(list)
    for row in json.loads(rows):
        split = moves.get(policy.find_unit(row["sha256"], row["group"]), row["split"])
        count = max(1, ceil(split_bytes.get(split, 0) / SHARD_BYTES))
        assigned[split, policy.choose_shard(row["sha256"], count)].append(row)
    for shard, some in assigned.items():
        yield shard, json.dumps(some).encode()


class _Write(_Step):
    """((split, shard), lists of HashedRow) -> a staged shard and its outcomes."""

    def process(self, element: tuple[tuple[str, int], Iterable[bytes]]) -> None:
        (split, number), lists = element
        rows = sorted((row for some in lists for row in json.loads(some)), key=lambda row: row["sha256"])
        outcomes: list[Json] = []
        labels: Counter[str] = Counter()
        changes: Counter[str] = Counter()

        def records() -> Iterator[shards.Record]:
            for row, example in self._encode(rows):
                copies = [(row["path"], row["row"]), *row["copies"]]
                if isinstance(example, BadImage):
                    outcomes.extend(
                        quarantine(path, line, str(example), number < row["grouped"])
                        for number, (path, line) in enumerate(copies)
                    )
                    continue
                outcomes.extend(mark_duplicate(path, line, row["path"]) for path, line in row["copies"])
                labels.update(row["labels"])
                changes[row["change"]] += 1
                yield shards.Record(example, self._make_entry(row))

        shard = shards.write(self.plan.staging, split, self.plan.options.compress, records())
        if shard is not None:
            outcomes.append({"kind": "shard", "shard": dataclasses.asdict(shard), "labels": labels, "changes": changes})
        write_outcomes(self.plan.staging, f"shard-{split}-{number}", outcomes)

    def _make_entry(self, row: HashedRow) -> IndexEntry:
        entry = IndexEntry(sha256=row["sha256"], copies={row["path"]: row["labels"]}, shard=None)
        number = self.plan.listing.number
        further = {
            "group": row["group"],
            "side": digest_side(row["side"], self.plan.features),
            "holders": {**row["holders"], str(number): row["path"]} if row["holders"] else None,
        }
        given = {name: value for name, value in further.items() if value is not None}
        return cast(IndexEntry, {**entry, **given, "source": number})

    def _encode(self, rows: list[HashedRow]) -> Iterator[tuple[HashedRow, bytes | BadImage]]:
        encoding = functools.partial(encode_rows, self.plan.options, self.plan.features)
        for batch in map_in_order(self.pool, encoding, make_batches(rows), 2 * self.plan.workers):
            yield from batch
            self.count(done=sum(1 + len(row["copies"]) for row, _ in batch))
