"""How a worker asks a model about a shard of a batch prediction.

A worker on any machine takes the same steps; all that it needs is in files that a path or URI names. An attempt at a
shard writes files under a name of its own, and in the end one that says so: ``results`` moves those of one attempt into
place. So attempts disturb each other at no time, be there several, killed ones or late ones.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, repeat
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from imagepipe.base import filesystem, tfrecord
from imagepipe.capture.batch import ShardCapture
from imagepipe.capture.rows import Answered, CaptureOptions
from imagepipe.deploy.versions import is_version
from imagepipe.serving.listing import Item
from imagepipe.serving.predictor import Embedding, Predictor
from imagepipe.serving.reading import read_items
from imagepipe.serving.request_files import EMPTY
from imagepipe.serving.spool import Shard, read_shard
from imagepipe.serving.types import Prediction, Request

ResultFormat = Literal["jsonl", "parquet", "tfrecord"]

_ROWS_IN_GROUP = 4096  # of Parquet: results held in memory

Row = dict[str, Any]


def predict_shard(
    shard: Shard,
    predictor: Predictor,
    attempts: str,
    kind: ResultFormat,
    model: str,
    options: CaptureOptions | None = None,
) -> None:
    """Asks about all inputs of a shard, as one attempt of any number.

    Args:
        shard: the inputs.
        predictor: the model.
        attempts: folder for the files.
        kind: format of the results.
        model: where the model comes from, for the record.
        options: of the capture of the answers; None for no capture.
    """
    attempt = f"{attempts}/{shard.id}-{uuid.uuid4().hex}"
    capture = ShardCapture(options, shard.id, f"{attempt}.capture") if options else None
    version = PurePosixPath(model).name

    def observe(sent: Request, decoded: Request, answer: Prediction, embedding: Embedding) -> None:
        if capture:
            classes = [answer.classes[name] for name in predictor.model.labels]
            answered = (version if is_version(version) else "1", answer.label, answer.score, classes, answer.novelty)
            capture.add(Answered(time.time(), None, sent.id, *answered, embedding, sent.image, decoded.image, None))

    items = read_shard(shard)
    predicted = quarantined = 0
    is_empty = False
    unused: dict[str, None] = {}

    def predict_rows(quarantine: BinaryIO) -> Iterator[Row]:
        nonlocal predicted, quarantined, is_empty
        answers = predictor.predict_requests(read_items(items, predictor.model.side_types, unused), observe)
        # A file of requests, which is a shard of its own, has any number of answers; other items have one each.
        asked = repeat(items[0]) if items[0].is_request_file else iter(items)
        for answer, item in zip(answers, asked, strict=False):
            if isinstance(answer, Prediction):
                predicted += 1
                yield _build_row(answer, predictor.model.labels, item)
            else:
                quarantined += 1
                is_empty = item.is_request_file and answer.error == EMPTY
                quarantine.write(json.dumps({"metadata": answer.id, "reason": answer.error}).encode() + b"\n")

    with _create(f"{attempt}.predictions") as file, _create(f"{attempt}.quarantine") as quarantine:
        _WRITERS[kind](predict_rows(quarantine), file)
    if capture:
        capture.flush()
    record = {
        "items": [item.key for item in items],
        "model": model,
        "format": kind,
        "predicted": predicted,
        "quarantined": quarantined,
        "is_empty": is_empty,
        "unused": list(unused),
        "capture": options.folder if options else None,
    }
    filesystem.write_whole(f"{attempt}.json", json.dumps(record).encode())


@contextmanager
def _create(path: str) -> Iterator[BinaryIO]:
    """Opens a file to be written, which outlasts a power cut if it is written to its end."""
    with filesystem.create(path) as file:
        yield file
        if not filesystem.is_uri(path):
            file.flush()
            os.fsync(file.fileno())


def _build_row(answer: Prediction, names: Sequence[str], item: Item) -> Row:
    classes = [answer.classes[name] for name in names]
    row = {"metadata": answer.id, "label": answer.label, "score": answer.score, "classes": classes}
    optional = {"novelty": answer.novelty, "line": item.line or None, "kept": _spell_infinite(item.kept) or None}
    return row | {name: value for name, value in optional.items() if value is not None}


def _spell_infinite(kept: Mapping[str, Any]) -> Row:
    """Returns kept values with text in place of numbers that JSON doesn't have."""
    return {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in kept.items()}


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
