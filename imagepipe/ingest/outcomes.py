"""Outcomes: how the steps report what they did, and how that becomes the next state of the dataset.

An outcome is a JSON object, told from others by its ``kind``:

    quarantine  path, row, ...       a row that can't be used: its reason, and whether it has a group
    duplicate   path, row, same_as   a row whose file has a copy in the dataset
    already                          a row whose file is in the dataset
    shard       shard, labels, ...   a StagedShard, and its number of records by label, and by what is new of them
    removed     entry, reason, ...   a record that leaves the dataset, as its label is disputed
    excluded    entry                a record that leaves the dataset, as a person excluded its image
    override    sha256, effect, was  what a person's decision did about an image, see ``overrides``
    replaced    entry                a record whose image is written again, as something of it but its bytes has changed
    gone        entry, leaves        a record whose image this source had, and has no longer; whether that removes it
    held        entry                a record whose image this source has too, by its present entry in the index
    torn        group, splits        a group whose images would lie in several splits
    refused     sha256, copies, ...  an image whose copies carry different labels, to be remembered
    accepted    sha256               one that was refused, and whose labels agree now, or that no source has any more
    stays                            an image that its source gives another split than it has, in which it stays
    held_out                         a new image that is given several splits, and goes to the last one
"""

import contextlib
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from imagepipe.base import filesystem, overview
from imagepipe.base.decisions import OVERRIDES
from imagepipe.base.errors import IngestError, NothingIngestedError
from imagepipe.base.folders import describe_passed_over
from imagepipe.base.labels import list_label_warnings, sum_counts
from imagepipe.base.splits import describe_surprises, describe_torn
from imagepipe.ingest import commit, shards
from imagepipe.ingest.dataset import (
    DESCRIPTION,
    DUPLICATES,
    OVERVIEW,
    QUARANTINE,
    REFUSED,
    Change,
    Dataset,
    Shard,
    Split,
    encode,
    list_features,
    read_lines,
    record_change,
)
from imagepipe.ingest.findings import explain_nothing
from imagepipe.ingest.holders import Listing, describe_kept, find_torn, list_above, list_unseen, select_gone
from imagepipe.ingest.overrides import Overrides, describe_effects, describe_left, list_effects
from imagepipe.ingest.rows import Spool
from imagepipe.ingest.shards import IndexEntry

_OUTCOMES = ".jsonl"  # the end of their files' names

Json = dict[str, Any]


@dataclass(frozen=True)
class IngestResult:
    """Number of records by what became of them: read = new + relabelled + edited + already + quarantined + duplicates.

    Attributes:
        read: records in the source: files of a folder, rows of a manifest.
        new: images that the dataset did not have.
        relabelled: in the dataset before this ingest, with another label.
        edited: in the dataset before this ingest, with this label, but other side features or another group.
        already: in the dataset before this ingest, with all of this.
        quarantined: not usable, each with its reason in quarantine.jsonl.
        duplicates: further copies of files in the dataset, each in duplicates.jsonl.
        dataset: its description after this ingest.
        disputed: records that left the dataset, as a copy with another label turned up; not part of the sum.
        grouped: records of the source that have a group, and are not quarantined; not part of the sum.
        gone: records that came from this source, and are in no source any more; not part of the sum.
        removed: how many of those were removed, by ``sync``.
        excluded: records that left the dataset, as a person excluded their images; not part of the sum.
        reasons: number of quarantined records by reason, without what is of one file only: that follows a colon.
        passed_over: number of files of a folder that are no records, such as thumbnails, by kind.
        warnings: what is odd about the labels of the dataset, a sentence each.
        overview: path of a picture of the dataset, see ``imagepipe.base.overview``; None if the dataset is empty.
        notes: what was understood of the source, and what may surprise, a sentence each.
    """

    read: int
    new: int
    already: int
    quarantined: int
    duplicates: int
    dataset: Dataset = field(repr=False)
    relabelled: int = 0
    edited: int = 0
    disputed: int = 0
    grouped: int = 0
    gone: int = 0
    removed: int = 0
    excluded: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    overview: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def written(self) -> int:
        """Records of the source that are in the dataset."""
        return self.new + self.relabelled + self.edited + self.already

    def __str__(self) -> str:
        relabelled = f"{self.relabelled:,} relabelled, " if self.relabelled else ""
        edited = f"{self.edited:,} with edited columns or groups, " if self.edited else ""
        total = (
            f"{self.read:,} records in = "
            f"{self.written:,} written ({self.new:,} new, {relabelled}{edited}{self.already:,} were there already)"
            f" + {self.quarantined:,} quarantined + {self.duplicates:,} duplicates"
        )
        parts = [total]
        if self.disputed:
            parts.append(f"{self.disputed:,} taken out, as their labels are disputed")
        if self.excluded:
            parts.append(f"{self.excluded:,} taken out, as a person excluded them")
        if self.removed:
            parts.append(f"{self.removed:,} taken out, as they are gone from the source")
        elif self.gone:
            parts.append(f"{self.gone:,} in the dataset are gone from the source (--sync takes them out)")
        if self.passed_over:
            parts.append(f"passed over: {describe_passed_over(self.passed_over)}")
        return "; ".join(parts)


# --- reported by the steps


def quarantine(path: str, row: int | None, reason: str, is_grouped: bool) -> Json:
    """Returns the outcome of a row that can't be used; ``is_grouped`` tells whether its source gives it a group."""
    return {"kind": "quarantine", "path": path, "row": row, "reason": reason, "grouped": is_grouped}


def mark_duplicate(path: str, row: int | None, same_as: str) -> Json:
    """Returns the outcome of a row whose file is a copy of another one."""
    return {"kind": "duplicate", "path": path, "row": row, "same_as": same_as}


def write_outcomes(staging: str, name: str, outcomes: list[Json]) -> None:
    """Writes the outcomes of one bundle of work; the same work done twice replaces its file."""
    if outcomes:
        _write_lines(f"{staging}/outcomes/{name}{_OUTCOMES}", outcomes)


# --- applied to the dataset


@dataclass
class _Changes:
    """All outcomes of an ingest, by kind; of ``index`` the entries by hash that replace those of records that stay."""

    counts: Counter[str]
    quarantined: list[Json]
    duplicates: list[Json]
    leaving: list[Json]
    gone: list[IndexEntry]
    index: dict[str, IndexEntry]
    torn: list[Json]
    refused: dict[str, Json]
    overrides: dict[str, Json]
    written: Counter[str]
    added: list[tuple[shards.StagedShard, Mapping[str, int]]]

    @property
    def disputed(self) -> list[Json]:
        """Those of the records that leave whose images are quarantined."""
        return [outcome for outcome in self.leaving if outcome.get("reason")]


def apply_outcomes(
    out: str,
    staging: str,
    dataset: Dataset,
    spool: Spool,
    listing: Listing,
    check_lock: Callable[[], None],
    overrides: Overrides | None = None,
) -> IngestResult:
    """Turns the outcomes into the next state of the dataset, and commits it.

    Args:
        out: the dataset's folder.
        staging: the folder with the outcomes and the staged shards.
        dataset: the present state.
        spool: the rows.
        listing: of their source.
        check_lock: raises IngestError if the dataset's folder is another ingest's by now.
        overrides: decisions of people; None if there are none.

    Raises:
        IngestError: not every row has an outcome, a group would lie in two splits, it is unknown what is to be removed,
            or the folder was lost; nothing was committed.
        NothingIngestedError: every row is quarantined; the lists were committed.
    """
    check_lock()  # its next holder deletes what is staged
    changes = _read_changes(out, staging)
    if changes.torn:
        raise IngestError(describe_torn({outcome["group"]: outcome["splits"] for outcome in changes.torn}))
    reasons = {outcome["path"]: outcome["reason"] for outcome in changes.quarantined}
    is_used = changes.counts["quarantine"] < spool.rows  # else its files may all be elsewhere
    gone, kept = select_gone(changes.gone, reasons, listing) if changes.gone and is_used else ([], [])
    changes.index.update((entry["sha256"], entry) for entry in kept)
    if listing.sync:
        if torn := find_torn(changes.gone, gone, [shard for shard, _ in changes.added]):
            raise IngestError(describe_torn(torn))
        changes.leaving += [{"entry": entry, "unseen": []} for entry in gone]
    lost = changes.counts["replaced"] - (changes.written.total() - changes.written["new"])
    result = IngestResult(
        read=spool.rows,
        new=changes.written["new"],
        already=changes.counts["already"] + changes.written["already"],
        quarantined=changes.counts["quarantine"],
        duplicates=changes.counts["duplicate"],
        dataset=dataset,
        relabelled=changes.written["relabelled"],
        edited=changes.written["edited"],
        disputed=len(changes.disputed),
        grouped=spool.grouped - changes.counts["grouped"],
        gone=len(gone),
        removed=len(gone) if listing.sync else 0,
        excluded=changes.counts["excluded"],
        reasons=dict(Counter(outcome["reason"].partition(": ")[0] for outcome in changes.quarantined)),
        notes=(
            *describe_surprises(changes.counts),
            *([f"{lost:,} edited images can't be written any more, and left the dataset."] if lost else []),
            *([describe_kept(kept, listing.source, list(dataset.sources))] if kept else []),
            *(describe_left(gone) if gone and not listing.sync else []),
        ),
    )
    if result.read != result.written + result.quarantined + result.duplicates:
        raise IngestError(f"The records don't add up ({result}), so nothing was written. Please report this.")

    quarantined = sorted(changes.quarantined, key=lambda entry: (entry["row"] or 0, entry["path"]))
    # If a disputed image was in the dataset, its own file is quarantined too, though this ingest has not read it.
    unseen = list_unseen(changes.disputed, list(dataset.sources)) if changes.disputed else []
    leaving = [outcome["entry"] for outcome in changes.leaving]
    rewritten, replaced = shards.rewrite_all(out, leaving, changes.index, staging, dataset.options.compress)
    staged = [*(shard for shard, _ in changes.added), *rewritten]
    moves = {
        shards.rewrite_index(out, shard, changes.index, staging): shards.locate_index(shard)
        for shard in sorted({str(entry["shard"]) for entry in changes.index.values()}.difference(replaced))
    }
    for shard in staged:
        moves[shard.staged] = shard.file
        moves[f"{shard.staged}.jsonl"] = shards.locate_index(shard.file)
    lists = {
        QUARANTINE: _update_list(f"{out}/{QUARANTINE}", changes.quarantined, listing.source, spool, unseen),
        DUPLICATES: _update_list(f"{out}/{DUPLICATES}", changes.duplicates, listing.source, spool),
        REFUSED: [changes.refused[sha256] for sha256 in sorted(changes.refused)],
        OVERRIDES: (effects := list_effects(overrides, changes.overrides) if overrides else []),
    }
    for name, entries in lists.items():
        _write_lines(f"{staging}/new/{name}", entries)
        moves[f"{staging}/new/{name}"] = name
    counts = (result.new, result.relabelled, result.removed + lost, result.disputed, result.edited, result.excluded)
    change = Change(listing.source, *counts, labels=dataset.labels)
    description = record_change(_update_description(dataset, spool, changes, staged, replaced), change)
    filesystem.write_whole(f"{staging}/new/{DESCRIPTION}", encode(description))
    moves[f"{staging}/new/{DESCRIPTION}"] = DESCRIPTION
    deletions = [path for shard in replaced for path in (shard, shards.locate_index(shard))]
    has_overview = filesystem.size(f"{out}/{OVERVIEW}") is not None
    if description.records and (staged or replaced or not has_overview):
        filesystem.write_whole(f"{staging}/new/{OVERVIEW}", _draw_overview(out, description, staged))
        moves[f"{staging}/new/{OVERVIEW}"] = OVERVIEW
    elif has_overview and not description.records:
        deletions.append(OVERVIEW)
    check_lock()
    commit.commit(out, {path[len(out) + 1 :]: target for path, target in moves.items()}, deletions)
    if result.quarantined == result.read:
        raise NothingIngestedError(explain_nothing(listing.source, f"{out}/{QUARANTINE}", quarantined))
    labels = [split.labels for split in description.splits.values()]
    told = describe_effects(overrides, effects, sum_counts(labels), f"{out}/{OVERRIDES}") if overrides else []
    return replace(
        result,
        dataset=description,
        notes=(*result.notes, *told),
        warnings=list_label_warnings(description.records, labels),
        overview=f"{out}/{OVERVIEW}" if description.records else None,
    )


def _read_changes(out: str, staging: str) -> _Changes:
    refused: dict[str, Json] = {entry["sha256"]: {**entry} for entry in shards.read_index(f"{out}/{REFUSED}")}
    changes = _Changes(Counter(), [], [], [], [], {}, [], refused, {}, Counter(), [])
    # A worker that was killed leaves a part of a file, under another name.
    for path in (path for path, _ in filesystem.walk(f"{staging}/outcomes") if path.endswith(_OUTCOMES)):
        for outcome in read_lines(path, {"kind": str}):
            kind = outcome.pop("kind")
            changes.counts[kind] += 1
            match kind:
                case "quarantine":
                    changes.counts["grouped"] += outcome.pop("grouped")
                    changes.quarantined.append(outcome)
                case "duplicate":
                    changes.duplicates.append(outcome)
                case "override":
                    changes.overrides[outcome["sha256"]] = outcome
                case "removed" | "replaced" | "excluded":
                    changes.leaving.append(outcome)
                case "gone":
                    changes.gone.append(outcome["entry"])
                case "held":
                    changes.index[outcome["entry"]["sha256"]] = outcome["entry"]
                case "torn":
                    changes.torn.append(outcome)
                case "refused":
                    refused[outcome["sha256"]] = {**outcome, "shard": None}
                case "accepted":
                    del refused[outcome["sha256"]]
                case "shard":
                    changes.written.update(outcome["changes"])
                    changes.added.append((shards.StagedShard(**outcome["shard"]), outcome["labels"]))
    return changes


def _draw_overview(out: str, dataset: Dataset, staged: list[shards.StagedShard]) -> bytes:
    """Returns a picture of the dataset as it will be, some of whose shards are still staged."""
    places = {shard.file: shard.staged for shard in staged}

    def read_records() -> Iterator[bytes]:
        for file in (shard.file for split in dataset.splits.values() for shard in split.shards):
            # A shard that an earlier ingest wrote, and that is damaged by now, is for `dataset.load` to name.
            with contextlib.suppress(OSError, EOFError, ValueError, zlib.error):
                yield from shards.read_records(places.get(file) or f"{out}/{file}", dataset.options.compress)

    images = {name: split.records for name, split in dataset.splits.items()}
    if dataset.options.task == "regression":
        return overview.draw_values(read_records(), images)
    return overview.draw_classes(read_records(), images, {name: split.labels for name, split in dataset.splits.items()})


def _update_description(
    dataset: Dataset, spool: Spool, changes: _Changes, staged: list[shards.StagedShard], replaced: list[str]
) -> Dataset:
    """Returns the description of the dataset with all changes applied."""
    present = [shard for split in dataset.splits.values() for shard in split.shards if shard.file not in replaced]
    present += [Shard(shard.file, shard.records, shard.bytes) for shard in staged]
    labels = {name: Counter(split.labels) for name, split in dataset.splits.items()}
    if dataset.options.task != "regression":
        for shard, counts in changes.added:
            labels[shards.read_split(shard.file)].update(counts)
        for entry in (outcome["entry"] for outcome in changes.leaving):
            for carried in entry["copies"].values():
                labels[shards.read_split(entry["shard"])].subtract(carried)
    by_split: dict[str, list[Shard]] = defaultdict(list)
    for file in sorted(present, key=lambda shard: shard.file):
        by_split[shards.read_split(file.file)].append(file)
    return replace(
        dataset,
        features={
            **list_features(dataset.options.task, dataset.options.group is not None),
            **dict(sorted(spool.features.items())),
        },
        splits={
            name: Split(
                sum(shard.records for shard in by_split[name]),
                {label: count for label, count in sorted(labels[name].items()) if count},
                by_split[name],
            )
            for name in dataset.splits
        },
    )


def _update_list(path: str, entries: list[Json], source: str, spool: Spool, further: Sequence[Json] = ()) -> list[Json]:
    """Returns the entries of a list of paths, in which those of this ingest replace earlier ones.

    Replaced are those of its source, but for folders that could not be listed, and of the paths that it has read;
    ``further`` has entries of files that it has not read, with their sources.
    """
    entries = [*({**entry, "source": source} for entry in entries), *further]
    earlier: dict[str, list[Json]] = defaultdict(list)
    for entry in read_lines(path, {"path": str}):
        earlier[entry["path"]].append(entry)
    if earlier:
        unread = {entry["path"] for entry in entries}
        for listed, some in earlier.items():
            if unread.isdisjoint(list_above(listed)):  # else the folder could not be listed
                # Earlier versions left out the source.
                inside = source if listed.startswith(f"{source}/") else None
                earlier[listed] = [entry for entry in some if entry.get("source", inside) != source]
        for row in (row for file in spool.files for row in read_lines(file, {})):
            earlier.pop(row["path"], None)
        for replaced in (source, *(entry["path"] for entry in entries)):
            earlier.pop(replaced, None)
    kept = [entry for some in earlier.values() for entry in some]
    return sorted([*kept, *entries], key=lambda entry: (entry["path"], entry["row"] or 0, json.dumps(entry)))


def _write_lines(path: str, entries: Iterable[Json]) -> None:
    lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)
    filesystem.write_whole(path, lines.encode())
