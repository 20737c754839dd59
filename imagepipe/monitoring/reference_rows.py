"""Makes the reference of captured traffic: a file with the measures of training images, and answers to the eval split.

It has a row per image: ``split`` (train or eval), the measures, and of the eval split ``label``, ``score``, ``novelty``
and ``embedding`` (of some), as the model answered. Its metadata name the ``task``, the ``version`` and the ``run``.

Whatever the size of the data, it has at most 25,000 rows, which are at most some MB. They are drawn at random: records
may lie in any order.
"""

import io
import itertools
import json
import random
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imagepipe.base import filesystem
from imagepipe.base.names import FURTHER, ROWS
from imagepipe.base.tfrecord import decode_example, read_artifact, read_bytes_feature
from imagepipe.monitoring.measures import ANSWERS, EMBEDDING, KEY, MEASURES

_SCHEMA = pa.schema(
    {"split": pa.string()}
    | dict.fromkeys(MEASURES, pa.float64())
    | {"label": pa.string()}
    | dict.fromkeys(ANSWERS, pa.float64())
    | {EMBEDDING: pa.list_(pa.float16())}
)
_MAX_TRAINED, _MAX_EVALUATED, _MAX_EMBEDDED = 5000, 20_000, 500
_BATCH = 32

Row = dict[str, Any]

Embed = Callable[[list[bytes]], np.ndarray]
"""From encoded images to their embeddings, float ``[n, d]``."""


def collect_rows(train: str, evaluated: str, predictions: str, model: str | None, image: str) -> list[Row]:
    """Collects the rows of a model's reference.

    Args:
        train: folder of the train split's Examples, as ImportExampleGen writes them; a path or URI.
        evaluated: folder of the eval split's Examples.
        predictions: folder with the model's predictions of that split, as the component Predictions writes them.
        model: local folder of the SavedModel, which is asked for embeddings; None for no embeddings.
        image: name of the feature with the encoded image.

    Raises:
        FileNotFoundError: if the predictions are not there.
    """
    draw = random.Random(0)  # noqa: S311 (a sample, no secret); the same one each time
    with filesystem.open_read(f"{predictions}/{ROWS}") as opened:
        file = pq.ParquetFile(opened)
        count = file.metadata.num_rows
        chosen = draw.sample(range(count), min(count, _MAX_EVALUATED))
        evaluated_at, embedded_at = set(chosen), set(chosen[:_MAX_EMBEDDED])
        wanted = ["index", "candidate", "candidate_label", "candidate_novelty"]
        wanted += [name for measure in MEASURES for name in (measure, FURTHER + measure)]
        columns = [name for name in wanted if name in file.schema_arrow.names]
        batches = file.iter_batches(columns=columns)
        rows = [row for batch in batches for row in batch.to_pylist() if row["index"] in evaluated_at]
    embeddings = _embed(model, evaluated, image, embedded_at) if model else {}
    trained = _draw_measures(train, draw)
    return [*trained, *(_describe_answer(row, embeddings.get(row["index"])) for row in rows)]


def write_reference(path: str, rows: Iterable[Mapping[str, Any]], task: str, version: str, run: str) -> None:
    """Writes the file.

    Args:
        path: its path or URI.
        rows: with the columns of this module's description; those that are missing are null.
        task: of the model, a ``TaskName``.
        version: of the model, whose answers are there; '' if it is not known.
        run: that made it; '' if it is not known.
    """
    table = pa.Table.from_pylist([*rows], _SCHEMA)
    about = json.dumps({"task": task, "version": version, "run": run}).encode()
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({KEY: about}), content, compression="zstd")
    filesystem.write_whole(path, content.getvalue())


def _describe_answer(row: Row, embedding: Any) -> Row:
    measures = {name: _keep_number(row.get(name, row.get(FURTHER + name))) for name in MEASURES}
    answer = {"label": row["candidate_label"], "score": max(row["candidate"]), "novelty": row["candidate_novelty"]}
    return {"split": "eval", **measures, **answer, EMBEDDING: embedding}


def _draw_measures(split: str, draw: random.Random) -> list[Row]:
    """Returns the measures of some of a split's images, of which each is as likely as any other.

    A file may have one class only, or its records in an order: all are read, and few decoded (Vitter 1985: Random
    sampling with a reservoir, algorithm R).
    """
    drawn: list[Row] = []
    for number, record in enumerate(itertools.chain.from_iterable(read_artifact(split))):
        place = number if number < _MAX_TRAINED else draw.randrange(number + 1)
        if place < _MAX_TRAINED:
            drawn[place : place + 1] = [_read_measures(record)]
    return drawn


def _read_measures(record: bytes) -> Row:
    example = decode_example(record)
    return {"split": "train"} | {name: _keep_number(example[name][0]) for name in MEASURES if example.get(name)}


def _keep_number(value: Any) -> float | None:
    """Returns a number, None for what else TFRecords made elsewhere may have under its name."""
    return float(value) if isinstance(value, int | float) else None


def _embed(model: str, split: str, image: str, indices: Container[int]) -> dict[int, Any]:
    """Returns embeddings, float16 ``[d]``, of some images of a split by their index; none of old models."""
    embeddings: dict[int, Any] = {}
    embed = load_embed(model)
    if embed is None:
        return embeddings
    numbered = enumerate(itertools.chain.from_iterable(read_artifact(split)))
    records = ((index, record) for index, record in numbered if index in indices)
    while batch := list(itertools.islice(records, _BATCH)):
        vectors = embed([read_bytes_feature(record, image)[0] for _, record in batch])
        embeddings |= {index: vector for (index, _), vector in zip(batch, vectors.astype("float16"), strict=True)}
    return embeddings


def load_embed(model: str) -> Embed | None:
    """Loads a SavedModel, and returns its function from images to embeddings; None of old models, which have none."""
    import tensorflow as tf

    loaded = tf.saved_model.load(model)
    if "embed" not in loaded.signatures:
        return None

    def embed(images: list[bytes]) -> np.ndarray:
        metadata = tf.constant([""] * len(images), tf.string)
        answer = loaded.signatures["embed"](input=tf.constant(images, tf.string), metadata=metadata)
        return cast(np.ndarray, answer["embedding"].numpy())

    return embed
