"""Batch prediction, on Beam: from images or files of requests to files of predictions, shard by shard.

The folder of the results holds, for each shard:

- ``predictions-<id>.jsonl`` (or ``.parquet``, ``.tfrecord``): ``metadata`` (the image's path, or the request's own),
  ``label``, ``score``, ``classes`` and ``novelty``, as the model's signature gives them; for rows of a manifest also
  its ``line``, and ``kept``, the columns that the model doesn't take, if they are wanted;
- ``quarantine-<id>.jsonl``, if there were any: images without a prediction, with the reason;
- ``done/<id>.json``, written last: the shard's inputs. Without it the shard does not count: the next run deletes its
  files and predicts it again. An input that no such file names is new.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, BinaryIO, Literal

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from imagepipe.base import progress, tfrecord
from imagepipe.base.beam_options import LOCAL_ARGUMENTS, hide_step_errors
from imagepipe.base.errors import UnavailableError
from imagepipe.base.filesystem import PARTIAL, open_whole, write_whole
from imagepipe.base.full_disk import name_full_disk
from imagepipe.base.locks import lock_folder
from imagepipe.serving.listing import Item, Listing, list_for_model, read_items
from imagepipe.serving.predictor import Predictor, load
from imagepipe.serving.types import Prediction

ResultFormat = Literal["jsonl", "parquet", "tfrecord"]

# A kill costs at most a shard: some seconds of a GPU, half a minute of two cores. A file of requests is one shard.
_IMAGES_IN_SHARD = 256
_ROWS_IN_GROUP = 4096  # of Parquet: results held in memory
_DONE = "done"
_RESULT_FILE = re.compile(r"(predictions|quarantine)-([0-9a-f]{32})\.(jsonl|parquet|tfrecord)")

Row = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A unit of work.

    Attributes:
        id: its name.
        items: images or rows of manifests, or one file of requests.
        out: folder of the results.
        kind: format of the results.
    """

    id: str
    items: tuple[Item, ...]
    out: str
    kind: ResultFormat


@dataclass(frozen=True)
class BatchResult:
    """Counts of new inputs: read = predicted + quarantined.

    Attributes:
        predicted: images with a prediction.
        quarantined: images without one, each with its reason.
        already: inputs that an earlier run has done; not part of the sum.
        passed_over: files in folders that are no input, by why.
        columns: of manifests, that the model doesn't take, and that were not kept.
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
    model: Path, source: str, out: Path, kind: ResultFormat = "jsonl", workers: int = 1, beam_args: Sequence[str] = ()
) -> BatchResult:
    """Asks a model about all inputs that a path or a pattern stands for; see ``predict_listing``.

    Args:
        model: the SavedModel's folder.
        source: an image, a folder or a glob of images; files of requests, see ``request_files``; or a manifest with the
            column ``path``.
        out: folder of the results, made if missing.
        kind: format of the results.
        workers: processes.
        beam_args: Beam pipeline options.
    """
    return predict_listing(model, list_for_model(model, [source]), out, kind, workers, beam_args)


def predict_listing(
    model: Path,
    listing: Listing,
    out: Path,
    kind: ResultFormat = "jsonl",
    workers: int = 1,
    beam_args: Sequence[str] = (),
) -> BatchResult:
    """Asks a model about all inputs that no earlier run into the same folder has done.

    A run that was killed is resumed by running it again: a shard is either done or not.

    Args:
        model: the SavedModel's folder.
        listing: the inputs.
        out: folder of the results, made if missing.
        kind: format of the results.
        workers: processes, 1 or more; each holds the model in its memory.
        beam_args: Beam pipeline options, which override those of a local run.

    Raises:
        ModelError: if there is no model.
        UnavailableError: if another run is writing into ``out``, or a worker fails.
    """
    items = {item.key: item for item in listing.items}
    busy = UnavailableError(f"another run is writing into {out}: wait for it, or give another --out")
    with lock_folder(out, busy):
        (out / _DONE).mkdir(exist_ok=True)
        earlier = _read_done(out)
        done_items = {item for record in earlier.values() for item in record["items"]}
        _remove_unfinished(out, earlier.keys())
        new = [item for key, item in items.items() if key not in done_items]
        mode = ["--direct_running_mode=multi_processing"] if workers > 1 else ["--direct_running_mode=in_memory"]
        options = PipelineOptions([*LOCAL_ARGUMENTS, *mode, f"--direct_num_workers={workers}", *beam_args])
        shards = list(_make_shards(new, str(out.resolve()), kind))
        sizes = {shard.id: len(shard.items) for shard in shards}

        def count_done() -> progress.Counts:
            return {"predicted": sum(sizes.get(file.stem, 0) for file in (out / _DONE).iterdir())}

        try:
            with (
                name_full_disk(str(out)),
                hide_step_errors(),
                progress.show_progress(len(new), "files", count_done),
                beam.Pipeline(options=options) as pipeline,
            ):
                _ = (
                    pipeline
                    | beam.Create(shards)
                    | beam.Reshuffle()  # spreads them over the workers
                    | RunInference(_ShardHandler(str(model.resolve())))
                )
        except RuntimeError as error:  # Beam turns whatever a worker raises into this
            *_, reason = str(error).strip().splitlines() or [repr(error)]
            raise UnavailableError(f"{reason}. What is done is kept: run it again to go on from there.") from error
        records = [record for name, record in _read_done(out).items() if name not in earlier]
    return BatchResult(
        sum(record["predicted"] for record in records),
        sum(record["quarantined"] for record in records),
        len(items) - len(new),
        dict(listing.passed_over),
        tuple(listing.columns),
    )


class _ShardHandler(ModelHandler[Shard, str, Predictor]):
    """Makes Beam load the model once per process, and hand over one shard at a time.

    The batches are the predictor's: Beam's own would mix shards, which could then only be written when all are
    predicted.
    """

    def __init__(self, model: str):
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._model = model

    def load_model(self) -> Predictor:
        return load(self._model)

    def run_inference(self, batch: Sequence[Shard], model: Predictor, inference_args: Any = None) -> Iterable[str]:
        for shard in batch:
            predict_shard(shard, model)
            yield shard.id

    def get_num_bytes(self, batch: Sequence[Shard]) -> int:
        return sum(len(item.path) for shard in batch for item in shard.items)


def predict_shard(shard: Shard, predictor: Predictor) -> None:
    """Asks about all inputs of a shard, and writes its files."""
    out = Path(shard.out)
    predicted = quarantined = 0
    quarantine_file = out / f"quarantine-{shard.id}.jsonl"

    def predict_rows(quarantine: BinaryIO) -> Iterator[Row]:
        nonlocal predicted, quarantined
        answers = predictor.predict_requests(read_items(shard.items, predictor.model.side_types))
        # A file of requests, which is a shard of its own, has any number of answers; other items have one each.
        items = repeat(shard.items[0]) if shard.items[0].is_request_file else iter(shard.items)
        for answer, item in zip(answers, items, strict=False):
            if isinstance(answer, Prediction):
                predicted += 1
                yield _build_row(answer, predictor.model.labels, item)
            else:
                quarantined += 1
                quarantine.write(json.dumps({"metadata": answer.id, "reason": answer.error}).encode() + b"\n")

    with open_whole(out / f"predictions-{shard.id}.{shard.kind}") as file, open_whole(quarantine_file) as quarantine:
        _WRITERS[shard.kind](predict_rows(quarantine), file)
    if not quarantined:
        quarantine_file.unlink()
    record = {
        "items": [item.key for item in shard.items],
        "model": str(predictor.model.folder),
        "predicted": predicted,
        "quarantined": quarantined,
    }
    write_whole(str(out / _DONE / f"{shard.id}.json"), json.dumps(record).encode())


def _build_row(answer: Prediction, names: Sequence[str], item: Item) -> Row:
    classes = [answer.classes[name] for name in names]
    row = {"metadata": answer.id, "label": answer.label, "score": answer.score, "classes": classes}
    optional = {"novelty": answer.novelty, "line": item.line or None, "kept": item.kept or None}
    return row | {name: value for name, value in optional.items() if value is not None}


def _write_json_lines(rows: Iterator[Row], file: BinaryIO) -> None:
    for row in rows:
        file.write(json.dumps(row, default=str).encode() + b"\n")


def _write_parquet(rows: Iterator[Row], file: BinaryIO) -> None:
    schema = pa.schema(
        {
            "metadata": pa.string(),
            "label": pa.string(),
            "score": pa.float32(),
            "classes": pa.list_(pa.float32()),
            "novelty": pa.float32(),
            "line": pa.int64(),
            "kept": pa.string(),
        }
    )
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, _ROWS_IN_GROUP)):
            writer.write_table(pa.Table.from_pylist([row | _encode_kept(row) for row in group], schema))


def _encode_kept(row: Row) -> dict[str, str]:
    """Returns the kept columns as JSON: those of the rows of a manifest may differ."""
    return {"kept": json.dumps(row["kept"], default=str)} if "kept" in row else {}


def _write_records(rows: Iterator[Row], file: BinaryIO) -> None:
    for row in rows:
        features = {"metadata": [row["metadata"].encode()], "label": [row["label"].encode()]}
        scores = {"score": [row["score"]], "classes": row["classes"]}
        own = {name: [row[name]] for name in ("novelty", "line") if name in row}
        kept = {name: [text.encode()] for name, text in _encode_kept(row).items()}
        file.write(tfrecord.frame_record(tfrecord.encode_example(features | scores | own | kept)))


_WRITERS: dict[ResultFormat, Callable[[Iterator[Row], BinaryIO], None]] = {
    "jsonl": _write_json_lines,
    "parquet": _write_parquet,
    "tfrecord": _write_records,
}


def _make_shards(items: Sequence[Item], out: str, kind: ResultFormat) -> Iterator[Shard]:
    request_files = [item for item in items if item.is_request_file]
    images = (item for item in items if not item.is_request_file)
    chunks = iter(lambda: tuple(islice(images, _IMAGES_IN_SHARD)), ())
    for chunk in chain(((item,) for item in request_files), chunks):
        yield Shard(uuid.uuid4().hex, chunk, out, kind)


def _read_done(out: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_bytes()) for file in (out / _DONE).glob("*.json")}


def _remove_unfinished(out: Path, done: Iterable[str]) -> None:
    for partial in chain(out.glob(f"{PARTIAL}*"), (out / _DONE).glob(f"{PARTIAL}*")):
        partial.unlink()
    finished = set(done)
    for file in out.iterdir():
        if (match := _RESULT_FILE.fullmatch(file.name)) and match[2] not in finished:
            file.unlink()
