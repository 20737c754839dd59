"""The policy of ingest: which of several copies of an image is written, into which split.

Copies are files with the same bytes, so the same SHA-256. The first of them, by path, is written; the others are
listed as duplicates. If the labels or groups of copies that are there now contradict each other, none is written: all
are quarantined, and a record that was written earlier is removed, until they agree. A copy that is gone contradicts
nothing: a file that was moved to another class folder has its label from there.

An image stays in the split in which the dataset has it. A new one goes where its source says, and where that says
nothing, the hash of its unit decides: of its group, or of the image alone. Of copies that are given several splits, the
last split counts: what is held out for testing is no longer trained on. Some units are then moved, so that each class
is in each split.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from typing import NamedTuple, TypedDict, cast

from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.base.splits import Draw
from imagepipe.ingest.holders import Listing, find_giver, list_copies
from imagepipe.ingest.outcomes import Json, mark_duplicate, quarantine
from imagepipe.ingest.overrides import Overrides
from imagepipe.ingest.records import HashedRow
from imagepipe.ingest.rows import digest_side
from imagepipe.ingest.shards import IndexEntry, read_split

_CANDIDATES = 8  # units of a class and split that can be moved; with one label, two fill all splits


def override(rows: dict[str, list[HashedRow]], index: Mapping[str, IndexEntry], overrides: Overrides) -> Iterator[Json]:
    """Gives rows the labels that people decided on, and takes out those of excluded images.

    Args:
        rows: by hash; is changed.
        index: by hash what the dataset has.
        overrides: the decisions.

    Yields:
        The outcomes ``override``, one for each decision about one of these images; ``quarantine`` of the rows that are
        taken out; and ``excluded``, if the dataset has a record of the image.
    """
    for sha256 in sorted(rows.keys() | index.keys()):
        if sha256 not in overrides.labels:
            continue
        labels, copies = overrides.labels[sha256], rows.get(sha256, [])
        others = [row["labels"] for row in copies if not row["path"].startswith(f"{overrides.folder}/")]
        was = sorted(set(map("|".join, others)))
        if labels is None:
            effect = "excluded"
            reason = f"excluded by a person: {overrides.path}"
            for row in rows.pop(sha256, []):
                yield quarantine(row["path"], row["row"], reason, row["group"] is not None)
            if sha256 in index and index[sha256]["shard"]:
                yield {"kind": "excluded", "entry": index[sha256]}
        elif copies:
            rows[sha256] = [cast(HashedRow, {**row, "labels": labels}) for row in copies]
            # Lists are compared, as a label in one of JSON may hold a bar itself.
            effect = "added" if not others else "corrected" if any(other != labels for other in others) else "confirmed"
        else:
            effect = "elsewhere"
        yield {"kind": "override", "sha256": sha256, "effect": effect, "was": was}


def decide(
    rows: list[HashedRow],
    entry: IndexEntry | None,
    draw: Draw,
    listing: Listing,
    types: Mapping[str, str],
    decided: list[str] | None = None,
) -> tuple[HashedRow | None, list[Json]]:
    """Decides what becomes of the copies of one image.

    Args:
        rows: every copy that this ingest has read, one or more.
        entry: what the dataset has of the image, if anything. A path that is read again counts with its present
            label, group and side features: what was corrected is a change, not a contradiction.
        draw: from which splits images are drawn.
        listing: of the source.
        types: of the side features.
        decided: the labels that a person gave the image, and these rows have; they override those of all its copies.

    Returns:
        The copy to write, with the others in its ``copies``, its ``weights`` and its ``change``, or None; and the
        outcomes of all rows that are settled by this: ``quarantine``, ``duplicate`` or ``already``, what changes in
        the dataset: ``removed``, ``refused``, ``accepted``, and ``stays``, if the source gives another split than the
        image has, or ``held_out``, if it gives several.
    """
    rows = sorted(rows, key=lambda row: (row["path"], row["row"] or 0))
    present = sorted({tuple(row["labels"]) for row in rows})
    paths = {row["path"] for row in rows}
    unseen = {
        path: decided or old
        for path, old in (list_copies(entry) if entry else {}).items()
        if entry and path not in paths and (tuple(old) in present or not listing.lacks(entry, path))
    }
    record = entry if entry and entry["shard"] else None

    if reason := _contradict({*present, *map(tuple, unseen.values())}, rows, record if unseen else None):
        outcomes = [quarantine(row["path"], row["row"], reason, row["group"] is not None) for row in rows]
        if record:
            outcomes.append({"kind": "removed", "entry": record, "reason": reason, "unseen": sorted(unseen)})
        # Of a path that one manifest names twice with two labels, both are kept, so that it agrees with no other copy.
        copies: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            copies[row["path"]].update(row["labels"])
        sorted_copies = {path: sorted(some) for path, some in copies.items()}
        givers = {path: find_giver(entry, path) for path in unseen if entry} | dict.fromkeys(copies, listing.number)
        copies_left = {**unseen, **sorted_copies}
        outcomes.append({"kind": "refused", "sha256": rows[0]["sha256"], "copies": copies_left, "givers": givers})
        return None, outcomes

    notes, given = _settle_split(rows, record, draw)
    path, labels = next(iter(list_copies(record).items())) if record else (None, [])
    kept = min(rows, key=lambda row: (row["path"] != path, row["split"] != given))
    group = next((row["group"] for row in rows if row["group"] is not None), None)
    if record:
        is_own, is_written = listing.gave(record), kept["path"] in record["copies"]
        if group is None and not is_own:  # another source gave it
            group = record.get("group")
        side = digest_side(kept["side"], types)
        is_edited = side != record.get("side") and (is_own or (is_written and side is not None))
        if labels != kept["labels"]:
            change = "relabelled"
        elif is_edited or group != record.get("group"):
            change = "edited"
        elif is_written or not is_own:
            duplicates = [row for row in rows if row is not kept or not is_written]
            outcomes = [mark_duplicate(row["path"], row["row"], str(path)) for row in duplicates]
            return None, [*outcomes, *([{"kind": "already"}] if is_written else []), *notes]
        else:
            change = "already"
        notes.append({"kind": "replaced", "entry": record})
        holders = listing.list_others(record)
        if path not in {*paths, *unseen}:
            holders.pop(str(record.get("source")), None)
        weights = {read_split(str(record["shard"])): 1}
    else:
        change, holders = "new", {}
        weights = dict(draw.weigh(given))
        if entry:
            notes.append({"kind": "accepted", "sha256": entry["sha256"]})
    others = [(row["path"], row["row"]) for row in rows if row is not kept]
    further = {"weights": weights, "change": change, "holders": holders}
    grouped = sum(row["group"] is not None for row in rows)
    return cast(HashedRow, {**kept, "group": group, "grouped": grouped, "copies": others, **further}), notes


def compare_copies(rows: list[HashedRow], entry: IndexEntry, listing: Listing) -> list[Json]:
    """Compares the copies of an image with those that its source had when it was last read.

    Args:
        rows: those that this ingest has read.
        entry: of its record, which stays.
        listing: of the source.

    Returns:
        The outcome ``gone`` if there is none any more, ``held`` if another source has the image now, or has it
        elsewhere; or nothing.
    """
    path, paths = listing.find_copy(entry), [row["path"] for row in rows]
    if not paths:
        leaves = listing.sync and not listing.list_others(entry)
        return [] if path is None else [{"kind": "gone", "entry": entry, "leaves": leaves}]
    if path in paths or "source" not in entry:
        return []
    holders = {**listing.list_others(entry), str(listing.number): min(paths)}
    return [{"kind": "held", "entry": {**entry, "holders": holders}}]


def forget_copies(entry: IndexEntry, listing: Listing) -> list[Json]:
    """Returns what becomes of a refused image of which this ingest has read no copy: its source may have lost one."""
    left = {
        path: labels
        for path, labels in entry["copies"].items()
        if not (listing.gave_copy(entry, path) and listing.lacks(entry, path))
    }
    if len(left) == len(entry["copies"]):
        return []
    if not left:
        return [{"kind": "accepted", "sha256": entry["sha256"]}]
    givers = {path: find_giver(entry, path) for path in left}
    return [{"kind": "refused", "sha256": entry["sha256"], "copies": left, "givers": givers}]


def _contradict(labels: set[tuple[str, ...]], rows: list[HashedRow], record: IndexEntry | None) -> str | None:
    """Returns how copies of an image contradict each other, if they do."""
    if len(labels) > 1:
        return f"copies of one file carry different labels: {list_names(['|'.join(some) for some in sorted(labels)])}"
    groups = {row["group"] for row in rows} | {record.get("group") if record else None}
    if len(groups - {None}) > 1:
        return f"copies of one file are in different groups: {list_names(sorted(filter(None, groups)))}"
    return None


def _settle_split(rows: list[HashedRow], record: IndexEntry | None, draw: Draw) -> tuple[list[Json], str | None]:
    """Returns what is to be noted of the splits that an image is given, and the one that counts, if any."""
    given = {row["split"] for row in rows if row["split"] is not None}
    last = max(given, key=draw.splits.index, default=None)
    if record:
        is_elsewhere = last and read_split(str(record["shard"])) not in draw.weigh(last)
        return [{"kind": "stays"}] if is_elsewhere else [], last
    return [{"kind": "held_out"}] if len(given) > 1 else [], last


# --- the draw


class Unit(NamedTuple):
    """Images that are drawn together: of one group, or one alone.

    Attributes:
        key: hex, by which it is drawn.
        labels: number of its images by label; of regression all have the label "".
        splits: those that it can be in.
    """

    key: str
    labels: Mapping[str, int]
    splits: Sequence[str]


class Cell(NamedTuple):
    """The images of one label in one split: their number, and the new units that can be moved to another split."""

    images: int
    movable: Sequence[Unit] = ()


class Fact(TypedDict):
    """A group, and the split of an image that the dataset has of it."""

    group: str
    present: str


def list_classes(labels: list[str], task: TaskName) -> list[str]:
    """Returns what each split is to have images of: labels, or for regression "", which stands for all."""
    return [""] if task == "regression" else labels


def find_unit(sha256: str, group: str | None) -> str:
    """Returns the key of the unit that an image is drawn with, hex."""
    return sha256 if group is None else hashlib.sha256(os.fsencode(group)).hexdigest()


def draw_rows(
    rows: list[HashedRow], facts: list[Fact], task: TaskName
) -> tuple[list[HashedRow], dict[tuple[str, str], Cell], list[Json]]:
    """Draws the splits of units.

    Args:
        rows: all images of some units that are to be written.
        facts: all that the dataset has of their groups.
        task: of the dataset.

    Returns:
        The rows with their splits; what they add to the cells, by label and split; and an outcome ``torn`` for each
        group that would lie in two splits.
    """
    units: dict[str, list[HashedRow]] = defaultdict(list)
    for row in rows:
        units[find_unit(row["sha256"], row["group"])].append(row)
    present: dict[str, set[str]] = defaultdict(set)
    for fact in facts:
        present[find_unit("", fact["group"])].add(fact["present"])
    drawn: list[HashedRow] = []
    cells: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    torn: list[Json] = []
    for key, unit in units.items():
        allowed, wanted = _weigh_unit(unit, present[key])
        if not allowed:
            torn.append({"kind": "torn", "group": unit[0]["group"], "splits": wanted})
            continue
        split = choose_split(key, allowed)
        drawn += [cast(HashedRow, {**row, "split": split}) for row in unit]
        labels = Counter(label for row in unit for label in list_classes(row["labels"], task))
        movable = [Unit(key, dict(labels), list(allowed))] if len(allowed) > 1 else []
        for label, count in labels.items():
            cells[label, split].append(Cell(count, movable))
    return drawn, {key: add_cells(some) for key, some in cells.items()}, torn


def _weigh_unit(unit: list[HashedRow], present: set[str]) -> tuple[dict[str, int], list[str]]:
    """Returns the weights of the splits that a unit can be in, none if its images contradict; and which they name."""
    # What is drawn follows what is given, or is there already.
    weights = [row["weights"] for row in unit if row["split"] or row["change"] != "new"]
    weights += [{name: 1} for name in sorted(present)]
    first, *others = weights or [unit[0]["weights"]]
    allowed = {name: weight for name, weight in first.items() if weight and all(some.get(name) for some in others)}
    return allowed, sorted({next(iter(some)) for some in (first, *others)})


def choose_split(key: str, splits: Mapping[str, int]) -> str:
    """Returns the split of a unit, from its key alone.

    Args:
        key: hex, of a hash.
        splits: name to weight, whose sum is positive; their order matters.
    """
    position = int(key[:16], 16) * sum(splits.values()) >> 64
    for name, weight in splits.items():
        position -= weight
        if position < 0:
            return name
    raise AssertionError("the position is below the sum of the weights")


def add_cells(cells: Iterable[Cell]) -> Cell:
    """Returns the sum of cells, with the smallest of their units that can be moved."""
    cells = list(cells)
    units = (unit for cell in cells for unit in cell.movable)
    smallest = nsmallest(_CANDIDATES, units, key=lambda unit: (sum(unit.labels.values()), unit.key))
    return Cell(sum(cell.images for cell in cells), smallest)


def plan_moves(cells: Mapping[tuple[str, str], Cell], splits: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Plans which units move to which split, so that each label is in as many splits as it can be.

    A label with one image is in the first split, with two in the first two. A move takes no label out of a split,
    unless from a later split into an earlier one that lacks it. Only new units are moved: the others stay, so that a
    dataset that grows keeps its splits, and what it grows by fills what is missing.

    Args:
        cells: by label and split.
        splits: those that are drawn from, in order of their importance.

    Yields:
        The key of a unit, and its split.
    """
    images = Counter({key: cell.images for key, cell in cells.items()})
    totals: Counter[str] = Counter()
    for (label, _), cell in cells.items():
        totals[label] += cell.images
    moved: set[str] = set()
    for label in sorted(totals, key=lambda label: (totals[label], label)):
        for split in splits:
            if images[label, split] <= 0 and (move := _find_move(label, split, splits, cells, images, moved)):
                unit, origin = move
                for name, count in unit.labels.items():
                    images[name, origin] -= count
                    images[name, split] += count
                moved.add(unit.key)
                yield unit.key, split


def _find_move(
    label: str,
    split: str,
    splits: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    images: Counter[tuple[str, str]],
    moved: set[str],
) -> tuple[Unit, str] | None:
    """Returns a unit of a label that can be moved to a split, and where it is: in the fullest, in the last of those."""
    order = splits.index
    for origin in sorted(splits, key=lambda name: (-images[label, name], -order(name))):
        for unit in cells.get((label, origin), Cell(0)).movable:
            if unit.key in moved or split not in unit.splits:
                continue
            if all(
                images[name, origin] > count or (order(origin) > order(split) and images[name, split] <= 0)
                for name, count in unit.labels.items()
            ):
                return unit, origin
    return None


def choose_shard(sha256: str, count: int) -> int:
    """Returns the shard of an image within its split, 0 to ``count - 1``: by other digits of its hash."""
    return int(sha256[16:32], 16) % count
