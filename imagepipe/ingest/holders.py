"""Which sources have an image, as of when each was last read: so one that is gone from all of them can be removed."""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.base.images import MAX_BYTES
from imagepipe.base.labels import list_names
from imagepipe.ingest.rows import MISSING_FILE
from imagepipe.ingest.shards import IndexEntry, StagedShard, read_index, read_split


def list_holders(entry: IndexEntry) -> dict[str, str]:
    """Returns the sources that have an image, by their places, and the paths of their copies."""
    giver = {str(entry["source"]): next(iter(entry["copies"]))} if "source" in entry else {}
    return entry.get("holders", giver)


def list_copies(entry: IndexEntry) -> dict[str, list[str]]:
    """Returns the copies of an image that count, by path their labels.

    Those of its entry, unless its source has lost the one that was written: then another source gives the image.
    """
    copies, holders = entry["copies"], entry.get("holders")
    if not holders or not copies.keys().isdisjoint(holders.values()):
        return copies
    return {holders[str(entry["source"])]: next(iter(copies.values()))}


def find_giver(entry: IndexEntry, path: str) -> int | None:
    """Returns the place of the source that gave a copy of ``list_copies``; None of an entry of earlier versions."""
    return entry["givers"].get(path) if "givers" in entry else entry.get("source")


@dataclass(frozen=True)
class Listing:
    """A source whose images have all been listed by this ingest.

    Attributes:
        source: its absolute path or URI.
        number: its place in the dataset's list of sources.
        is_folder: whether it is a folder, whose images lie below it.
        sync: whether images that are gone from it, and that no other source has, are removed.
    """

    source: str
    number: int
    is_folder: bool
    sync: bool

    def gave(self, entry: IndexEntry) -> bool:
        """Returns whether an image of the dataset came from this source."""
        return all(self.gave_copy(entry, path) for path in entry["copies"])

    def gave_copy(self, entry: IndexEntry, path: str) -> bool:
        """Returns whether a copy of an image came from this source."""
        giver = find_giver(entry, path)
        return self.is_folder and path.startswith(f"{self.source}/") if giver is None else giver == self.number

    def find_copy(self, entry: IndexEntry) -> str | None:
        """Returns the path of an image's copy when this source was last read; None if it had none."""
        if self.gave(entry) and "holders" not in entry:
            return next(iter(entry["copies"]))
        return list_holders(entry).get(str(self.number))

    def list_others(self, entry: IndexEntry) -> dict[str, str]:
        """Returns the other sources that have an image, see ``list_holders``."""
        return {place: path for place, path in list_holders(entry).items() if place != str(self.number)}

    def lacks(self, entry: IndexEntry, path: str) -> bool:
        """Returns whether a copy that this ingest has not read is gone, or has become another image.

        A folder may not have been listed, so its file is looked at; and so is a file of another source.
        """
        is_own = self.gave_copy(entry, path)
        if not self.is_folder and is_own:
            return True
        try:
            return hashlib.sha256(filesystem.read(path, MAX_BYTES)).hexdigest() != entry["sha256"]
        except FileNotFoundError:
            return True
        except NotADirectoryError:  # a member of an archive, all of whose members this ingest has listed
            return is_own
        except (OSError, ValueError):
            return False


def list_unseen(disputed: Iterable[Mapping[str, Any]], sources: Sequence[str]) -> list[dict[str, Any]]:
    """Returns an entry for the list of what is quarantined, of each file that this ingest has not read.

    Args:
        disputed: outcomes of records that leave the dataset, each with ``entry``, ``reason`` and ``unseen``.
        sources: those of the dataset.
    """
    return [
        {"path": path, "row": None, "reason": outcome["reason"], "source": None if giver is None else sources[giver]}
        for outcome in disputed
        for path in outcome["unseen"]
        for giver in [find_giver(outcome["entry"], path)]
    ]


def list_above(path: str) -> Iterator[str]:
    """Yields the folders above a file."""
    while path := path.rpartition("/")[0]:
        yield path


def select_gone(
    entries: Sequence[IndexEntry], reasons: dict[str, str], listing: Listing
) -> tuple[list[IndexEntry], list[IndexEntry]]:
    """Selects the records whose images are gone from a source, but for those that could not be looked for.

    What a row names is gone if its file is, unless its folder is gone or empty, as where a disk is not mounted.

    Args:
        entries: of the records of which this ingest has read no copy, and the last one of this source had.
        reasons: why paths were quarantined by this ingest.
        listing: of the source.

    Returns:
        The entries of the images that no other source has either, as of when those were last read; and those of the
        others, without this source.

    Raises:
        IngestError: the former are to be removed, and there are some that could not be looked for.
    """
    gone: list[IndexEntry] = []
    kept: list[IndexEntry] = []
    hidden: Counter[str] = Counter()
    is_readable = functools.cache(lambda folder: filesystem.is_uri(folder) or bool(filesystem.list_folder(folder)))
    for entry in entries:
        path, others = str(listing.find_copy(entry)), listing.list_others(entry)
        place = listing.source if listing.source in reasons else next((p for p in list_above(path) if p in reasons), "")
        if place:
            hidden[place] += not others
        elif path in reasons and not (reasons[path] == MISSING_FILE and is_readable(path.rpartition("/")[0])):
            continue
        elif others:
            giver = int(min(others, key=int)) if listing.gave(entry) else entry["source"]
            kept.append(cast(IndexEntry, {**entry, "source": giver, "holders": others}))
        else:
            gone.append(entry)
    if listing.sync and hidden.total():
        place = min(+hidden)
        raise IngestError(
            f"{place}: {reasons[place]}. So it is unknown whether {hidden.total():,} images of the dataset are gone, "
            "and nothing was written: correct that, or ingest without --sync."
        )
    return gone, kept


def find_torn(
    entries: Sequence[IndexEntry], gone: Sequence[IndexEntry], staged: Iterable[StagedShard]
) -> dict[str, list[str]]:
    """Finds groups that would lie in two splits, as an image of theirs stays though the draw took it for removed.

    Args:
        entries: as for ``select_gone``; the draw takes all of them for removed that no other source has.
        gone: of these, the ones that are.
        staged: the shards of what was drawn.

    Returns:
        By group, its splits.
    """
    left = {entry["sha256"] for entry in gone}
    staying = [entry for entry in entries if entry["sha256"] not in left and entry.get("group")]
    splits = {entry.get("group"): read_split(str(entry["shard"])) for entry in staying}
    torn: dict[str, list[str]] = {}
    for shard in staged if splits else ():
        drawn = read_split(shard.file)
        for group in (entry.get("group") for entry in read_index(f"{shard.staged}.jsonl")):
            if splits.get(group, drawn) != drawn:
                torn[str(group)] = sorted((splits[group], drawn))
    return torn


def describe_kept(entries: Sequence[IndexEntry], source: str, sources: Sequence[str]) -> str:
    """Returns a sentence about images that are gone from a source, and stay.

    Args:
        entries: the second list of ``select_gone``, one or more.
        source: the path of the source.
        sources: those of the dataset.
    """
    names = sorted({sources[int(place)] for entry in entries for place in list_holders(entry)})
    return (
        f"{len(entries):,} images are gone from {source}, and stay, as other sources had them at their last ingest: "
        f"{list_names(names)}."
    )
