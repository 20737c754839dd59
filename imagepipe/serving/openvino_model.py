"""A version whose network OpenVINO computes; what stands around it, decoding and answers, TensorFlow does.

The SavedModel with the network is not loaded.
"""

import logging
import time
import timeit
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import joblib
import numpy as np
import tensorflow as tf

from imagepipe.base.errors import ModelError
from imagepipe.deploy.openvino_form import OpenVinoNetwork, find_form
from imagepipe.serving.batching import Arrays, Batches, Compute
from imagepipe.serving.limits import NETWORK_BATCH_SIZE
from imagepipe.serving.loaded_model import LoadedModel

_LONE_SECONDS = 0.003  # by which an image alone may be slower, for more images in a second
_GAIN = 1.1  # of images in a second, for which more streams are taken
_MEASURED_SECONDS = 0.3

_log = logging.getLogger("imagepipe.serve")


def load_served(folder: Path, key: Path | None = None, for_many: bool = False) -> LoadedModel:
    """Loads a version for the engine that it was exported for, or for TensorFlow where that doesn't work.

    Args:
        folder: the SavedModel's folder.
        key: see ``LoadedModel``.
        for_many: whether it is asked about many images, see ``OpenVinoModel``.

    Raises:
        ModelError: see ``LoadedModel``.
    """
    note = ""
    if find_form(folder):
        try:
            return OpenVinoModel(folder, key, for_many)
        except (ModelError, RuntimeError) as error:  # the second is what OpenVINO raises
            note = f"{str(error).removesuffix('.')}. TensorFlow computes the network instead."
            _log.warning(note)
    model = LoadedModel(folder, key=key)
    model.note = note
    return model


class OpenVinoModel(LoadedModel):
    """See ``LoadedModel``; it answers requests, and not Examples."""

    def __init__(self, folder: Path, key: Path | None = None, for_many: bool = False):
        """Loads it.

        Args:
            folder: the SavedModel's folder.
            key: see ``LoadedModel``.
            for_many: whether it is asked about many images, for which it measures how many batches to compute at once;
                takes some seconds.

        Raises:
            ModelError: see ``LoadedModel``; also if the version has no form for OpenVINO, or that isn't installed.
            RuntimeError: if OpenVINO can't compute it on this machine.
        """
        self._for_many = for_many
        super().__init__(folder, key=key)

    def _load(self, files: Path, signature: str) -> Mapping[str, tf.TensorSpec]:
        form = find_form(files)
        if form is None:
            raise ModelError(f"{files} has no form for OpenVINO")
        self.loaded = tf.saved_model.load(str(form))
        self.has_novelty = "novelty" in self.loaded.answers.structured_outputs
        self._network, self.at_once = _compile(form, 1), 1
        if self._for_many:
            self._network, self.at_once = _choose_streams(form, self._network, self._build_trial())
        self._free: SimpleQueue[Compute] = SimpleQueue()
        for _ in range(self.at_once):
            self._free.put(self._network.open_request())
        self.engine = f"OpenVINO, {self._network.form['precision']}, batches at once: {self.at_once}"
        return cast(Mapping[str, tf.TensorSpec], self.loaded.preprocess.structured_input_signature[1])

    def _build_trial(self) -> dict[str, np.ndarray]:
        """Returns a batch of black images."""
        return {
            name: np.zeros([NETWORK_BATCH_SIZE, *spec.shape[1:]], spec.dtype.as_numpy_dtype)
            for name, spec in self.loaded.preprocess.structured_outputs.items()
        }

    def answer(self, tensors: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
        """See ``LoadedModel``."""
        return self._answer(_to_arrays(tensors))

    def share_batches(
        self, observe: Callable[[int], None]
    ) -> Callable[[Mapping[str, tf.Tensor]], dict[str, np.ndarray]]:
        """Returns what ``answer`` does, for callers in many threads, which share batches; warms it for all their sizes.

        Args:
            observe: called with the size of each batch.
        """
        trial = self._build_trial()

        def warm(_: int) -> None:
            for size in range(1, NETWORK_BATCH_SIZE + 1):
                self._answer({name: array[:size] for name, array in trial.items()})

        with ThreadPoolExecutor(self.at_once) as pool:  # all at once, so that each of the streams computes some
            list(pool.map(warm, range(self.at_once)))
        batches = Batches([self._answer] * self.at_once, NETWORK_BATCH_SIZE, observe)
        return lambda tensors: batches(_to_arrays(tensors))

    def _answer(self, arrays: Arrays) -> dict[str, np.ndarray]:
        compute = self._free.get()
        try:
            outputs = compute(arrays)
        finally:
            self._free.put(compute)
        answers = self.loaded.answers(**{name: tf.constant(array) for name, array in outputs.items()})
        return {name: tensor.numpy() for name, tensor in answers.items()} | {"embedding": outputs["embedding"]}


def _to_arrays(tensors: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _compile(form: Path, streams: int) -> OpenVinoNetwork:
    """Compiles a network whose streams have a part of the CPUs each, so that as many batches are computed at once."""
    options = {
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(joblib.cpu_count()),
        "ENABLE_CPU_PINNING": "NO",
    }
    return OpenVinoNetwork(form, options)


def _choose_streams(form: Path, single: OpenVinoNetwork, trial: Arrays) -> tuple[OpenVinoNetwork, int]:
    """Returns the network with the streams that compute most images in a second on this machine, and their number.

    More are taken while that gains a tenth, and costs a caller who is alone no more than 3 ms: a large network takes
    all CPUs for each batch, a small one can't use them.
    """
    chosen, streams = single, 1
    rate, lone_seconds = _measure(single, 1, trial)
    while 2 * streams <= joblib.cpu_count():
        network = _compile(form, 2 * streams)
        other_rate, other_lone_seconds = _measure(network, 2 * streams, trial)
        if other_rate < _GAIN * rate or other_lone_seconds > lone_seconds + _LONE_SECONDS:
            break
        chosen, streams, rate = network, 2 * streams, other_rate
    return chosen, streams


def _measure(network: OpenVinoNetwork, streams: int, trial: Arrays) -> tuple[float, float]:
    """Returns a network's images per second, and the seconds for a lone image."""
    computes = [network.open_request() for _ in range(streams)]
    lone = {name: array[:1] for name, array in trial.items()}

    def repeat(compute: Compute) -> float:
        start = time.perf_counter()
        batches = 0
        while (seconds := time.perf_counter() - start) < _MEASURED_SECONDS:
            compute(trial)
            batches += 1
        return batches * NETWORK_BATCH_SIZE / seconds

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda compute: compute(trial), computes))  # the first time takes longer
        rate = sum(pool.map(repeat, computes))
    return rate, min(timeit.repeat(lambda: computes[0](lone), repeat=4, number=1))
