"""Predictions: what the candidate and the champion say of each Example of the eval split, a row an image.

The Evaluator gives figures of the whole and of slices. Who wants to see the images behind a figure, or compare two
models image by image, reads these rows.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.utils import path_utils

from components.remote import local_outputs
from imagepipe.base.errors import ModelError
from imagepipe.base.features import Features, parse_features
from imagepipe.base.names import NAMES, ROWS
from imagepipe.deploy.saved_model import read_task
from imagepipe.deploy.storage import fetch_model
from imagepipe.serving.loaded_model import LoadedModel
from transform import datasets

_EXAMPLES, _MODEL = standard_component_specs.EXAMPLES_KEY, standard_component_specs.MODEL_KEY
_CHAMPION, _PREDICTIONS, _FEATURES = "champion", "predictions", "features"
_SPLIT = "eval"
_BATCH_SIZE = 32  # as the Evaluator's: from which on InceptionV3 gets no faster on a CPU
_BATCHES_PER_GROUP = 32  # rows of a Parquet group, over the size of a batch

_TEXT, _INTEGER, _NUMBER, _SCORES = pa.string(), pa.int64(), pa.float64(), pa.list_(pa.float32())
_COLUMNS = {
    "index": _INTEGER,
    "id": _TEXT,
    "sha256": _TEXT,
    "labels": pa.list_(_TEXT),
    "target": _NUMBER,
    "candidate": _SCORES,
    "candidate_label": _TEXT,
    "champion": _SCORES,
    "champion_label": _TEXT,
    "width": _INTEGER,
    "height": _INTEGER,
}
_READ = ("sha256", "width", "height")  # from features of the same name
_FURTHER = "x_"

_Value = bytes | int | float
_Record = Mapping[str, list[_Value]]


class Executor(base_executor.BaseExecutor):
    """Asks both models."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the rows, ``predictions.parquet``, and the names of the models' outputs, ``names.json``."""
        self._log_startup(input_dict, output_dict, exec_properties)
        candidate, champion = (_saved_model(input_dict[key]) for key in (_MODEL, _CHAMPION))
        if candidate is None:
            raise ModelError("there is no model to ask")
        split = artifact_utils.get_split_uri(input_dict[_EXAMPLES], _SPLIT)
        with local_outputs(output_dict):
            folder = Path(artifact_utils.get_single_uri(output_dict[_PREDICTIONS]))
            predict(split, candidate, champion, parse_features(json.loads(exec_properties[_FEATURES])), folder)


def _saved_model(artifacts: list[types.Artifact]) -> Path | None:
    folder = path_utils.serving_model_path(artifact_utils.get_single_uri(artifacts))
    return fetch_model(folder) if fileio.exists(folder) else None


def predict(split: str, candidate: Path, champion: Path | None, features: Features, folder: Path) -> None:
    """Asks models about a split, and writes what they say.

    Memory holds a batch of images and some thousand rows, whatever the size of the split. It is read twice: first for
    the names and types of its columns.

    Args:
        split: the folder of the split's Examples.
        candidate: the SavedModel's folder.
        champion: likewise; None if there is none.
        features: which feature of an Example is what.
        folder: where the two files go; made if missing.

    Raises:
        ModelError: if a model can't be loaded.
    """
    task = read_task(candidate)
    records = datasets.examples(split)
    columns = _COLUMNS | _further_columns(map(_values, records.as_numpy_iterator()), features)
    ask = {"candidate": LoadedModel(candidate, "tf_examples")}
    if champion:
        ask["champion"] = LoadedModel(champion, "tf_examples")
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "task": task,
        "candidate": ask["candidate"].labels,
        "champion": ask["champion"].labels if champion else None,
    }
    (folder / NAMES).write_text(json.dumps(names) + "\n")
    with pq.ParquetWriter(folder / ROWS, pa.schema(columns.items())) as writer:
        batches = _batched(enumerate(records.as_numpy_iterator()), _BATCH_SIZE)
        for group in _batched(batches, _BATCHES_PER_GROUP):
            rows = [row for batch in group for row in _rows(batch, ask, features, task, columns)]
            writer.write_table(pa.Table.from_pylist(rows, pa.schema(columns.items())))


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _values(record: bytes) -> dict[str, list[_Value]]:
    """The features of a serialized Example that have a type."""
    found = tf.train.Example.FromString(record).features.feature
    kinds = {name: feature.WhichOneof("kind") for name, feature in found.items()}
    return {name: list(getattr(found[name], kind).value) for name, kind in kinds.items() if kind}


def _further_columns(records: Iterable[_Record], features: Features) -> dict[str, pa.DataType]:
    """Types of the columns that hold at most one value in each Example and have no place of their own."""
    own = {features.input, features.label, features.metadata, *_READ}
    kinds: dict[str, set[pa.DataType]] = {}
    several = set()
    for record in records:
        for name, values in record.items():
            if name not in own and values:
                kinds.setdefault(name, set()).add(_TEXT if isinstance(values[0], bytes) else _NUMBER)
                if len(values) > 1:
                    several.add(name)
    return {
        _FURTHER + name: _NUMBER if found == {_NUMBER} else _TEXT
        for name, found in sorted(kinds.items())
        if name not in several
    }


def _rows(
    batch: list[tuple[int, bytes]],
    ask: Mapping[str, LoadedModel],
    features: Features,
    task: str,
    columns: Mapping[str, pa.DataType],
) -> Iterator[dict[str, Any]]:
    records = [record for _, record in batch]
    answers_by_model = {name: iter(model.predict_examples(records)) for name, model in ask.items()}
    for index, record in batch:
        values = _values(record)
        row: dict[str, Any] = {"index": index, "id": _first(values, features.metadata, _TEXT) or f"{_SPLIT}/{index}"}
        if task == "regression":
            row |= {"labels": [], "target": _first(values, features.label, _NUMBER)}
        else:
            row["labels"] = [_text(value) for value in values.get(features.label, [])]
        for name, kind in columns.items():
            if name in _READ or name.startswith(_FURTHER):
                row[name] = _first(values, name.removeprefix(_FURTHER), kind)
        for name, answers in answers_by_model.items():
            classes, row[f"{name}_label"] = next(answers)
            row[name] = classes.tolist()
        yield row


def _first(record: _Record, name: str, kind: pa.DataType) -> Any:
    """The value of a feature, None if there is none or it is of another kind."""
    values = record.get(name)
    if not values:
        return None
    if kind == _TEXT:
        return _text(values[0])
    if isinstance(values[0], bytes):
        return None
    return int(values[0]) if kind == _INTEGER else float(values[0])


def _text(value: _Value) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class _Spec(types.ComponentSpec):
    PARAMETERS = {_FEATURES: component_spec.ExecutionParameter(type=str)}  # noqa: RUF012 (TFX's way)
    INPUTS = {  # noqa: RUF012
        _EXAMPLES: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        _MODEL: component_spec.ChannelParameter(type=standard_artifacts.Model),
        _CHAMPION: component_spec.ChannelParameter(type=standard_artifacts.Model),
    }
    OUTPUTS = {  # noqa: RUF012
        _PREDICTIONS: component_spec.ChannelParameter(type=standard_artifacts.InferenceResult)
    }


class Predictions(base_component.BaseComponent):
    """Asks the candidate and the champion about each Example of the split ``eval``.

    Its output ``predictions`` is a folder with ``predictions.parquet``, a row an Example in the order of the files:

    - ``index`` (int64, from 0), ``id`` (the metadata, else ``eval/<index>``), ``sha256``;
    - ``labels``: one in a classification, any number with several labels, none in a regression, which has ``target``;
    - ``candidate``, ``champion``: the outputs ``classes``, float32; ``candidate_label``, ``champion_label``: in words;
    - ``width``, ``height``; and each further column of one value, as ``x_<name>``, numbers as float64, bytes as text.

    What is missing is null. ``names.json`` has the ``task``, and of each model (``candidate``, ``champion``) the names
    of its outputs in their order, null where there is no champion.

    Args:
        examples: channel of the Examples.
        model: channel of the candidate.
        champion: channel of the champion; an empty model means that there is none.
        features: which feature of an Example is what, as JSON.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self, examples: types.BaseChannel, model: types.BaseChannel, champion: types.BaseChannel, features: str
    ):
        predictions = types.Channel(type=standard_artifacts.InferenceResult)
        super().__init__(
            spec=_Spec(examples=examples, model=model, champion=champion, features=features, predictions=predictions)
        )
