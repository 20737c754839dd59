"""The policy of ingest: which of several copies of an image is written, and into which split.

Copies are files with the same bytes, so the same SHA-256. The first of them, by path, is written; the others are
listed as duplicates. If their labels contradict each other, none is written: all are quarantined, and a record that was
written earlier is removed, until their labels agree.

An image stays in the split in which the dataset has it. A new one goes where its source says, and where that says
nothing, its hash alone decides. Of copies that are given several splits, the last split counts: what is held out for
testing is no longer trained on.
"""

from collections import defaultdict
from collections.abc import Mapping

from imagepipe.base.labels import list_names
from imagepipe.base.splits import Draw
from imagepipe.ingest.outcomes import Json, mark_duplicate, quarantine
from imagepipe.ingest.records import HashedRow
from imagepipe.ingest.shards import IndexEntry, read_split


def decide(rows: list[HashedRow], entry: IndexEntry | None, draw: Draw) -> tuple[HashedRow | None, list[Json]]:
    """Decides what becomes of the copies of one image.

    Args:
        rows: every copy that this ingest has read, one or more.
        entry: what the dataset has of the image, if anything. A path that is read again counts with its present
            labels: a label that was corrected is a change, not a contradiction.
        draw: from which splits images are drawn.

    Returns:
        The copy to write, with the others in its ``copies`` and its ``weights``, or None; and the outcomes of all rows
        that are settled by this: ``quarantine``, ``duplicate`` or ``already``, what changes in the dataset:
        ``removed``, ``refused``, ``accepted``, and ``stays``, if the source gives another split than the image has, or
        ``held_out``, if it gives several.
    """
    rows = sorted(rows, key=lambda row: (row["path"], row["row"] or 0))
    labels = {row["path"]: row["labels"] for row in rows}
    unseen = {path: old for path, old in (entry["copies"] if entry else {}).items() if path not in labels}
    distinct = sorted({tuple(row["labels"]) for row in rows} | {tuple(old) for old in unseen.values()})
    is_in = entry is not None and entry["shard"] is not None
    sha256 = rows[0]["sha256"]
    notes, given = _settle_split(rows, entry, draw)

    if len(distinct) > 1:
        listed = list_names(["|".join(some) for some in distinct])
        reason = f"copies of one file carry different labels: {listed}"
        outcomes = [quarantine(row["path"], row["row"], reason) for row in rows]
        if entry and is_in:
            outcomes.append({"kind": "removed", "entry": entry, "reason": reason, "unseen": sorted(unseen)})
        # Of a path that one manifest names twice with two labels, both are kept, so that it agrees with no other copy.
        copies: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            copies[row["path"]].update(row["labels"])
        sorted_copies = {path: sorted(some) for path, some in copies.items()}
        outcomes.append({"kind": "refused", "sha256": sha256, "copies": {**unseen, **sorted_copies}})
        return None, outcomes

    if entry and is_in and list(distinct[0]) in entry["copies"].values():
        (path,) = entry["copies"]
        written = next((row for row in rows if row["path"] == path), None)
        outcomes = [mark_duplicate(row["path"], row["row"], path) for row in rows if row is not written]
        return None, [*outcomes, *([{"kind": "already"}] if written else []), *notes]

    outcomes = notes
    if entry and is_in:
        outcomes.append({"kind": "removed", "entry": entry, "reason": None, "unseen": []})
    elif entry:
        outcomes.append({"kind": "accepted", "sha256": sha256})
    kept = next((row for row in rows if row["split"] == given), rows[0])
    others = [(row["path"], row["row"]) for row in rows if row is not kept]
    weights = {read_split(entry["shard"]): 1} if entry and entry["shard"] else dict(draw.weigh(given))
    return {**kept, "copies": others, "weights": weights}, outcomes


def _settle_split(rows: list[HashedRow], entry: IndexEntry | None, draw: Draw) -> tuple[list[Json], str | None]:
    """Returns what is to be noted of the splits that an image is given, and the one that counts, if any."""
    given = {row["split"] for row in rows if row["split"] is not None}
    last = max(given, key=list(draw.splits).index, default=None)
    if entry and entry["shard"]:
        is_elsewhere = last and read_split(entry["shard"]) not in draw.weigh(last)
        return [{"kind": "stays"}] if is_elsewhere else [], last
    return [{"kind": "held_out"}] if len(given) > 1 else [], last


def choose_split(sha256: str, splits: Mapping[str, int]) -> str:
    """Returns the split of an image, from its hash alone.

    Args:
        sha256: hex, of the file.
        splits: name to weight, whose sum is positive; their order matters.
    """
    position = int(sha256[:16], 16) * sum(splits.values()) >> 64
    for name, weight in splits.items():
        position -= weight
        if position < 0:
            return name
    raise AssertionError("the position is below the sum of the weights")


def choose_shard(sha256: str, count: int) -> int:
    """Returns the shard of an image within its split, 0 to ``count - 1``: by other digits of its hash."""
    return int(sha256[16:32], 16) % count
