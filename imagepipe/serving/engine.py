"""Models in a server's memory, which answer many requests at once."""

import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import tensorflow as tf
from PIL import Image

from imagepipe.base.errors import ModelError
from imagepipe.base.images import BadImage, TooManyPixels, check_kind, count_pixels, prepare_for_decoder
from imagepipe.base.process import release_memory
from imagepipe.deploy.openvino_form import is_form_unused
from imagepipe.deploy.versions import (
    describe_files,
    find_model,
    is_version,
    list_servable_folders,
    list_version_folders,
)
from imagepipe.serving.batching import SharedNetwork, SharedThreads
from imagepipe.serving.inputs import normalize_images
from imagepipe.serving.limits import LARGE_PIXELS, MAX_ONLINE_PIXELS, MAX_REQUEST_PIXELS
from imagepipe.serving.openvino_model import load_served
from imagepipe.serving.telemetry import LIVE_SERIES, VERSION, RecentVersions
from imagepipe.serving.types import Answers, Failure, Request, RequestError

_FOLLOW_SECONDS = 1.0

_log = logging.getLogger("imagepipe.serve")


class Engine:
    """One version of a model, in memory and warm.

    Attributes:
        model: the SavedModel.
        name: the model's name, for callers.
        version: the model's version, for callers.
    """

    def __init__(self, folder: Path, name: str, version: str, observe: Callable[[int], None], key: Path | None = None):
        """Loads and warms it.

        Args:
            folder: the SavedModel's folder.
            name: the model's name, for callers.
            version: the model's version, for callers.
            observe: called with the size of each batch that the network computes.
            key: see ``LoadedModel``.

        Raises:
            ModelError: if an early version exported it.
            Exception: whatever TensorFlow raises if it can't be loaded, or can't answer.
        """
        self.model, self.name, self.version = load_served(folder, key, "callers"), name, version
        if not self.model.has_halves:
            raise ModelError(
                f"{folder} was exported by an early version of imagepipe, which has no network to be asked by itself: "
                "predict and TensorFlow Serving take it, this server doesn't. Export it anew"
            )
        self.model.warm()
        sizes = self.model.batch_sizes
        network = SharedNetwork(self.model.answer, self.model.at_once, sizes, observe)
        # Threads of their own: large images take time of a CPU from common ones, but never a place.
        self._threads = {
            is_large: SharedThreads(self.model.preprocess, network, joblib.cpu_count(), self.model.at_once, sizes)
            for is_large in (False, True)
        }
        self._observe = observe
        self._naming = threading.BoundedSemaphore(joblib.cpu_count())
        self._graph_turns = self.model.turns_upright()
        self._warm()
        release_memory()

    @property
    def side_types(self) -> dict[str, str]:
        """Type of each side feature: ``string``, ``float32`` or ``int64``."""
        return self.model.side_types

    def _warm(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG")
        for size in (1, self.model.batch_sizes[-1]):
            self.ask([self.model.build_trial_request(buffer.getvalue())] * size)

    def check(self, requests: Sequence[Request]) -> list[Request]:
        """Returns requests as the graph takes them, their images converted as ``imagepipe ingest`` converts them.

        Raises:
            RequestError: if one can't be answered; the message names it.
        """
        checked = []
        pixels = 0
        for number, request in enumerate(requests):
            try:
                if problem := self.model.find_problem(request):
                    raise RequestError("missing_feature", problem)
                for name in request.side.keys() - self.model.side.keys():
                    accepted = ", ".join(["input", "metadata", *self.model.side])
                    raise RequestError("unknown_field", f"'{name}' is not known; the model takes {accepted}")
                data, width, height = _prepare_image(request.image, self._graph_turns)
                pixels += width * height
                if pixels > MAX_REQUEST_PIXELS:
                    raise RequestError(
                        "too_many_pixels",
                        f"the images up to this one have {pixels / 1e6:,.0f} megapixels together, and at most "
                        f"{MAX_REQUEST_PIXELS / 1e6:,.0f} are taken at once",
                    )
                checked.append(replace(request, image=data))
            except RequestError as error:
                raise RequestError(error.kind, f"instance {number}: {error}") from None
        return checked

    def answer(self, requests: Sequence[Request], pixels: int, is_alone: bool = False) -> Answers:
        """Decodes images and runs the network, in batches with what other threads ask at the same time.

        Args:
            requests: that ``check`` returned.
            pixels: of all their images.
            is_alone: whether nobody else is waiting for answers.

        Raises:
            RequestError: if an image can't be decoded; the message names it.
            ArithmeticError: if the model answered with what is no finite number.
        """
        try:
            if is_alone and len(requests) == 1:
                outputs = self.model.answer_alone(self.model.preprocess(requests))
                self._observe(1)
            else:
                outputs = self._threads[pixels > LARGE_PIXELS](requests, pixels)
        except tf.errors.InvalidArgumentError as error:
            with self._naming:  # Pillow decodes them all: the graph doesn't say in which image
                for number, decoded in enumerate(normalize_images(requests)):
                    if isinstance(decoded, Failure):
                        raise RequestError("broken_image", f"instance {number}: {decoded.error}") from None
            raise RequestError("broken_image", f"an image can't be decoded: {error.message}") from None
        if not all(np.isfinite(outputs[name]).all() for name in ("classes", "score", "novelty") if name in outputs):
            # No JSON has it, and counted it would make a sum of the metrics NaN for ever.
            raise ArithmeticError("the model answered with what is no finite number")
        return Answers(
            outputs["classes"],
            [label.decode() for label in outputs["label"]],
            outputs["score"],
            outputs.get("novelty"),
            [request.id for request in requests],
            self.name,
            self.version,
            outputs.get("embedding"),
        )

    def ask(self, requests: Sequence[Request]) -> Answers:
        """Checks and answers requests."""
        return self.answer(self.check(requests), count_request_pixels(requests))


def count_request_pixels(requests: Sequence[Request]) -> int:
    """Returns the pixels of all images of a request, but for those that can't be read: they take no time."""
    pixels = 0
    for request in requests:
        with contextlib.suppress(BadImage):
            pixels += count_pixels(request.image)
    return pixels


def _prepare_image(data: bytes, graph_turns: bool) -> tuple[bytes, int, int]:
    """Returns an image that the graph can decode, its width and its height."""
    try:
        check_kind(data)
    except BadImage as error:
        raise RequestError("unsupported_image", str(error)) from None
    try:
        return prepare_for_decoder(data, max_pixels=MAX_ONLINE_PIXELS, decoder_turns=graph_turns)
    except TooManyPixels as error:
        raise RequestError("too_many_pixels", str(error)) from None
    except BadImage as error:
        raise RequestError("broken_image", str(error)) from None


class ServedModel:
    """The live version of a model, which follows the model's folder."""

    def __init__(self, path: Path, name: str, observe: Callable[[int], None], key: Path | None = None):
        """Loads the newest version that can be loaded.

        Args:
            path: a SavedModel, the folder of its versions, or a run, see ``imagepipe.deploy.versions``.
            name: the model's name, for callers.
            observe: called with the size of each batch.
            key: see ``LoadedModel``; a version without a valid signature is refused as one that can't be loaded.

        Raises:
            ModelError: if no version can be loaded.
        """
        self._path, self._name, self._observe, self._key = path, name, observe, key
        self._refused: dict[Path, tuple[object, str]] = {}  # by folder: the state of its files, and the reason
        self._seen: dict[Path, object] = {}  # by folder: the state of its files at the last look
        self._engine: Engine | None = None
        self._live_state: object = None  # of the live version's files when it was loaded
        self._recent = RecentVersions(LIVE_SERIES)
        self.refresh()
        if self._engine is None:
            raise ModelError(next((reason for _, reason in self._refused.values()), f"{path}: no model to serve"))

    @property
    def engine(self) -> Engine:
        """The live version. A caller that has it can go on asking it after a newer one is live."""
        if self._engine is None:
            raise RuntimeError("asked before it was loaded")
        return self._engine

    def refresh(self) -> None:
        """Makes the newest version live that can be loaded; one that can't is tried again when its files change.

        As long as another one is live, a version is loaded when its files are what they were at the last look: it may
        be copied file by file. The live one is loaded again if its form for OpenVINO came later.
        """
        candidates = self._list_candidates()
        folders = {folder for folder, _ in candidates}
        self._refused = {folder: refused for folder, refused in self._refused.items() if folder in folders}
        last, self._seen = self._seen, {}
        for folder, version in candidates:
            live = self._engine and self._engine.model.folder
            if folder == live and not is_form_unused(folder, self.engine.model.engine, self.engine.model.note):
                return
            state = self._seen[folder] = describe_files(folder)
            is_complete = live is None or last.get(folder) == state
            is_refused = folder in self._refused and self._refused[folder][0] == state
            is_loaded = folder == live and self._live_state == state
            if is_complete and not is_refused and not is_loaded:
                self._load(folder, version, state)
            if self._engine and self._engine.model.folder == folder:
                return

    def _load(self, folder: Path, version: str, state: object) -> None:
        """Makes a version live, or refuses it."""
        try:
            self._engine = Engine(folder, self._name, version, self._observe, self._key)
        except Exception as error:  # whatever TensorFlow raises on a damaged model: an older one may be sound
            reason = str(error) if isinstance(error, ModelError) else f"{folder} can't be served: {error!r}"
            _log.error("version %s is refused: %s", version, reason)
            self._refused[folder] = (state, reason)  # not the error, which holds what was loaded
            return
        self._live_state = state
        VERSION.set(int(version))
        self._recent.add(version)
        fields = {"engine": self._engine.model.engine}
        _log.info("version %s is live", version, extra={"fields": fields})

    def _list_candidates(self) -> list[tuple[Path, str]]:
        """Returns folder and version of every version that has a graph, newest first."""
        live = self._engine and self._engine.model.folder
        servable = list_servable_folders(self._path, _log)
        # The graph of the live one may be replaced at this moment.
        folders = [folder for folder in list_version_folders(self._path) if folder in servable or folder == live]
        if not folders:  # all versions may have been deleted: the one in memory stays live then
            if self._engine:
                return [(self._engine.model.folder, self._engine.version)]
            folder = find_model(self._path)
            return [(folder, folder.name if is_version(folder.name) else "1")]
        return [(folder, folder.name) for folder in reversed(folders)]

    def follow(self) -> None:
        """Refreshes every second from now on, in a thread of its own."""

        def refresh_forever() -> None:
            while True:
                time.sleep(_FOLLOW_SECONDS)
                try:
                    self.refresh()
                except Exception:
                    _log.exception("the model's folder can't be followed; the live version stays")

        threading.Thread(target=refresh_forever, name="versions", daemon=True).start()
