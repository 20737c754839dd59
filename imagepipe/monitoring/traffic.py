"""Captured traffic, read part by part: by day and version, with a bounded sample of each."""

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.names import TaskName
from imagepipe.capture.files import list_parts
from imagepipe.monitoring.measures import ANSWERS, EMBEDDING, MEASURES, Sample

MAX_SAMPLE = 20_000
"""Images of a day and version that are compared, drawn at random; all are counted."""

MAX_VECTORS = 1000
"""Images whose embeddings are compared."""

_SHADOW, _ERROR = "shadow", "error"
_LATER = {_SHADOW: pa.bool_(), _ERROR: pa.string()}  # columns that files of older servers lack
_NUMBERS = (*MEASURES, *ANSWERS, "milliseconds")
_COLUMNS = ["time", "request_id", "metadata", "version", "label", EMBEDDING, *_NUMBERS]


class Part(NamedTuple):
    """A day, in UTC as YYYY-MM-DD, and a version."""

    day: str
    version: str

    def __str__(self) -> str:
        return f"{self.day}, version {self.version}"


@dataclass
class Traffic:
    """Answers of one version, of a day or several.

    Attributes:
        images: number of all.
        labels: how many of all had each label, as answered.
        sample: the captured columns but the image, ``file`` and ``row`` to find that, of at most MAX_SAMPLE images
            drawn at random, in random order; ``embedding`` of the first MAX_VECTORS.
        errors: captured requests that were not answered, by reason.
    """

    images: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    sample: Any = None  # pa.Table, of which mypy knows nothing
    errors: Counter[str] = field(default_factory=Counter)


def read_traffic(folder: str, since: datetime | None = None) -> dict[Part, Traffic]:
    """Reads a capture.

    Args:
        folder: its path or URI.
        since: leaves out what was answered before.

    Returns:
        By day and version, in their order.

    Raises:
        ModelError: if there is nothing, or a file can't be read.
    """
    traffic: dict[Part, Traffic] = {}
    for file, table in read_tables(folder, _COLUMNS, since, with_errors=True):
        days = table["time"].cast(pa.date32()).cast(pa.string()).to_pylist()
        parts = list(zip(days, table["version"].to_pylist(), strict=True))
        numbers = np.stack([table["time"].cast(pa.int64()).to_numpy(), table["row"].to_numpy()], axis=1)
        keys = zip(numbers, table["metadata"].to_pylist(), strict=True)
        # Rows are drawn by a hash: at random, the same ones each time, and of a request each by itself.
        hashes = [zlib.crc32((metadata or b"") + pair.tobytes()) for pair, metadata in keys]
        placed = table.append_column("file", pa.array([file] * len(table), pa.string()))
        placed = placed.append_column("hash", pa.array(hashes, pa.int64()))
        for part in set(parts):
            rows = [number for number, other in enumerate(parts) if other == part]
            _add(traffic.setdefault(Part(*part), Traffic()), placed.take(rows))
    if not traffic:
        raise ModelError(f"{folder}: no captured traffic{f' since {since:%Y-%m-%d %H:%M} UTC' if since else ''}")
    return {part: traffic[part] for part in sorted(traffic)}


@contextlib.contextmanager
def explain_damage(path: str) -> Iterator[None]:
    """Names the file of a capture that is read within the block, if it is damaged or none.

    Raises:
        ModelError: if it is.
        OSError: if it can't be reached.
    """
    try:
        yield
    except (pa.ArrowException, KeyError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's, of damaged pages, have none
            raise
        raise ModelError(
            f"{path} is no file of captured traffic, or is damaged: {error}. Remove it if it stays so"
        ) from error


def read_tables(
    folder: str,
    columns: Sequence[str],
    since: datetime | None = None,
    with_shadow: bool = False,
    with_errors: bool = False,
) -> Iterator[tuple[str, pa.Table]]:
    """Yields the files of a capture, with the rows that were answered since a time, and their numbers as ``row``.

    Args:
        folder: the capture's.
        columns: to read; ``shadow`` and ``error`` are there always.
        since: leaves out what was answered before.
        with_shadow: whether answers that no caller got are among the rows.
        with_errors: whether requests that were not answered are.

    Raises:
        ModelError: if there is none, of whatever time, or one can't be read.
    """
    parts = list(list_parts(folder, since))
    if not parts and next(list_parts(folder), None) is None:
        raise ModelError(f"{folder}: no captured traffic. Give the folder of `serve --capture`")
    for file in parts:
        with explain_damage(file):
            with filesystem.open_read(file) as opened:
                later = [name for name in pq.read_schema(opened).names if name in _LATER]
                opened.seek(0)
                table = pq.read_table(opened, columns=[*columns, *later], partitioning=None)
            for name in _LATER.keys() - set(later):
                table = table.append_column(name, pa.nulls(len(table), _LATER[name]))
            table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
            if not with_shadow:
                table = table.filter(pc.invert(pc.fill_null(table[_SHADOW], False)))
            if not with_errors:
                table = table.filter(pc.is_null(table[_ERROR]))
            if since:
                table = table.filter(pc.greater_equal(table["time"], pa.scalar(since, table["time"].type)))
        yield file, table


def join(parts: Sequence[Traffic]) -> Traffic:
    """Returns parts of the traffic together; each image of theirs is as likely to be in the sample as any other."""
    labels, errors = (sum(counts, Counter[str]()) for counts in ([p.labels for p in parts], [p.errors for p in parts]))
    return Traffic(sum(part.images for part in parts), labels, _draw([part.sample for part in parts]), errors)


def make_sample(traffic: Traffic, task: TaskName) -> Sample:
    """Returns a part of the traffic as it is compared.

    Raises:
        ModelError: if it is of several models.
    """
    table = traffic.sample
    vectors = table[EMBEDDING].drop_null()
    if len(sizes := pc.unique(pc.list_value_length(vectors)).to_pylist()) > 1:
        version = table["version"][0].as_py()
        raise ModelError(
            f"embeddings of version {version} have {' and '.join(map(str, sorted(sizes)))} numbers: several models "
            "answered under that number. Each needs a folder of captured traffic of its own; --since leaves out older "
            "answers"
        )
    embedding = np.stack([np.asarray(row.as_py(), np.float32) for row in vectors]) if len(vectors) else None
    labels = [] if task == "regression" else [split_label(label, task) for label in table["label"].to_pylist()]
    return Sample({name: to_numbers(table[name]) for name in _NUMBERS}, labels, embedding)


def to_numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column as float64 ``[n]``, NaN for what is missing."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def split_label(label: str, task: TaskName) -> list[str]:
    """Returns the labels in an answer's text."""
    return label.split(LABEL_SEPARATOR) if task == "multilabel" else [label]


def load_images(places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """Returns the images that captured rows hold, by file and row."""
    by_file: dict[str, list[int]] = {}
    for file, row in places:
        by_file.setdefault(file, []).append(row)
    images: dict[tuple[str, int], bytes] = {}
    for file, rows in by_file.items():
        with explain_damage(file), filesystem.open_read(file) as opened:
            column = pq.read_table(opened, columns=["image"], partitioning=None)["image"]
        images |= {(file, row): image for row in rows if (image := column[row].as_py()) is not None}
    return images


def _add(traffic: Traffic, group: pa.Table) -> None:
    traffic.errors.update(group[_ERROR].drop_null().to_pylist())
    group = group.filter(pc.is_null(group[_ERROR]))
    traffic.images += len(group)
    traffic.labels.update(group["label"].to_pylist())
    traffic.sample = _draw([group] if traffic.sample is None else [traffic.sample, group])


def _draw(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows with the smallest hashes, in their order: of samples they are those of all that was sampled."""
    table = pa.concat_tables(tables).sort_by("hash").slice(0, MAX_SAMPLE)
    place = table.column_names.index(EMBEDDING)
    vectors = table[EMBEDDING].slice(0, MAX_VECTORS)
    rest = pa.nulls(len(table) - len(vectors), vectors.type)
    return table.set_column(place, EMBEDDING, pa.chunked_array([*vectors.chunks, rest], vectors.type))
