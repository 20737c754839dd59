"""The training images that are most like captured ones, by the embeddings that the model itself gives of both."""

import heapq
from collections.abc import Container, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.errors import ModelError
from imagepipe.ingest import dataset, shards
from imagepipe.monitoring import reference_rows
from pipeline.logs import hide_output
from pipeline.runs import provenance
from pipeline.runs.summary import read_summary

MAX_TRAINED = 4096
"""Training images that are looked among, drawn by their hashes: as many as a model's novelty looks among."""

_SHOWN = 4
_BATCH = 32


class TrainedImages:
    """The training images of a run, as its model sees them.

    Attributes:
        version: that the run pushed.
        classes: the labels of its train split; none of a regression.
    """

    def __init__(self, folder: Path) -> None:
        """Finds the run's model and dataset.

        Args:
            folder: of the run.

        Raises:
            ModelError: there is no such run, or its model or its dataset is gone.
            IngestError: the dataset can't be read.
        """
        run = read_summary(folder.resolve())
        if run is None:
            raise ModelError(f"{folder} is no run: give the folder of the run that pushed the served version, runs/RUN")
        if not run.pushed_version or not run.model_dir or not Path(run.model_dir).is_dir():
            raise ModelError(f"{folder}: this run pushed no version, or `imagepipe clean` has removed its model")
        origin = provenance.read_origin(folder)
        path = filesystem.absolute(origin.dataset.path) if origin else ""
        if not path or dataset.read_unchecked(path) is None:
            raise ModelError(f"{folder}: its dataset {path} is gone, or not one of `imagepipe ingest`")
        self.version, self._model = run.pushed_version, run.model_dir
        self._path, self._data = path, dataset.load(path)
        self.classes = self._data.splits["train"].labels.keys()

    def find_nearest(
        self, captured: Mapping[str, np.ndarray], pictures: Path
    ) -> dict[str, tuple[tuple[str, str], ...]]:
        """Finds the nearest of MAX_TRAINED training images of some images, by cosine, and writes them to files.

        Args:
            captured: by an image's hash its embedding by the version, float ``[d]``.
            pictures: folder that gets the training images.

        Returns:
            By hash of the captured images those of the nearest training images, each with its label.

        Raises:
            ModelError: the model gives no embeddings.
        """
        labels = {
            entry["sha256"]: "|".join(next(iter(entry["copies"].values())))
            for entry in heapq.nsmallest(MAX_TRAINED, self._list_entries(), key=lambda entry: entry["sha256"])
        }
        if not captured or not labels:
            return {}
        embed = load_embed(self._model)
        names, vectors = [], []
        images = self._read_images(labels.keys())
        while batch := list(islice(images, _BATCH)):
            names += [name for name, _ in batch]
            with hide_output():  # of oneDNN's remarks
                vectors.append(_make_unit(embed([image for _, image in batch])))
        trained = np.concatenate(vectors)
        nearest = {}
        for sha256, vector in captured.items():
            order = np.argsort(-(trained @ _make_unit(vector[None])[0]), kind="stable")
            others = [names[place] for place in order[: _SHOWN + 1] if names[place] != sha256]
            nearest[sha256] = tuple((name, labels[name]) for name in others[:_SHOWN])
        for name, image in self._read_images({name for some in nearest.values() for name, _ in some}):
            (pictures / name).write_bytes(image)
        return nearest

    def _list_files(self) -> list[str]:
        return [shard.file for shard in self._data.splits["train"].shards]

    def _list_entries(self) -> Iterator[Mapping[str, Any]]:
        for file in self._list_files():
            yield from shards.read_index(f"{self._path}/{shards.locate_index(file)}")

    def _read_images(self, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
        for file in self._list_files():
            for record in shards.read_records(f"{self._path}/{file}", self._data.options.compress):
                sha256 = tfrecord.read_bytes_feature(record, "sha256")[0].decode()
                if sha256 in wanted:
                    yield sha256, tfrecord.read_bytes_feature(record, "input")[0]


def load_embed(model: str) -> reference_rows.Embed:
    """Returns the function from encoded images to embeddings of a SavedModel.

    Raises:
        ModelError: it has none.
    """
    with hide_output():
        embed = reference_rows.load_embed(model)
    if embed is None:
        raise ModelError(f"{model} gives no embeddings: it was exported before there was capture")
    return embed


def _make_unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6)
