"""The policy of ingest: which of several copies of an image is written, and into which split.

Copies are files with the same bytes, so the same SHA-256. The first of them, by path, is written; the others are
listed as duplicates. If their labels contradict each other, none is written: all are quarantined, and a record that was
written earlier is removed, until their labels agree. The split follows from the hash alone.
"""

from collections import defaultdict
from collections.abc import Mapping

from imagepipe.base.labels import list_names
from imagepipe.ingest.outcomes import Json, mark_duplicate, quarantine
from imagepipe.ingest.records import HashedRow
from imagepipe.ingest.shards import IndexEntry


def decide(rows: list[HashedRow], entry: IndexEntry | None) -> tuple[HashedRow | None, list[Json]]:
    """Decides what becomes of the copies of one image.

    Args:
        rows: every copy that this ingest has read, one or more.
        entry: what the dataset has of the image, if anything. A path that is read again counts with its present
            labels: a label that was corrected is a change, not a contradiction.

    Returns:
        The copy to write, with the others in its ``copies``, or None; and the outcomes of all rows that are settled by
        this: ``quarantine``, ``duplicate`` or ``already``, and what changes in the dataset: ``removed``, ``refused``,
        ``accepted``.
    """
    rows = sorted(rows, key=lambda row: (row["path"], row["row"] or 0))
    labels = {row["path"]: row["labels"] for row in rows}
    unseen = {path: old for path, old in (entry["copies"] if entry else {}).items() if path not in labels}
    distinct = sorted({tuple(row["labels"]) for row in rows} | {tuple(old) for old in unseen.values()})
    is_in = entry is not None and entry["shard"] is not None
    sha256 = rows[0]["sha256"]

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
        return None, [*outcomes, *([{"kind": "already"}] if written else [])]

    outcomes = []
    if entry and is_in:
        outcomes.append({"kind": "removed", "entry": entry, "reason": None, "unseen": []})
    elif entry:
        outcomes.append({"kind": "accepted", "sha256": sha256})
    return {**rows[0], "copies": [(row["path"], row["row"]) for row in rows[1:]]}, outcomes


def choose_split(sha256: str, splits: Mapping[str, int]) -> str:
    """Returns the split of an image, from its hash alone, so that it never changes as the dataset grows.

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
