"""A model as a server asks it: requests are decoded each by itself, and the network is asked about many at once."""

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2

from imagepipe.base.errors import ModelError
from imagepipe.base.images import BadImage, TooManyPixels, check_kind, prepare_for_decoder
from imagepipe.base.process import release_memory
from imagepipe.deploy.versions import find_model, version_folders
from imagepipe.serving.model import Model
from imagepipe.serving.observed import VERSION
from imagepipe.serving.requests import Failure, Request, RequestError, normalized

BATCH_SIZE = 32
"""Images that the network is asked about at once, at most: the throughput of a CPU is flat from 8 on."""

MAX_INSTANCES = 128
"""Images in a request."""

MAX_PIXELS = 50_000_000
"""Largest width x height of an image online: what phones take. A decoder holds some 5 bytes a pixel."""

MAX_PIXELS_TOGETHER = 8 * MAX_PIXELS
"""Of all images of a request: few bytes can hold many, and while a core decodes them it does nothing else."""

_FOLLOW_SECONDS = 1.0

_log = logging.getLogger("imagepipe.serve")


@dataclass(frozen=True)
class Answers:
    """What a model says of n images.

    Attributes:
        classes: float32 ``[n, k]``.
        labels: of each image.
        scores: float32 ``[n]``.
        ids: of each image, as it was asked.
        name: the model's.
        version: the model's.
    """

    classes: np.ndarray
    labels: list[str]
    scores: np.ndarray
    ids: list[str]
    name: str
    version: str


class Live:
    """One version of a model, in memory and warm.

    Attributes:
        model: the SavedModel.
        name: of the model, to callers.
        version: of the model, to callers.
        signatures: of the SavedModel, as TensorFlow Serving tells them.
    """

    def __init__(self, folder: Path, name: str, version: str, observe: Callable[[int], None]):
        """Loads and warms it.

        Args:
            folder: the SavedModel's.
            name: of the model, to callers.
            version: of the model, to callers.
            observe: is told the size of each batch that the network is asked about.

        Raises:
            Exception: whatever TensorFlow raises, if it can't be loaded, or can't answer.
        """
        self.model, self.name, self.version = Model(folder), name, version
        self._preprocess = self.model.loaded.preprocess
        self.signatures = _signatures(folder)
        self._answer = _batched(self.model.loaded.answer, self._preprocess.structured_outputs)
        self._observe = observe
        self._warm()
        release_memory()

    def _warm(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG")
        side = {name: "" if dtype == tf.string else 0 for name, dtype in self.model.side.items()}
        for size in (1, BATCH_SIZE):
            self.ask([Request("", buffer.getvalue(), side)] * size)

    def check(self, requests: Sequence[Request]) -> list[Request]:
        """Requests as the graph takes them, their images treated as ``imagepipe ingest`` treats them.

        Raises:
            RequestError: if one can't be answered; the message says which.
        """
        checked = []
        pixels = 0
        for number, request in enumerate(requests):
            try:
                if problem := self.model.missing(request):
                    raise RequestError("missing_feature", problem)
                for name in request.side.keys() - self.model.side.keys():
                    taken = ", ".join(["input", "metadata", *self.model.side])
                    raise RequestError("unknown_field", f"'{name}' is not known; the model takes {taken}")
                data, width, height = _checked_image(request.image)
                pixels += width * height
                if pixels > MAX_PIXELS_TOGETHER:
                    raise RequestError(
                        "too_many_pixels",
                        f"up to here the images have {pixels / 1e6:,.0f} megapixels, and at most "
                        f"{MAX_PIXELS_TOGETHER / 1e6:,.0f} are taken at once",
                    )
                checked.append(replace(request, image=data))
            except RequestError as error:
                raise RequestError(error.kind, f"instance {number}: {error}") from None
        return checked

    def preprocess(self, requests: list[Request]) -> list[tf.Tensor]:
        """Decodes and resizes requests that ``check`` returned.

        Returns:
            What Transform makes of them, ``[n, …]`` each.

        Raises:
            RequestError: if an image can't be decoded.
        """
        try:
            made = self._preprocess(**self.model.tensors(requests))
        except tf.errors.InvalidArgumentError as error:
            for number, proven in enumerate(normalized(requests)):  # the graph doesn't say which
                if isinstance(proven, Failure):
                    raise RequestError("broken_image", f"instance {number}: {proven.error}") from None
            raise RequestError("broken_image", f"an image can't be decoded: {error.message}") from None
        return [made[name] for name in sorted(made)]

    def answer(self, requests: Sequence[Request], tensors: list[tf.Tensor]) -> Answers:
        """Asks the network, together with other threads that ask at the same time."""
        classes, labels, scores, sizes = self._answer(*tensors)
        for size in filter(None, sizes.numpy()):
            self._observe(int(size))
        return Answers(
            classes.numpy(),
            [label.decode() for label in labels.numpy()],
            scores.numpy(),
            [request.id for request in requests],
            self.name,
            self.version,
        )

    def ask(self, requests: Sequence[Request]) -> Answers:
        """All three steps."""
        checked = self.check(requests)
        return self.answer(checked, self.preprocess(checked))


def _signatures(folder: Path) -> dict[str, Any]:
    parsed = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return {
        name: json_format.MessageToDict(signature, preserving_proto_field_name=True)
        for name, signature in parsed.meta_graphs[0].signature_def.items()
    }


def _checked_image(data: bytes) -> tuple[bytes, int, int]:
    try:
        check_kind(data)
    except BadImage as error:
        raise RequestError("unsupported_image", str(error)) from None
    try:
        return prepare_for_decoder(data, max_pixels=MAX_PIXELS)
    except TooManyPixels as error:
        raise RequestError("too_many_pixels", str(error)) from None
    except BadImage as error:
        raise RequestError("broken_image", str(error)) from None


def _batched(
    answer: Callable[..., dict[str, tf.Tensor]], specs: dict[str, tf.TensorSpec]
) -> Callable[..., list[tf.Tensor]]:
    """Lets concurrent calls of a graph share batches.

    Returns:
        A function for many threads, from the graph's inputs in the order of their names to ``classes``, ``label``,
        ``score``, and the sizes of the batches that began with one of these images, int32 ``[n]``, else 0.
    """
    names = sorted(specs)

    @tf.nondifferentiable_batch_function(
        num_batch_threads=1,  # one batch already uses all cores; while it is computed the next one grows
        max_batch_size=MAX_INSTANCES,  # of one call, which is divided into batches of the sizes that are allowed
        allowed_batch_sizes=list(range(1, BATCH_SIZE + 1)),  # all: a batch would be filled up to the next
        enable_large_batch_splitting=True,
        batch_timeout_micros=0,  # who waits for company makes two cores wait, and single callers 2 ms
        max_enqueued_batches=1000,  # callers wait before, see imagepipe.serving.server
    )
    def together(*tensors: tf.Tensor) -> list[tf.Tensor]:
        answers = answer(**dict(zip(names, tensors, strict=True)))
        size = tf.shape(tensors[0])[0]
        # Whoever asked about the first image of a batch hears of its size: so each batch is told of once.
        return [answers["classes"], answers["label"], answers["score"], tf.one_hot(0, size, on_value=size)]

    # Queues are known to TensorFlow by the names of their nodes: those of two versions must not be the same.
    unique = f"version_{id(together)}_{os.urandom(8).hex()}"

    def ask(*tensors: tf.Tensor) -> list[tf.Tensor]:
        with tf.name_scope(unique):
            return together(*tensors)

    return tf.function(ask, [tf.TensorSpec(specs[name].shape, specs[name].dtype) for name in names], autograph=False)


class Versions:
    """What is live of a model, which follows its folder."""

    def __init__(self, path: Path, name: str, observe: Callable[[int], None]):
        """Loads the newest version that can be loaded.

        Args:
            path: a SavedModel, the folder of its versions, or a run, see ``imagepipe.deploy.versions``.
            name: of the model, to callers.
            observe: is told the size of each batch.

        Raises:
            ModelError: if there is none.
        """
        self._path, self._name, self._observe = path, name, observe
        self._refused: dict[Path, tuple[object, str]] = {}
        self._live: Live | None = None
        self.refresh()
        if self._live is None:
            raise ModelError(next((words for _, words in self._refused.values()), f"{path}: no model to serve"))

    @property
    def live(self) -> Live:
        """The version to ask. Whoever has it can go on asking it after a newer one is live."""
        if self._live is None:
            raise RuntimeError("asked before it was loaded")
        return self._live

    def refresh(self) -> None:
        """Makes the newest version live that can be loaded; one that can't is tried again when its files change."""
        candidates = self._candidates()
        self._refused = {folder: self._refused[folder] for folder, _ in candidates if folder in self._refused}
        for folder, version in candidates:
            if self._live and (self._live.model.folder, self._live.version) == (folder, version):
                return
            state = _state(folder)
            if folder in self._refused and self._refused[folder][0] == state:
                continue
            try:
                self._live = Live(folder, self._name, version, self._observe)
            except Exception as error:  # whatever TensorFlow raises over a damaged model: an older one may be sound
                words = str(error) if isinstance(error, ModelError) else f"{folder} can't be served: {error!r}"
                _log.error("version %s is refused: %s", version, words)
                self._refused[folder] = (state, words)  # not the error, which holds what was loaded
                continue
            VERSION.set(int(version))
            _log.info("version %s is live", version)
            return

    def _candidates(self) -> list[tuple[Path, str]]:
        folders = version_folders(self._path)
        if not folders:  # of one that was there all may be gone: what is in memory stays live then
            if self._live:
                return []
            folder = find_model(self._path)
            return [(folder, folder.name if folder.name.isdigit() else "1")]
        return [(folder, folder.name) for folder in reversed(folders)]

    def follow(self) -> None:
        """Refreshes every second from now on, in a thread of its own."""

        def forever() -> None:
            while True:
                time.sleep(_FOLLOW_SECONDS)
                try:
                    self.refresh()
                except Exception:
                    _log.exception("the model's folder can't be followed; what is live stays")

        threading.Thread(target=forever, name="versions", daemon=True).start()


def _state(folder: Path) -> object:
    files = [(str(file), file.stat()) for file in sorted(folder.rglob("*"))]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
