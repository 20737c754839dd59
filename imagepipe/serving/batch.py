"""Batch prediction, on Beam: from images or files of requests to files of predictions, shard by shard.

In the folder of the results, for each shard:

- ``predictions-<id>.jsonl`` (or ``.parquet``, ``.tfrecord``): ``metadata`` (the image's path, or the request's own),
  ``label``, ``score`` and ``classes``, as the model's signature gives them;
- ``quarantine-<id>.jsonl``, if there were any: what could not be asked about, and why;
- ``done/<id>.json``, written last: what the shard was made of. Without it the shard does not count, and the next run
  takes its files away and makes it again. What is in none of these is new.
"""

import csv
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from imagepipe.base import progress, tfrecord
from imagepipe.base.errors import ModelError, UnavailableError
from imagepipe.base.filesystem import locked, write_whole
from imagepipe.serving import requests
from imagepipe.serving.image_files import image_files
from imagepipe.serving.model import Model, predict_all
from imagepipe.serving.predictions import Prediction

Format = Literal["jsonl", "parquet", "tfrecord"]

# What a kill may cost: some seconds of a GPU, half a minute of two cores. A file of requests is a shard as it is.
_IMAGES_IN_SHARD = 256
_ROWS_IN_GROUP = 4096  # of Parquet: how many results are held in memory
_DONE = "done"
_LOCAL = ("--runner=DirectRunner", "--no_pipeline_type_check")
_OURS = re.compile(r"(predictions|quarantine)-([0-9a-f]{32})\.(jsonl|parquet|tfrecord)")

Row = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A unit of work.

    Attributes:
        id: its name.
        items: absolute paths of images, or of one file of requests.
        out: the results' folder.
        kind: their format.
    """

    id: str
    items: tuple[str, ...]
    out: str
    kind: Format


@dataclass(frozen=True)
class BatchResult:
    """What became of the inputs that were new: read = predicted + quarantined.

    Attributes:
        predicted: those with a prediction.
        quarantined: those set aside, each with its reason.
        already: files that an earlier run was done with; not part of the sum.
    """

    predicted: int
    quarantined: int
    already: int

    def __str__(self) -> str:
        return (
            f"{self.predicted + self.quarantined:,} read = {self.predicted:,} predicted + {self.quarantined:,} "
            f"quarantined; {self.already:,} files were done already"
        )


def run(
    model: Path, source: str, out: Path, kind: Format = "jsonl", workers: int = 1, beam_args: Sequence[str] = ()
) -> BatchResult:
    """Asks a model about all images of a source that no earlier run into the same folder was done with.

    A run that was killed is gone on with by running it again: a shard is done or it is not.

    Args:
        model: the SavedModel's folder.
        source: an image, a folder or a glob of images; files of requests, see ``serving.requests``; or a CSV with the
            column ``path``, relative to the CSV or absolute.
        out: the results' folder, made if missing.
        kind: the results' format.
        workers: processes, 1 or more; each has the model in its memory.
        beam_args: Beam pipeline options, which go over those of a local run.

    Raises:
        ModelError: if there is no model or no input.
        UnavailableError: if another run is writing into ``out``, or a worker fails.
    """
    items = dict.fromkeys(os.path.abspath(path) for path in _items(source))  # noqa: PTH100 (keeps symbolic links)
    busy = UnavailableError(f"another run is writing into {out}: wait for it, or give another --out")
    with locked(out, busy):
        (out / _DONE).mkdir(exist_ok=True)
        before = _done(out)
        known = {item for record in before.values() for item in record["items"]}
        _remove_unfinished(out, before.keys())
        new = [item for item in items if item not in known]
        mode = ["--direct_running_mode=multi_processing"] if workers > 1 else ["--direct_running_mode=in_memory"]
        options = PipelineOptions([*_LOCAL, *mode, f"--direct_num_workers={workers}", *beam_args])
        shards = list(_shards(new, str(out.resolve()), kind))
        sizes = {shard.id: len(shard.items) for shard in shards}

        def counts() -> progress.Counts:
            return {"predicted": sum(sizes.get(file.stem, 0) for file in (out / _DONE).iterdir())}

        try:
            with progress.show_progress(len(new), "files", counts), beam.Pipeline(options=options) as pipeline:
                _ = (
                    pipeline
                    | beam.Create(shards)
                    | beam.Reshuffle()  # spreads them over the workers
                    | RunInference(_Handler(str(model.resolve())))
                )
        except RuntimeError as error:  # into which Beam turns whatever a worker raises
            *_, words = str(error).strip().splitlines() or [repr(error)]
            raise UnavailableError(f"{words}. What is done is kept: run it again to go on from there.") from error
        made = [record for name, record in _done(out).items() if name not in before]
    return BatchResult(
        sum(record["predicted"] for record in made),
        sum(record["quarantined"] for record in made),
        len(items) - len(new),
    )


class _Handler(ModelHandler[Shard, str, Model]):
    """Lets Beam load the model once in each process, and gives it a shard at a time.

    The batches are those of ``predict_all``: Beam's own would mix shards, which could then only be written when all
    are predicted.
    """

    def __init__(self, model: str):
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._model = model

    def load_model(self) -> Model:
        return Model(Path(self._model))

    def run_inference(self, batch: Sequence[Shard], model: Model, inference_args: Any = None) -> Iterable[str]:
        for shard in batch:
            predict_shard(shard, model)
            yield shard.id

    def get_num_bytes(self, batch: Sequence[Shard]) -> int:
        return sum(len(item) for shard in batch for item in shard.items)


def predict_shard(shard: Shard, model: Model) -> None:
    """Asks about all of a shard, and writes its files."""
    out = Path(shard.out)
    predicted = quarantined = 0
    set_aside = out / f"quarantine-{shard.id}.jsonl"

    def rows(quarantine: TextIO) -> Iterator[Row]:
        nonlocal predicted, quarantined
        for answer in predict_all(model, requests.of_files(map(Path, shard.items))):
            if isinstance(answer, Prediction):
                predicted += 1
                yield _row(answer, model.names)
            else:
                quarantined += 1
                quarantine.write(json.dumps({"metadata": answer.id, "reason": answer.error}) + "\n")

    with (out / f"predictions-{shard.id}.{shard.kind}").open("wb") as file, set_aside.open("w") as quarantine:
        _WRITERS[shard.kind](rows(quarantine), file)
    if not quarantined:
        set_aside.unlink()
    record = {"items": shard.items, "model": str(model.folder), "predicted": predicted, "quarantined": quarantined}
    write_whole(str(out / _DONE / f"{shard.id}.json"), json.dumps(record).encode())


def _row(answer: Prediction, names: Sequence[str]) -> Row:
    classes = [answer.classes[name] for name in names]
    return {"metadata": answer.id, "label": answer.label, "score": answer.score, "classes": classes}


def _write_json_lines(rows: Iterator[Row], file: BinaryIO) -> None:
    for row in rows:
        file.write(json.dumps(row).encode() + b"\n")


def _write_parquet(rows: Iterator[Row], file: BinaryIO) -> None:
    schema = pa.schema(
        {"metadata": pa.string(), "label": pa.string(), "score": pa.float32(), "classes": pa.list_(pa.float32())}
    )
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, _ROWS_IN_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def _write_records(rows: Iterator[Row], file: BinaryIO) -> None:
    for row in rows:
        features = {"metadata": [row["metadata"].encode()], "label": [row["label"].encode()]}
        scores = {"score": [row["score"]], "classes": row["classes"]}
        file.write(tfrecord.frame_record(tfrecord.encode_example(features | scores)))


_WRITERS: dict[Format, Callable[[Iterator[Row], BinaryIO], None]] = {
    "jsonl": _write_json_lines,
    "parquet": _write_parquet,
    "tfrecord": _write_records,
}


def _items(source: str) -> list[Path]:
    path = Path(source)
    if path.suffix.lower() != ".csv":
        return image_files([source])
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                raise ModelError(f"{path} has no column 'path', only {', '.join(rows.fieldnames or ['nothing'])}")
            found = []
            for row in rows:
                if not row["path"]:
                    raise ModelError(f"{path}, line {rows.line_num}: no path")
                found.append(path.parent / row["path"])
            return found
    except (csv.Error, UnicodeDecodeError) as error:
        raise ModelError(f"{path} can't be read as CSV: {error}") from error


def _shards(items: Sequence[str], out: str, kind: Format) -> Iterator[Shard]:
    whole = dict.fromkeys(item for item in items if requests.is_file_of_requests(Path(item)))
    images = iter([item for item in items if item not in whole])
    chunks = iter(lambda: tuple(islice(images, _IMAGES_IN_SHARD)), ())
    for chunk in chain(((item,) for item in whole), chunks):
        yield Shard(uuid.uuid4().hex, chunk, out, kind)


def _done(out: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_bytes()) for file in (out / _DONE).glob("*.json")}


def _remove_unfinished(out: Path, done: Iterable[str]) -> None:
    finished = set(done)
    for file in out.iterdir():
        if (ours := _OURS.fullmatch(file.name)) and ours[2] not in finished:
            file.unlink()
