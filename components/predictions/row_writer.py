"""Writes one row per Example: its label, and what the candidate and the champion answered."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.served_model import load_as_served, load_champion
from imagepipe.base.features import Features
from imagepipe.base.names import FURTHER, NAMES, ROWS
from imagepipe.base.tfrecord import Value, decode_example, to_text
from imagepipe.deploy.saved_model import read_task
from imagepipe.serving.loaded_model import LoadedModel
from transform.examples import read_serialized

SPLIT = "eval"

_BATCH_SIZE = 32  # as the Evaluator's: beyond it InceptionV3 gets no faster on a CPU
_BATCHES_PER_GROUP = 32  # so many batches are one row group of the Parquet file

_TEXT, _INTEGER, _NUMBER, _SCORES = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.float32())
_COLUMNS = {
    "index": _INTEGER,
    "id": _TEXT,
    "sha256": _TEXT,
    "labels": pa.list_(_TEXT),
    "target": _NUMBER,
    "candidate": _SCORES,
    "candidate_label": _TEXT,
    "candidate_novelty": _NUMBER,
    "champion": _SCORES,
    "champion_label": _TEXT,
    "champion_novelty": _NUMBER,
    "width": _INTEGER,
    "height": _INTEGER,
}
_SAME_NAME = ("sha256", "width", "height")  # columns that hold the feature of the same name

_Example = Mapping[str, list[Value]]


def write_predictions(split: str, candidate: Path, champion: Path | None, features: Features, folder: Path) -> None:
    """Sends the Examples of a split to both models and writes their answers.

    Memory holds a batch of images and some thousand rows, whatever the size of the split. It is read twice: first for
    the names and types of its columns.

    Args:
        split: folder of the split's Examples.
        candidate: folder of the candidate's SavedModel.
        champion: folder of the champion's, None if there is none.
        features: names of an Example's features.
        folder: folder for the two files; created if missing.

    Raises:
        ModelError: if a model can't be loaded.
    """
    task = read_task(candidate)
    records = read_serialized(split)
    columns = _COLUMNS | _choose_further_columns(map(decode_example, records.as_numpy_iterator()), features)
    models = {"candidate": load_as_served(candidate, "tf_examples")}
    if champion:
        models["champion"] = load_champion(champion, "tf_examples")
    names = {
        "task": task,
        "candidate": models["candidate"].labels,
        "champion": models["champion"].labels if champion else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAMES).write_text(json.dumps(names) + "\n", encoding="utf-8")
    schema = pa.schema(columns.items())
    with pq.ParquetWriter(folder / ROWS, schema) as writer:
        batches = _batch(enumerate(records.as_numpy_iterator()), _BATCH_SIZE)
        for group in _batch(batches, _BATCHES_PER_GROUP):
            rows = [row for batch in group for row in _build_rows(batch, models, features, task, columns)]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _batch(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _choose_further_columns(examples: Iterable[_Example], features: Features) -> dict[str, pa.DataType]:
    """Returns the types of the columns for features that have at most one value and no column of their own."""
    own = {features.input, features.label, features.metadata, *_SAME_NAME}
    types: dict[str, set[pa.DataType]] = {}
    several = set()  # names of features with more than one value
    for example in examples:
        for name, values in example.items():
            if name not in own and values:
                types.setdefault(name, set()).add(_TEXT if isinstance(values[0], bytes) else _NUMBER)
                if len(values) > 1:
                    several.add(name)
    return {
        FURTHER + name: _NUMBER if types[name] == {_NUMBER} else _TEXT for name in sorted(types) if name not in several
    }


def _build_rows(
    batch: list[tuple[int, bytes]],
    models: Mapping[str, LoadedModel],
    features: Features,
    task: str,
    columns: Mapping[str, pa.DataType],
) -> Iterator[dict[str, Any]]:
    records = [record for _, record in batch]
    answers_by_model = {name: iter(model.predict_examples(records)) for name, model in models.items()}
    for index, record in batch:
        example = decode_example(record)
        row: dict[str, Any] = {
            "index": index,
            "id": _read_value(example, features.metadata, _TEXT) or f"{SPLIT}/{index}",
        }
        if task == "regression":
            row |= {"labels": [], "target": _read_value(example, features.label, _NUMBER)}
        else:
            row["labels"] = [to_text(value) for value in example.get(features.label, [])]
        for name, column_type in columns.items():
            if name in _SAME_NAME or name.startswith(FURTHER):
                row[name] = _read_value(example, name.removeprefix(FURTHER), column_type)
        for name, answers in answers_by_model.items():
            classes, row[f"{name}_label"], row[f"{name}_novelty"] = next(answers)
            row[name] = classes.tolist()
        yield row


def _read_value(example: _Example, name: str, column_type: pa.DataType) -> Any:
    """Returns the first value of a feature, None if there is none or it doesn't fit the column."""
    values = example.get(name)
    if not values:
        return None
    if column_type == _TEXT:
        return to_text(values[0])
    if isinstance(values[0], bytes):
        return None
    return int(values[0]) if column_type == _INTEGER else float(values[0])
