"""The reference of captured traffic: a file with the measures of training images, and answers about the eval split.

``reference.parquet`` has a row per image: ``split`` (train or eval), the measures, and of the eval split ``label``,
``score``, ``novelty`` and ``embedding`` (of some), as the model answered. Its metadata name the ``task``, the
``version`` and the ``run``.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.names import TaskName
from imagepipe.monitoring.comparison import ANSWERS, EMBEDDING, MEASURES, Sample
from imagepipe.monitoring.traffic import split_label, to_numbers

REFERENCE = "reference.parquet"

_SCHEMA = pa.schema(
    {"split": pa.string()}
    | dict.fromkeys(MEASURES, pa.float64())
    | {"label": pa.string()}
    | dict.fromkeys(ANSWERS, pa.float64())
    | {EMBEDDING: pa.list_(pa.float16())}
)
_KEY = b"imagepipe"


@dataclass(frozen=True)
class Reference:
    """The other side of a comparison with traffic.

    Attributes:
        task: of the model.
        version: of the model, whose answers are there; '' if it was not pushed.
        run: that made it.
        trained: images of the train split.
        evaluated: images of the eval split.
    """

    task: TaskName
    version: str
    run: str
    trained: Sample
    evaluated: Sample


def write_reference(path: str, rows: Iterable[Mapping[str, Any]], task: TaskName, version: str, run: str) -> None:
    """Writes the file.

    Args:
        path: its path.
        rows: with the columns of this module's description; those that are missing are null.
        task: see ``Reference``.
        version: see ``Reference``.
        run: see ``Reference``.
    """
    table = pa.Table.from_pylist([*rows], _SCHEMA)
    about = json.dumps({"task": task, "version": version, "run": run}).encode()
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_KEY: about}), content, compression="zstd")
    filesystem.write_whole(path, content.getvalue())


def read_reference(path: str) -> Reference:
    """Reads the file.

    Raises:
        ModelError: if it is none.
    """
    try:
        with filesystem.open_read(path) as file:
            table = pq.read_table(file)
        about = json.loads(table.schema.metadata[_KEY])
        trained, evaluated = (table.filter(pc.equal(table["split"], split)) for split in ("train", "eval"))
        return Reference(
            about["task"],
            about["version"],
            about["run"],
            _make_sample(trained, about["task"]),
            _make_sample(evaluated, about["task"]),
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is no reference of `imagepipe monitor`, or is damaged: {error}. Delete it") from error


def _make_sample(table: pa.Table, task: TaskName) -> Sample:
    vectors = [np.asarray(row, np.float32) for row in table[EMBEDDING].drop_null().to_pylist()]
    labels = [] if task == "regression" else table["label"].drop_null().to_pylist()
    return Sample(
        {name: to_numbers(table[name]) for name in (*MEASURES, *ANSWERS)},
        [split_label(label, task) for label in labels],
        np.stack(vectors) if vectors else None,
    )
