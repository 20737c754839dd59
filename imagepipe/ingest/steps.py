"""The steps from rows to shards. Pixels and file contents never go from one step to the next.

    row files ─hash_file─▶ (bucket, rows) ──────┐
    index files ─read_index─▶ (bucket, entries) ┴─by bucket─▶ decide ─▶ (bucket, rows) ─by bucket─▶ draw, move so that
    each class is in each split ─▶ assign ─▶ ((split, shard), rows) ─by shard─▶ write

``run`` takes them here, with worker processes: Beam's import and its local runner would take a quarter of the CPU time
of 3,000 images. ``beam_pipeline`` has a runner of Beam's take the same ones. Rows travel as JSON bytes, some hundred in
one element: they take less memory than objects, and Beam spends more on each element than a row is worth. What becomes
of them goes to small files in the staging folder, see ``outcomes``. A bundle that Beam runs twice writes the same
outcome file again.
"""

import dataclasses
import functools
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import NamedTuple, Protocol, TypeVar, cast

from imagepipe.base import progress
from imagepipe.base.images import BadImage
from imagepipe.base.splits import Draw
from imagepipe.base.workers import map_in_order
from imagepipe.ingest import policy, shards
from imagepipe.ingest.dataset import Options
from imagepipe.ingest.holders import Listing
from imagepipe.ingest.outcomes import Json, mark_duplicate, quarantine, write_outcomes
from imagepipe.ingest.overrides import Overrides
from imagepipe.ingest.policy import Cell
from imagepipe.ingest.records import HashedRow, encode_rows, hash_rows, make_batches, read_batches
from imagepipe.ingest.rows import digest_side
from imagepipe.ingest.shards import IndexEntry

SHARD_BYTES = 128 * 2**20
"""Desired size of a shard: large enough to stream, small enough to shuffle and to hand out to workers."""

_ELEMENT_ROWS = 500
_BATCHES_AHEAD = 2  # of each worker

Key = TypeVar("Key")


class Count(Protocol):
    """Adds to the progress: images that are read and hashed, and images that are written, or settled without that."""

    def __call__(self, read: int = 0, done: int = 0) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Plan:
    """Settings of a run that every worker needs.

    Attributes:
        staging: folder that is written to.
        options: of the dataset.
        features: side features and their types.
        buckets: number of groups in which rows are compared.
        workers: threads or processes that read and decode, of one machine.
        batch: number of rows that one of them is given at a time, or fewer.
        decode: decode while hashing, see ``records.hash_rows``.
        draw: from which splits images are drawn.
        listing: of the source.
        present: the dataset's images by label and split.
        overrides: decisions of people; None if there are none.
    """

    staging: str
    options: Options
    features: dict[str, str]
    buckets: int
    workers: int
    batch: int
    decode: bool
    draw: Draw
    listing: Listing
    present: dict[tuple[str, str], Cell]
    overrides: Overrides | None = None

    @property
    def splits(self) -> list[str]:
        """The splits with a weight, in order."""
        return [name for name, weight in self.options.splits.items() if weight]


def run(plan: Plan, row_files: list[str], rows: int, index_files: list[str], pool: Executor) -> None:
    """Takes all steps here, and shows progress on stderr.

    Args:
        plan: for the steps.
        row_files: JSON lines of Row.
        rows: number of rows.
        index_files: JSON lines of IndexEntry.
        pool: to read and decode in.
    """
    counts = {"read": 0, "checked and written": 0}
    cells = dict(plan.present)
    sizes: Counter[str] = Counter()
    drawn: list[bytes] = []

    def count(read: int = 0, done: int = 0) -> None:
        counts["read"] += read
        counts["checked and written"] += done

    def add(more: Iterable[tuple[tuple[str, str], Cell]]) -> None:
        for key, cell in more:
            cells[key] = policy.add_cells([cells[key], cell]) if key in cells else cell

    def decide_all() -> Iterator[tuple[int, bytes]]:
        hashed = (hash_file(plan, pool, count, path) for path in row_files)
        entries = (read_index(path, plan.buckets) for path in index_files)
        for bucket, lists in _group(chain.from_iterable(chain(hashed, entries))):
            decision = decide(plan, count, bucket, lists)
            add(decision.cells)
            yield from decision.rows

    with progress.show_progress(rows, "images", lambda: counts):
        for bucket, lists in _group(decide_all()):
            lot = draw(plan, bucket, lists)
            add(lot.cells.items())
            sizes.update(lot.sizes)
            drawn.append(lot.rows)
        moves = dict(policy.plan_moves(cells, plan.splits))
        for shard, lists in _group(chain.from_iterable(assign(some, moves, sizes) for some in drawn)):
            write(plan, pool, count, shard, lists)


def _group(elements: Iterable[tuple[Key, bytes]]) -> Iterator[tuple[Key, list[bytes]]]:
    """Yields each key with all of its elements, which are let go as they are taken."""
    groups: dict[Key, list[bytes]] = defaultdict(list)
    for key, element in elements:
        groups[key].append(element)
    while groups:
        yield groups.popitem()


# --- hashing


def hash_file(plan: Plan, pool: Executor, count: Count, path: str) -> Iterator[tuple[int, bytes]]:
    """Row file -> (bucket, JSON of a list of HashedRow)."""
    buckets: dict[int, list[HashedRow]] = defaultdict(list)
    hashing = functools.partial(hash_rows, plan.options, plan.decode)
    for batch in map_in_order(pool, hashing, read_batches(path, plan.batch), _BATCHES_AHEAD * plan.workers):
        count(read=len(batch))
        for row in batch:
            # Rejected rows are not compared with any, and spread evenly.
            key = row["sha256"] or f"{zlib.crc32(row['path'].encode(errors='replace')):08x}"
            bucket = _choose_bucket(key, plan.buckets)
            buckets[bucket].append(row)
            if len(buckets[bucket]) >= _ELEMENT_ROWS:
                yield bucket, json.dumps(buckets.pop(bucket)).encode()
    for bucket, hashed in buckets.items():
        yield bucket, json.dumps(hashed).encode()


def _choose_bucket(sha256: str, buckets: int) -> int:
    # By the hash's last digits; the first ones choose the split, and those after them the shard.
    return int(sha256[-8:], 16) % buckets


# --- deciding


def read_index(path: str, buckets: int) -> Iterator[tuple[int, bytes]]:
    """Index file -> (bucket, JSON of a list of IndexEntry)."""
    by_bucket: dict[int, list[IndexEntry]] = defaultdict(list)
    for entry in shards.read_index(path):
        by_bucket[_choose_bucket(entry["sha256"], buckets)].append(entry)
    for bucket, entries in by_bucket.items():
        yield bucket, json.dumps(entries).encode()


class Decision(NamedTuple):
    """The rows of a bucket that go on, and what they change.

    Attributes:
        rows: (bucket, JSON of a list of HashedRow to write, or of Fact); the buckets are those of units.
        cells: a Cell for each label that loses an image.
    """

    rows: list[tuple[int, bytes]]
    cells: list[tuple[tuple[str, str], Cell]]


def decide(plan: Plan, count: Count, bucket: int, lists: Iterable[bytes]) -> Decision:
    """Decides on all rows of a bucket; ``lists`` are JSON of lists of HashedRow and IndexEntry."""
    rows: dict[str, list[HashedRow]] = defaultdict(list)
    index: dict[str, IndexEntry] = {}
    outcomes: list[Json] = []
    for entry in (entry for some in lists for entry in json.loads(some)):
        if "size" not in entry:
            index[entry["sha256"]] = entry
        elif reason := entry["reason"] or (
            plan.overrides and plan.overrides.explain_misnaming(entry["path"], entry["sha256"])
        ):
            outcomes.append(quarantine(entry["path"], entry["row"], reason, entry["group"] is not None))
        else:
            rows[entry["sha256"]].append(entry)

    if plan.overrides:
        outcomes += policy.override(rows, index, plan.overrides)
    labels = plan.overrides.labels if plan.overrides else {}
    units: dict[int, list[HashedRow | policy.Fact]] = defaultdict(list)
    for sha256 in sorted(rows):
        copies, entry = rows[sha256], index.get(sha256)
        row, decided = policy.decide(copies, entry, plan.draw, plan.listing, plan.features, labels.get(sha256))
        outcomes += decided
        if row is not None:
            units[_choose_bucket(policy.find_unit(sha256, row["group"]), plan.buckets)].append(row)
    leaving = [outcome["entry"] for outcome in outcomes if outcome["kind"] in ("removed", "replaced", "excluded")]
    left = {entry["sha256"] for entry in leaving}
    for entry in index.values():
        if entry["shard"] is None and entry["sha256"] not in rows:
            outcomes += policy.forget_copies(entry, plan.listing)
        if entry["shard"] is None or entry["sha256"] in left:
            continue
        compared = policy.compare_copies(rows.get(entry["sha256"], []), entry, plan.listing)
        outcomes += compared
        if any(outcome.get("leaves") for outcome in compared):
            leaving.append(entry)
            continue
        if group := entry.get("group"):
            fact = policy.Fact(group=group, present=shards.read_split(entry["shard"]))
            units[_choose_bucket(policy.find_unit(entry["sha256"], group), plan.buckets)].append(fact)
    write_outcomes(plan.staging, f"bucket-{bucket}", outcomes)
    count(done=sum(outcome["kind"] in ("quarantine", "duplicate", "already") for outcome in outcomes))
    cells = [
        ((label, shards.read_split(entry["shard"])), Cell(-1))
        for entry in leaving
        for label in policy.list_classes(next(iter(entry["copies"].values())), plan.options.task)
    ]
    return Decision([(key, json.dumps(some).encode()) for key, some in units.items()], cells)


# --- drawing


class Lot(NamedTuple):
    """Rows with their splits, as JSON of a list of HashedRow; Cells by label and split; bytes of files by split."""

    rows: bytes
    cells: dict[tuple[str, str], Cell]
    sizes: Counter[str]


def draw(plan: Plan, bucket: int, lists: Iterable[bytes]) -> Lot:
    """Draws the splits of all units of a bucket; ``lists`` are JSON of lists of HashedRow and Fact."""
    rows: list[HashedRow] = []
    facts: list[policy.Fact] = []
    for entry in (entry for some in lists for entry in json.loads(some)):
        (facts if "present" in entry else rows).append(entry)
    drawn, cells, torn = policy.draw_rows(rows, facts, plan.options.task)
    write_outcomes(plan.staging, f"draw-{bucket}", torn)
    sizes: Counter[str] = Counter()
    for row in drawn:
        sizes[str(row["split"])] += row["size"]
    return Lot(json.dumps(drawn).encode(), cells, sizes)


# --- shards


def assign(
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


def write(plan: Plan, pool: Executor, count: Count, shard: tuple[str, int], lists: Iterable[bytes]) -> None:
    """((split, shard), JSON of lists of HashedRow) -> a staged shard and its outcomes."""
    split, number = shard
    rows = sorted((row for some in lists for row in json.loads(some)), key=lambda row: row["sha256"])
    outcomes: list[Json] = []
    labels: Counter[str] = Counter()
    changes: Counter[str] = Counter()

    def records() -> Iterator[shards.Record]:
        for row, example in _encode(plan, pool, count, rows):
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
            yield shards.Record(example, _make_entry(plan, row))

    staged = shards.write(plan.staging, split, plan.options.compress, records())
    if staged is not None:
        outcomes.append({"kind": "shard", "shard": dataclasses.asdict(staged), "labels": labels, "changes": changes})
    write_outcomes(plan.staging, f"shard-{split}-{number}", outcomes)


def _make_entry(plan: Plan, row: HashedRow) -> IndexEntry:
    entry = IndexEntry(sha256=row["sha256"], copies={row["path"]: row["labels"]}, shard=None)
    number = plan.listing.number
    further = {
        "group": row["group"],
        "side": digest_side(row["side"], plan.features),
        "holders": {**row["holders"], str(number): row["path"]} if row["holders"] else None,
    }
    given = {name: value for name, value in further.items() if value is not None}
    return cast(IndexEntry, {**entry, **given, "source": number})


def _encode(
    plan: Plan, pool: Executor, count: Count, rows: list[HashedRow]
) -> Iterator[tuple[HashedRow, bytes | BadImage]]:
    encoding = functools.partial(encode_rows, plan.options, plan.features)
    for batch in map_in_order(pool, encoding, make_batches(rows, plan.batch), _BATCHES_AHEAD * plan.workers):
        yield from batch
        count(done=sum(1 + len(row["copies"]) for row, _ in batch))
