"""``imagepipe ingest``: from a source of labelled images to a dataset, or to a larger one."""

import contextlib
import dataclasses
import functools
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args

from imagepipe.base import filesystem, progress
from imagepipe.base.errors import IngestError
from imagepipe.base.images import MAX_PIXELS
from imagepipe.base.names import TaskName
from imagepipe.ingest import commit, reading, shards, sources
from imagepipe.ingest.counts import Counts, local
from imagepipe.ingest.dataset import (
    DESCRIPTION,
    JOURNAL,
    MEASURED,
    STAGING,
    Compression,
    Dataset,
    Options,
    Shard,
    Split,
    dump,
    read,
)
from imagepipe.ingest.workers import begin, processes

if TYPE_CHECKING:
    from imagepipe.ingest.steps import Plan

DEFAULT_SPLITS = {"train": 80, "eval": 10, "test": 10}

_QUARANTINE = "quarantine.jsonl"
_DUPLICATES = "duplicates.jsonl"
_REFUSED = "index/refused.jsonl"
_ROWS_IN_FILE = 10_000  # one unit of work for a remote worker: 1 GB of images of 100 kB
_ROWS_IN_BUCKET = 500
_MAX_BUCKETS = 4096  # a billion rows make buckets of some 100 MB

# In the process itself: Beam's default may download and start another program. Its checks of the steps' types, always
# the same ones, cost 0.15 s a run.
_LOCAL = (
    "--runner=DirectRunner",
    "--direct_running_mode=in_memory",
    "--direct_num_workers=1",
    "--no_pipeline_type_check",
)


@dataclass(frozen=True)
class IngestResult:
    """What became of the records of one ingest: read = new + already + quarantined + duplicates.

    Attributes:
        read: records in: files of a folder, rows of a manifest.
        new: written by this ingest.
        already: in the dataset before.
        quarantined: set aside, each with its reason in quarantine.jsonl.
        duplicates: further copies of files that are in, each in duplicates.jsonl.
        removed: records taken out of the dataset, as a copy with another label turned up, or to be written anew with
            the label that their file has now; not part of the sum.
    """

    read: int
    new: int
    already: int
    quarantined: int
    duplicates: int
    removed: int

    @property
    def written(self) -> int:
        """Records in that are in the dataset."""
        return self.new + self.already

    def __str__(self) -> str:
        total = (
            f"{self.read:,} records in = "
            f"{self.written:,} written ({self.new:,} new, {self.already:,} were there already)"
            f" + {self.quarantined:,} quarantined + {self.duplicates:,} duplicates"
        )
        return f"{total}; {self.removed:,} taken out, as their label changed or is disputed" if self.removed else total


def run(
    source: str,
    out: str,
    *,
    task: TaskName = "classification",
    splits: Mapping[str, int] = DEFAULT_SPLITS,
    max_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    compress: Compression | None = None,
    workers: int | None = None,
    beam_args: Sequence[str] = (),
) -> IngestResult:
    """Ingests images into a dataset, which is made or grows; shows progress on stderr.

    Nothing in ``out`` changes before everything is ready, and nothing at all where nothing is new.

    Args:
        source: folder of class folders, or manifest: CSV (.csv) or JSON lines (.jsonl, .ndjson), with ``path``,
            ``label`` and side features. A path, or a URI of a file system that Beam reads. Of a folder, hidden files
            and folders and Thumbs.db and desktop.ini are passed over; every other file counts.
        out: the dataset's folder, a path or URI; for remote runners, one that the workers reach.
        task: classification takes a label as it is, multilabel splits it at ``|``, regression reads a finite number.
        splits: name to weight, 0 or more; their sum is positive.
        max_side: longest side in pixels that larger images are shrunk to, 1 or more; None keeps every size.
        max_pixels: images of more are set aside, 1 or more.
        compress: ``gzip`` or None; JPEG hardly shrinks.
        workers: processes that read and decode here, or threads in each remote worker; by default as many as there are
            cores here.
        beam_args: Beam pipeline options, such as ``--runner=DataflowRunner``; by default Beam runs in this process.

    Raises:
        IngestError: the arguments don't fit together, with each other, with the source or with the dataset in ``out``;
            nothing was written.
        OSError: the source or the dataset can't be read or written.
    """
    options = _options(task, splits, max_side, max_pixels, compress)
    if workers is not None and workers < 1:
        raise IngestError(f"workers is {workers}: give 1 or more.")
    source, out = filesystem.absolute(source), filesystem.absolute(out)
    if f"{out}/".startswith(f"{source}/") or f"{source}/".startswith(f"{out}/"):
        raise IngestError(
            f"SOURCE {source} and DIR {out} lie in each other: keep them apart, or outputs become inputs."
        )
    rows = sources.read(source, task)
    with commit.locked(out):
        _refuse_foreign(out)
        commit.recover(out)
        dataset = _existing(out, options)
        with commit.staging(out) as staging:
            spooled = _spool(rows, staging, dataset)
            if not spooled.files:
                raise IngestError(f"{source} holds no file or row to ingest.")
            index = (
                [path for path, _ in filesystem.walk(f"{out}/index")] if filesystem.is_folder(f"{out}/index") else []
            )
            count = workers or len(os.sched_getaffinity(0))
            prove = not dataset.records  # else most files may be known, and need not be decoded again
            is_local = not (beam_args or filesystem.is_uri(source) or filesystem.is_uri(out))
            with processes(count) if is_local else contextlib.nullcontext():
                # Beam takes longer to import and to start than the rest of a small ingest: work on its first rows now.
                first = spooled.files[0]
                begin(first, functools.partial(reading.hash_rows, options, prove), reading.row_batches(first))
                from imagepipe.ingest.steps import Plan

                buckets = min(_MAX_BUCKETS, 1 + (spooled.rows + dataset.records) // _ROWS_IN_BUCKET)
                plan = Plan(staging, options, spooled.features, buckets, count, prove)
                _run_beam(plan, spooled, index, beam_args)
            return _finish(out, staging, source, dataset, spooled)


# --- before Beam


def _options(
    task: TaskName, splits: Mapping[str, int], max_side: int | None, max_pixels: int, compress: Compression | None
) -> Options:
    if task not in get_args(TaskName):
        raise IngestError(f"task is {task!r}: give one of {', '.join(get_args(TaskName))}.")
    if compress is not None and compress not in get_args(Compression):
        raise IngestError(f"compress is {compress!r}: give gzip, or nothing.")
    if not splits or min(splits.values()) < 0 or sum(splits.values()) <= 0:
        raise IngestError(f"splits are {dict(splits)}: give weights of 0 or more, at least one of them above 0.")
    for name in splits:
        if not name.isidentifier() or name == "index":
            raise IngestError(f"{name!r} can't name a split: give letters, digits and underscores, and not 'index'.")
    for name, value in (("max_side", max_side), ("max_pixels", max_pixels)):
        if value is not None and value < 1:
            raise IngestError(f"{name} is {value}: give 1 or more.")
    return Options(task, dict(splits), max_side, max_pixels, compress)


def _refuse_foreign(out: str) -> None:
    """Refuses a folder with something in it that no ingest has put there."""
    if filesystem.size(f"{out}/{DESCRIPTION}") is not None or filesystem.size(f"{out}/{JOURNAL}") is not None:
        return
    names = [path[len(out) + 1 :] for path, _ in filesystem.walk(out)] if filesystem.is_uri(out) else os.listdir(out)  # noqa: PTH208
    if foreign := sorted(name for name in names if not name.startswith(STAGING)):
        raise IngestError(f"{out} is no dataset, and not empty (it holds {foreign[0]}): give a new or an empty folder.")


def _existing(out: str, options: Options) -> Dataset:
    """The dataset in the folder, with the options of this ingest; an empty one where there is none."""
    found = read(out)
    if found is None:
        return Dataset(options, dict(_features(options.task)), {name: Split() for name in options.splits})
    for name in ("task", "splits", "max_side", "compress"):
        before, now = getattr(found.options, name), getattr(options, name)
        if before != now or (name == "splits" and list(before) != list(now)):
            raise IngestError(
                f"{out} was made with {name} {_spelled(before)}, and now it is {_spelled(now)}: use what it was made "
                "with, or another folder."
            )
    own = _features(options.task)
    if clashing := sorted(name for name, kind in found.features.items() if own.get(name, kind) != kind):
        raise IngestError(
            f"{out} has a column '{clashing[0]}' of its own, and records have such a feature by now: rename it, and "
            "ingest everything into a new folder."
        )
    return dataclasses.replace(found, options=options)


def _spelled(value: object) -> str:
    return "/".join(f"{name} {weight}" for name, weight in value.items()) if isinstance(value, dict) else str(value)


def _features(task: TaskName) -> dict[str, str]:
    return {
        "input": "bytes",
        "metadata": "bytes",
        "label": "float" if task == "regression" else "bytes",
        "width": "int64",
        "height": "int64",
        "format": "bytes",
        "sha256": "bytes",
        **MEASURED,
    }


@dataclass(frozen=True)
class _Spooled:
    """The rows of a source, written down for Beam: their number, their files, and the side features' types."""

    rows: int
    files: list[str]
    features: dict[str, str]


def _spool(rows: Iterable[sources.Row], staging: str, dataset: Dataset) -> _Spooled:
    """Writes rows to files, as Beam's job descriptions have no room for them, and learns the side features' types."""
    own = _features(dataset.options.task)
    before = {name: type_ for name, type_ in dataset.features.items() if name not in own}
    types: dict[str, str] = {}
    count = 0
    paths: list[str] = []
    stream = iter(rows)
    while chunk := list(islice(stream, _ROWS_IN_FILE)):
        count += len(chunk)
        paths.append(f"{staging}/rows/{len(paths):06}.jsonl")
        with filesystem.create(paths[-1]) as file:
            file.write("".join(json.dumps(row) + "\n" for row in chunk).encode())
        for name, value in (item for row in chunk for item in row["side"].items()):
            types[name] = sources.wider(types.get(name, "int64"), sources.value_type(value))
    for name, type_ in types.items():
        if name in before and sources.wider(before[name], type_) != before[name]:
            raise IngestError(
                f"Column '{name}' is {before[name]} in the dataset, and holds {type_} values now: correct the values, "
                "or ingest everything into a new folder."
            )
    return _Spooled(count, paths, {**types, **before})


# --- Beam


def _run_beam(plan: "Plan", spooled: _Spooled, index: list[str], beam_args: Sequence[str]) -> None:
    from imagepipe.base.process import hide_modules
    from imagepipe.ingest.beam import PipelineOptions, StandardOptions, beam
    from imagepipe.ingest.steps import build

    arguments = PipelineOptions([*_LOCAL, *beam_args])
    local.read = local.done = 0
    running: list[Any] = []  # the job, once a remote runner has accepted it
    is_local = arguments.view_as(StandardOptions).runner == "DirectRunner"
    with warnings.catch_warnings(), hide_modules("IPython"):
        # Of broken metadata in images that are fine, a line each.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        pipeline = beam.Pipeline(options=arguments)
        build(pipeline, plan, spooled.files, index)
        with progress.show_progress(
            spooled.rows, "images", lambda: (local if is_local else _counted(running)).by_name()
        ):
            running.append(pipeline.run())
            running[0].wait_until_finish()


def _counted(running: list[Any]) -> Counts:
    """What the metrics of a remote job say, once there are any."""
    counts = Counts()
    with contextlib.suppress(Exception):  # progress is a nicety; the job goes on where it can't be asked for
        for counter in running[0].metrics().query()["counters"] if running else ():
            metric = counter.key.metric
            if metric.namespace == "ingest":  # each step has its own of the name
                setattr(counts, metric.name, getattr(counts, metric.name) + counter.attempted)
    return counts


# --- after Beam


def _finish(out: str, staging: str, source: str, dataset: Dataset, spooled: _Spooled) -> IngestResult:
    """Turns the outcomes into the next state of the dataset, and commits it."""
    count: Counter[str] = Counter()
    aside: dict[str, list[dict[str, Any]]] = {"quarantine": [], "duplicate": []}
    removed: list[dict[str, Any]] = []
    refused = {entry["sha256"]: entry for entry in _read_lines(f"{out}/{_REFUSED}")}
    added: list[tuple[shards.Staged, Mapping[str, int]]] = []
    for outcome in _outcomes(staging):
        kind = outcome.pop("kind")
        count[kind] += 1
        match kind:
            case "quarantine" | "duplicate":
                aside[kind].append(outcome)
            case "removed":
                removed.append(outcome)
            case "refused":
                refused[outcome["sha256"]] = {**outcome, "shard": None}
            case "accepted":
                del refused[outcome["sha256"]]
            case "shard":
                added.append((shards.Staged(**outcome["shard"]), outcome["labels"]))
    result = IngestResult(
        read=spooled.rows,
        new=sum(shard.records for shard, _ in added),
        already=count["already"],
        quarantined=count["quarantine"],
        duplicates=count["duplicate"],
        removed=len(removed),
    )
    if result.read != result.written + result.quarantined + result.duplicates:
        raise IngestError(f"The records don't add up ({result}), so nothing was written. Please report this.")

    # Where a disputed image was in, its own file is aside too, though this ingest has not seen it.
    aside["quarantine"] += [
        {"path": path, "row": None, "reason": entry["reason"]} for entry in removed for path in entry["unseen"]
    ]
    rewritten, gone = _rewrite(out, staging, dataset, removed)
    grown = _grown(dataset, spooled, added, rewritten, gone, removed)

    moves = {}
    for shard in [*(shard for shard, _ in added), *rewritten]:
        moves[shard.staged] = shard.file
        moves[f"{shard.staged}.jsonl"] = shards.index_file(shard.file)
    lists = {
        _QUARANTINE: _as_of_now(f"{out}/{_QUARANTINE}", aside["quarantine"], source, spooled),
        _DUPLICATES: _as_of_now(f"{out}/{_DUPLICATES}", aside["duplicate"], source, spooled),
        _REFUSED: [refused[sha256] for sha256 in sorted(refused)],
    }
    for name, entries in lists.items():
        lines = "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)
        filesystem.write_whole(f"{staging}/new/{name}", lines.encode())
        moves[f"{staging}/new/{name}"] = name
    filesystem.write_whole(f"{staging}/new/{DESCRIPTION}", dump(grown))
    moves[f"{staging}/new/{DESCRIPTION}"] = DESCRIPTION
    deletions = [path for shard in gone for path in (shard, shards.index_file(shard))]
    commit.commit(out, {path[len(out) + 1 :]: target for path, target in moves.items()}, deletions)
    return result


def _outcomes(staging: str) -> Iterator[dict[str, Any]]:
    """What the workers found out."""
    folder = f"{staging}/outcomes"
    for path, _ in filesystem.walk(folder) if filesystem.is_folder(folder) else ():
        yield from _read_lines(path)


def _read_lines(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file of ours; none where there is no such file."""
    if filesystem.size(path) is not None:
        with filesystem.open_read(path) as file:
            yield from map(json.loads, file)


def _rewrite(
    out: str, staging: str, dataset: Dataset, removed: list[dict[str, Any]]
) -> tuple[list[shards.Staged], list[str]]:
    """Stages anew every shard that records are removed from; also the names of the shards that go."""
    hashes_by_shard: dict[str, set[str]] = defaultdict(set)
    for entry in removed:
        hashes_by_shard[entry["known"]["shard"]].add(entry["known"]["sha256"])
    rewritten = [
        shards.rewrite(out, shard, hashes, staging, dataset.options.compress)
        for shard, hashes in sorted(hashes_by_shard.items())
    ]
    return [shard for shard in rewritten if shard is not None], sorted(hashes_by_shard)


def _grown(
    dataset: Dataset,
    spooled: _Spooled,
    added: list[tuple[shards.Staged, Mapping[str, int]]],
    rewritten: list[shards.Staged],
    gone: list[str],
    removed: list[dict[str, Any]],
) -> Dataset:
    """The description of the dataset with all changes made."""
    present = [shard for split in dataset.splits.values() for shard in split.shards if shard.file not in gone]
    staged = [*(shard for shard, _ in added), *rewritten]
    present += [Shard(shard.file, shard.records, shard.bytes) for shard in staged]
    labels = {name: Counter(split.labels) for name, split in dataset.splits.items()}
    if dataset.options.task != "regression":
        for shard, counts in added:
            labels[_split(shard.file)].update(counts)
        for entry in removed:
            for carried in entry["known"]["copies"].values():
                labels[_split(entry["known"]["shard"])].subtract(carried)
    by_split: dict[str, list[Shard]] = defaultdict(list)
    for found in sorted(present, key=lambda shard: shard.file):
        by_split[_split(found.file)].append(found)
    return Dataset(
        dataset.options,
        {**_features(dataset.options.task), **dict(sorted(spooled.features.items()))},
        {
            name: Split(
                sum(shard.records for shard in by_split[name]),
                {label: count for label, count in sorted(labels[name].items()) if count},
                by_split[name],
            )
            for name in dataset.splits
        },
    )


def _split(shard: str) -> str:
    return shard.partition("/")[0]


def _as_of_now(path: str, entries: list[dict[str, Any]], source: str, spooled: _Spooled) -> list[dict[str, Any]]:
    """The entries of a list of paths, where what this ingest has seen takes the place of what was known before."""
    before: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in _read_lines(path):
        before[entry["path"]].append(entry)
    if before:
        for row in (row for file in spooled.files for row in _read_lines(file)):
            before.pop(row["path"], None)
        for seen in (source, *(entry["path"] for entry in entries)):
            before.pop(seen, None)
    kept = [entry for some in before.values() for entry in some]
    return sorted([*kept, *entries], key=lambda entry: (entry["path"], entry["row"] or 0, json.dumps(entry)))
