"""Batch prediction, on Beam: from images or files of requests to files of predictions, shard by shard.

The driver lists the inputs and writes them to files (``spool``); workers ask the model, each a shard at a time
(``shards``); what they have done is moved into the folder of the results, whose content ``results`` describes. Model,
inputs and results may each be on this machine, or anywhere that a URI names: then the workers need nothing of this
machine.
"""

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from imagepipe.base import filesystem, progress
from imagepipe.base.beam_options import LOCAL_ARGUMENTS, explain_job_errors, hide_step_errors
from imagepipe.base.errors import ModelError, UnavailableError
from imagepipe.base.full_disk import name_full_disk
from imagepipe.base.locks import lock_folder
from imagepipe.base.on_disk import DiskCounter
from imagepipe.capture.rows import CaptureOptions
from imagepipe.deploy import storage
from imagepipe.serving.listing import Item, Listing, read_side_features, stream_inputs
from imagepipe.serving.openvino_model import Load, load_served
from imagepipe.serving.predictor import Predictor
from imagepipe.serving.results import Run, recover
from imagepipe.serving.shards import ResultFormat, predict_shard
from imagepipe.serving.spool import Shard, Spool, read_shards, spool_items
from imagepipe.serving.threads import limit_threads

# Of fewer images: measuring how many batches to compute at once takes some 4 s, as 400 of InceptionV3 do on two cores,
# and gains a tenth of the others' time, if anything.
_TOO_FEW_TO_MEASURE = 4096
_TWICE = "inputs that are there twice"
_KEPT = "What is done is kept: run it again to go on from there."


@dataclass(frozen=True)
class BatchResult:
    """Counts of new inputs: read = predicted + quarantined.

    Attributes:
        predicted: images with a prediction.
        quarantined: images without one, each with its reason.
        already: inputs that an earlier run has done; not part of the sum.
        passed_over: files in folders and archives that are no input, and inputs that are there twice, by why.
        columns: of manifests and files of requests, that the model doesn't take, and that were not kept.
    """

    predicted: int
    quarantined: int
    already: int
    passed_over: Mapping[str, int] = field(default_factory=dict)
    columns: Sequence[str] = ()

    def __str__(self) -> str:
        return (
            f"{self.predicted + self.quarantined:,} read = {self.predicted:,} predicted + {self.quarantined:,} "
            f"quarantined; {self.already:,} were done already"
        )


def predict_source(
    model: str | os.PathLike[str],
    source: str,
    out: str | os.PathLike[str],
    kind: ResultFormat = "jsonl",
    workers: int = 1,
    beam_args: Sequence[str] = (),
    keep: bool = False,
    options: CaptureOptions | None = None,
) -> BatchResult:
    """Asks a model about all inputs that no earlier run into the same folder has done; shows progress on stderr.

    A run that was killed is resumed by running it again: a shard is either done or not. Memory doesn't grow with the
    number of inputs, see ``listing.stream_inputs``.

    Args:
        model: a SavedModel, a folder of its versions or, on this machine, a run; a path or URI.
        source: an image, a folder or a glob of images; files of requests, see ``request_files``; or a manifest with the
            column ``path``; by path or URI.
        out: folder of the results, made if missing; a path, or a URI as text. Workers on other machines must reach it.
        kind: format of the results.
        workers: processes, 1 or more; each holds the model in its memory.
        beam_args: Beam pipeline options, which override those of a local run.
        keep: whether the results have the manifest's further columns too.
        options: of the capture of the answers; None for no capture.

    Raises:
        ModelError: if there is no model or no input, ``out`` is a file, or the capture can't be written.
        UnavailableError: if another run is writing into ``out``, a worker or the job fails, or inputs are left over.
    """
    folder = storage.find_model(os.fspath(model))
    out = filesystem.absolute(os.fspath(out))
    if not filesystem.is_uri(out) and Path(out).is_file():
        raise ModelError(f"{out} is a file: give a folder for the results")
    if options:  # which workers in other folders read
        options = replace(options, folder=filesystem.absolute(options.folder))
        _check_writable(options.folder)
    listing = Listing()
    done_before = 0
    listed = DiskCounter()

    def select_new(done: DiskCounter) -> Iterator[Item]:
        nonlocal done_before
        for item in stream_inputs(source, listing, read_side_features(folder), keep):
            if listed.add(item.key) > 1:
                listing.passed_over[_TWICE] += 1
            elif item.key in done:
                done_before += 1
            else:
                yield item

    busy = UnavailableError(f"another run is writing into {out}: wait for it, or give another --out")
    with name_full_disk(out), lock_folder(out, busy) as renew:
        run = Run(out, renew)
        listing.folder = run.folder
        done = recover(out, renew)
        try:
            spool = spool_items(select_new(done), run.folder)
        except BaseException:
            run.remove_attempts()
            raise
        if spool.inputs:
            is_long = spool.request_files > 0 or spool.inputs >= _TOO_FEW_TO_MEASURE
            load: Load = "many batches" if is_long else "one batch"
            _run_job(spool, run, _ShardHandler(folder, load, run.folder, kind, options), workers, beam_args)
        if run.inputs != spool.inputs:
            raise UnavailableError(
                f"of {spool.inputs:,} inputs {run.inputs:,} have a result in {out}, and {spool.inputs - run.inputs:,} "
                f"have none, though the job has ended as done: its runner has skipped work. {_KEPT}"
            )
        run.remove_attempts()
    passed_over = {reason: count for reason, count in listing.passed_over.items() if count}
    columns = tuple(listing.columns | run.unused)
    return BatchResult(run.predicted, run.quarantined, done_before, passed_over, columns)


def _check_writable(folder: str) -> None:
    """Fails before the job if nothing can be captured: what its shards have captured would be left to the next run."""
    probe = f"{folder}/{filesystem.PARTIAL}{uuid.uuid4().hex}"
    try:
        filesystem.write_whole(probe, b"")
        filesystem.delete(probe)
    except OSError as error:
        raise ModelError(f"{folder} can't be written: {error.strerror or error}") from error


def _run_job(spool: Spool, run: Run, handler: "_ShardHandler", workers: int, beam_args: Sequence[str]) -> None:
    mode = ["--direct_running_mode=multi_processing"] if workers > 1 else ["--direct_running_mode=in_memory"]
    options = PipelineOptions([*LOCAL_ARGUMENTS, *mode, f"--direct_num_workers={workers}", *beam_args])
    try:
        with (
            explain_job_errors(options.view_as(StandardOptions).runner, _KEPT),
            name_full_disk(run.folder),
            hide_step_errors(),
            progress.show_progress(spool.inputs, "files", run.count, run.count_outcomes),
            beam.Pipeline(options=options) as pipeline,
        ):
            _ = (
                pipeline
                | beam.Create(spool.files)
                | beam.FlatMap(read_shards)
                | beam.Reshuffle()  # spreads them over the workers
                | RunInference(handler)
            )
    except BaseException:
        with suppress(OSError, UnavailableError):  # the next run does it
            run.settle()
        raise
    run.settle()


class _ShardHandler(ModelHandler[Shard, str, Predictor]):
    """Makes Beam load the model once per process, and hand over one shard at a time.

    The batches are the predictor's: Beam's own would mix shards, which could then only be written when all are
    predicted.
    """

    def __init__(self, model: str, load: Load, attempts: str, kind: ResultFormat, options: CaptureOptions | None):
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._model, self._load, self._attempts, self._kind, self._options = model, load, attempts, kind, options

    def load_model(self) -> Predictor:
        if not filesystem.is_uri(self._model):
            return self._load_from(Path(self._model))
        with tempfile.TemporaryDirectory(prefix="imagepipe-model-") as folder:
            copy = Path(folder, "model")
            storage.fetch(self._model, copy)
            return self._load_from(copy)  # all of it goes into memory

    def _load_from(self, folder: Path) -> Predictor:
        limit_threads(folder)
        return Predictor(load_served(folder, load=self._load))

    def run_inference(self, batch: Sequence[Shard], model: Predictor, inference_args: Any = None) -> Iterable[str]:
        for shard in batch:
            predict_shard(shard, model, self._attempts, self._kind, self._model, self._options)
            yield shard.id

    def get_num_bytes(self, batch: Sequence[Shard]) -> int:
        return sum(shard.size for shard in batch)
