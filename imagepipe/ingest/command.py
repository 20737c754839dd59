"""``imagepipe ingest``: from a source of labelled images to a dataset, or to a larger one."""

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import get_args

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError, NothingIngestedError
from imagepipe.base.folders import describe_passed_over
from imagepipe.base.full_disk import name_full_disk
from imagepipe.base.images import MAX_PIXELS
from imagepipe.base.labels import list_names
from imagepipe.base.names import TaskName
from imagepipe.base.signals import end_on_signals
from imagepipe.base.splits import EVAL, TRAIN, Draw, Layout, plan_draw
from imagepipe.base.workers import fork
from imagepipe.ingest import commit, dataset, steps
from imagepipe.ingest.dataset import Compression, Dataset, Options
from imagepipe.ingest.holders import Listing
from imagepipe.ingest.outcomes import IngestResult, apply_outcomes
from imagepipe.ingest.overrides import Overrides, read_additions, read_overrides
from imagepipe.ingest.policy import Cell
from imagepipe.ingest.rows import Spool, spool_rows
from imagepipe.ingest.sources import find_reader

DEFAULT_SPLITS = {"train": 80, "eval": 10, "test": 10}

_ROWS_IN_BUCKET = 500
_MAX_BUCKETS = 4096  # a billion rows make buckets of some 100 MB
_BATCHES, _MAX_BATCH = 8, 64  # of each worker, so that all end at about the same time; rows of one


def ingest(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    task: TaskName = "classification",
    splits: Mapping[str, int] = DEFAULT_SPLITS,
    split_folders: bool | None = None,
    group: str | None = None,
    sync: bool = False,
    labels: str | os.PathLike[str] | None = None,
    max_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    compress: Compression | None = None,
    workers: int | None = None,
    beam_args: Sequence[str] = (),
) -> IngestResult:
    """Ingests labelled images into a dataset of TFRecords, which is created or grows; shows progress on stderr.

    Nothing in ``out`` changes before everything is ready, and nothing at all if nothing is new. Files that can't be
    used don't stop it: they are quarantined, each with its reason. A file that crashes its decoder is one of them where
    worker processes decode; it ends this process where it decodes itself: with ``beam_args``, for URIs, and where
    TensorFlow or Beam has been imported or threads run, as in a notebook.

    Args:
        source: folder of class folders, or manifest: CSV (.csv, .tsv), JSON lines (.jsonl, .ndjson) or Parquet, with
            ``path``, ``label`` and side features; or images in archives (.tar, .tgz, .zip; also WebDataset's), in
            Parquet, or beside COCO's or Label Studio's .json. A path, or a URI (``gs://…``, ``s3://…``) as text; of
            these also a pattern such as ``train-{0000..0127}.tar``, or a folder of archives or Parquet. Of a folder,
            hidden files and what systems leave there (Thumbs.db, @eaDir, …) are passed over; every other file counts.
        out: the dataset's folder, a path or URI; for remote runners, one that the workers reach.
        task: classification takes a label unchanged, multilabel splits it at ``|``, regression reads a finite number.
        splits: name to weight, 0 or more; their sum is positive. By default 80 train, 10 eval, 10 test. Images are
            drawn by these where the source gives no split, in a column ``split`` or by its folders; none for an eval
            or test split that a source gave.
        split_folders: True if the top folders are splits (train, val, test, …) and the classes lie in them; False if
            they are classes, whatever their names. By default as this source was read before, and else splits if all
            have such names and hold class folders.
        group: what tells the group of an image, whose images are never in two splits: a column of the manifest, or for
            a folder a regular expression with one group in parentheses, which is searched for in the path below the
            folder. An image without one is drawn alone. By default there are none.
        sync: remove the images that came from this source, and are no longer in it, nor in another one by its last
            ingest. By default they are counted.
        labels: a file of decisions of people (``labels.jsonl``), by path or URI, that overrides what the source says of
            an image, see ``overrides``; ``none`` for the source's own labels. By default the dataset's, if it has one.
        max_side: longest side in pixels that larger images are shrunk to, 1 or more; None keeps every size.
        max_pixels: limit on width x height, 1 or more, by default 100 million; larger images are quarantined.
        compress: ``gzip`` or None; JPEG hardly shrinks.
        workers: processes that read and decode here, or threads in each of Beam's workers, 1 or more; by default one
            per core of this machine.
        beam_args: Beam pipeline options, such as ``--runner=DataflowRunner``; without any, the work is done here, and
            without Beam.

    Returns:
        Number of records by what became of them.

    Raises:
        IngestError: the arguments don't fit together, with each other, with the source or with the dataset in ``out``;
            nothing was written.
        NothingIngestedError: an IngestError: there is no file or row, or all are quarantined, which is written.
        UnavailableError: a job of Beam's failed, or its runner can't be reached; nothing was written.
        OSError: the source or the dataset can't be read or written.
        Stopped: after SIGTERM or Ctrl+C, a KeyboardInterrupt. Handlers of the application are left in place.

    Examples:
        >>> result = ingest("photos", "flowers/dataset", max_side=512)
        >>> print(result)
        3,670 records in = 3,668 written (3,668 new, 0 were there already) + 1 quarantined + 1 duplicates
    """
    options = _check_options(task, splits, max_side, max_pixels, compress, group)
    if workers is not None and workers < 1:
        raise IngestError(f"workers is {workers}: give 1 or more.")
    source, out = filesystem.absolute(os.fspath(source)), filesystem.absolute(os.fspath(out))
    for one, other in ((source, out), (filesystem.resolve(source), filesystem.resolve(out))):
        if f"{other}/".startswith(f"{one}/") or f"{one}/".startswith(f"{other}/"):
            raise IngestError(
                f"SOURCE {source} and DIR {out} must not contain one another, or outputs become inputs: give another "
                "DIR."
            )
    given, source = source, dataset.find_source(out, source)
    passed_over: Counter[str] = Counter()
    if split_folders is None:
        split_folders = dataset.recall_split_folders(out, source)
    read = find_reader(source, task, split_folders, passed_over, group)
    dataset.refuse_foreign(out)
    with end_on_signals(), name_full_disk(out), commit.lock(out) as check_lock:
        commit.recover(out)
        current = dataset.take_labels(dataset.prepare(out, options), labels)
        overrides = read_overrides(current.labels, task) if current.labels else None
        with commit.open_staging(out) as staging:
            layout, rows = read(staging)
            further = read_additions(overrides, task) if overrides else ()
            spool = spool_rows(chain(rows, further), staging, current)
            if not spool.files:
                junk = describe_passed_over(passed_over)
                raise NothingIngestedError(
                    f"{source} holds no file or row to ingest" + (f"; passed over: {junk}." if junk else ".")
                )
            if group is not None and not spool.grouped:
                raise IngestError(f"No image of {source} has a group by --group {group}: is it the right one?")
            read_as = dataset.Source(True if layout.splits else split_folders, filesystem.resolve(source))
            current = dataset.remember(current, source, read_as, {split for _, split in spool.given})
            draw = plan_draw(options.splits, current.given)
            listing = Listing(source, list(current.sources).index(source), filesystem.is_folder(source), sync)
            count = workers or _count_cores()
            try:
                _run_steps(out, staging, current, spool, draw, listing, count, beam_args, overrides)
            except BrokenProcessPool as error:
                raise IngestError(
                    "A worker process was killed from outside, so nothing was written: run it again, with fewer "
                    "--workers if memory ran out."
                ) from error
            result = apply_outcomes(out, staging, current, spool, listing, check_lock, overrides)
            renamed = [f"{given} is {source} by another path, and was read by that one."] if given != source else []
            notes = (*renamed, *_describe_source(layout, spool, draw, result), *result.notes)
            return dataclasses.replace(result, passed_over=dict(+passed_over), notes=notes)


def _check_options(
    task: TaskName,
    splits: Mapping[str, int],
    max_side: int | None,
    max_pixels: int,
    compress: Compression | None,
    group: str | None,
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
    return Options(task, dict(splits), max_side, max_pixels, compress, group)


def _describe_source(layout: Layout, spool: Spool, draw: Draw, result: IngestResult) -> Iterator[str]:
    """Yields what was understood of a source, and what it lacks, a sentence each."""
    if spool.given:
        names = ", ".join(f"{name} is {split} ({count:,})" for (name, split), count in sorted(spool.given.items()))
        yield f"{layout.given_by} gave the splits: {names}."
        if len(draw.train) > 1:
            drawn = " and ".join(name for name in draw.train if name != TRAIN)
            yield f"No {EVAL} split is given, so images of {TRAIN} are drawn for {drawn}, by the shares."
    closed = [name for name in draw.splits if name not in draw.unsplit]
    if spool.unsplit and closed:
        yield (
            f"{spool.unsplit:,} images without a split are drawn from {' and '.join(draw.unsplit)} only, as "
            f"{' and '.join(closed)} {'is' if len(closed) == 1 else 'are'} given by a source."
        )
    if spool.grouped:
        lone = result.written + result.duplicates - result.grouped
        yield f"{result.grouped:,} images have groups" + (f", {lone:,} have none." if lone else ".")
    if result.edited and spool.lacking:
        yield (
            f"The {result.edited:,} images with edited columns or groups no longer have {list_names(spool.lacking)}: a "
            "record has the columns of the source that was read last."
        )
    if layout.doubt:
        yield (
            f"Folders are called as splits are, but others are beside them ({list_names(layout.doubt)}), so all were "
            "read as classes: give --splits folders if they are splits, --splits none if they are classes."
        )


def _count_cores() -> int:
    import joblib  # not above: it takes longer to import than the rest

    return int(joblib.cpu_count())


def _run_steps(
    out: str,
    staging: str,
    dataset: Dataset,
    spool: Spool,
    draw: Draw,
    listing: Listing,
    count: int,
    beam_args: Sequence[str],
    overrides: Overrides | None,
) -> None:
    """Takes the steps here, with ``count`` workers: processes if all files are here, else threads; or on Beam."""
    decode = not dataset.records  # else most files may be in the dataset, and need not be decoded again
    buckets = min(_MAX_BUCKETS, 1 + (spool.rows + dataset.records) // _ROWS_IN_BUCKET)
    batch = max(1, min(_MAX_BATCH, spool.rows // (_BATCHES * count)))
    present = {key: Cell(images) for key, images in dataset.count_images().items()}
    options, features = dataset.options, spool.features
    plan = steps.Plan(staging, options, features, buckets, count, batch, decode, draw, listing, present, overrides)
    index = [path for path, _ in filesystem.walk(f"{out}/index")]
    is_local = not (filesystem.is_uri(listing.source) or filesystem.is_uri(out))
    with warnings.catch_warnings():
        # Pillow warns of broken metadata in good images, one line per image.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if beam_args:
            from imagepipe.ingest import beam_pipeline  # not above: Beam takes long to import

            beam_pipeline.run(plan, spool.files, spool.rows, index, beam_args)
            return
        with fork(count) if is_local else ThreadPoolExecutor(count) as pool:
            steps.run(plan, spool.files, spool.rows, index, pool)
