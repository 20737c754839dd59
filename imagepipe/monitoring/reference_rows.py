"""Makes the reference of captured traffic: a file with the measures of training images, and answers to the eval split.

It has a row per image: ``split`` (train or eval), the measures, and of the eval split ``label``, ``score``, ``novelty``
and ``embedding`` (of some), as the model answered. Its metadata name the ``task``, the ``version`` and the ``run``.

Whatever the size of the data, it has at most 25,000 rows, which are at most some MB.
"""

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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
    with filesystem.open_read(f"{predictions}/{ROWS}") as opened:
        file = pq.ParquetFile(opened)
        step = -(-file.metadata.num_rows // _MAX_EVALUATED) or 1
        wanted = ["index", "candidate", "candidate_label", "candidate_novelty"]
        wanted += [name for measure in MEASURES for name in (measure, FURTHER + measure)]
        columns = [name for name in wanted if name in file.schema_arrow.names]
        rows = [
            row for batch in file.iter_batches(columns=columns) for row in batch.to_pylist() if row["index"] % step == 0
        ]
    every = step * (-(-len(rows) // _MAX_EMBEDDED) or 1)
    embeddings = _embed(model, evaluated, image, every) if model else {}
    trained = itertools.islice(_read_measures(train), _MAX_TRAINED)
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


def _read_measures(split: str) -> Iterator[Row]:
    """Yields the measures of a split's images, those of all files in turn: a file may have one class only."""
    for records in itertools.zip_longest(*read_artifact(split)):
        for example in map(decode_example, filter(None, records)):
            yield {"split": "train"} | {name: _keep_number(example[name][0]) for name in MEASURES if example.get(name)}


def _keep_number(value: Any) -> float | None:
    """Returns a number, None for what else TFRecords made elsewhere may have under its name."""
    return float(value) if isinstance(value, int | float) else None


def _embed(model: str, split: str, image: str, every: int) -> dict[int, Any]:
    """Returns embeddings, float16 ``[d]``, of every n-th image of a split by its index; none of old models."""
    import tensorflow as tf

    loaded = tf.saved_model.load(model)
    embeddings: dict[int, Any] = {}
    if "embed" not in loaded.signatures:
        return embeddings
    records = itertools.islice(enumerate(itertools.chain.from_iterable(read_artifact(split))), 0, None, every)
    while batch := list(itertools.islice(records, _BATCH)):
        images = tf.constant([read_bytes_feature(record, image)[0] for _, record in batch], tf.string)
        metadata = tf.constant([""] * len(batch), tf.string)
        vectors = loaded.signatures["embed"](input=images, metadata=metadata)["embedding"].numpy()
        embeddings |= {index: vector for (index, _), vector in zip(batch, vectors.astype("float16"), strict=True)}
    return embeddings
