"""Reads the reference of captured traffic, the file of ``imagepipe.monitoring.reference_rows``."""

import json
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.names import REFERENCE, TaskName
from imagepipe.monitoring.measures import ANSWERS, EMBEDDING, KEY, MEASURES, Sample
from imagepipe.monitoring.traffic import split_label, to_numbers


@dataclass(frozen=True)
class Reference:
    """The other side of a comparison with traffic.

    Attributes:
        task: of the model.
        version: of the model, whose answers are there; '' if it was not pushed.
        run: that made it; '' if it is not known, as of a version's own file.
        trained: images of the train split.
        evaluated: images of the eval split.
    """

    task: TaskName
    version: str
    run: str
    trained: Sample
    evaluated: Sample


def read_reference(path: str) -> Reference:
    """Reads the file.

    Raises:
        ModelError: if it is none.
    """
    try:
        with filesystem.open_read(path) as file:
            table = pq.read_table(file)
        about = json.loads(table.schema.metadata[KEY])
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


def find_own_reference(model: str) -> Reference | None:
    """Returns the reference that a version has in its folder; None of a model that was not pushed, or long ago.

    Args:
        model: folder or URI of the SavedModel; its name is the version.

    Raises:
        ModelError: if it is damaged.
    """
    file = f"{model}/{REFERENCE}"
    if not filesystem.exists(file):
        return None
    return replace(read_reference(file), version=PurePosixPath(model).name)


def _make_sample(table: pa.Table, task: TaskName) -> Sample:
    vectors = [np.asarray(row, np.float32) for row in table[EMBEDDING].drop_null().to_pylist()]
    labels = [] if task == "regression" else table["label"].drop_null().to_pylist()
    return Sample(
        {name: to_numbers(table[name]) for name in (*MEASURES, *ANSWERS)},
        [split_label(label, task) for label in labels],
        np.stack(vectors) if vectors else None,
    )
