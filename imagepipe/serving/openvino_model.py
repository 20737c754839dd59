"""A version whose network OpenVINO computes; what stands around it, decoding and answers, TensorFlow does.

The SavedModel with the network is not loaded.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, cast

import joblib
import tensorflow as tf

from imagepipe.base.errors import ModelError, put_on_one_line
from imagepipe.deploy.openvino_form import OpenVinoNetwork, find_form, find_usable_form
from imagepipe.serving.limits import NETWORK_BATCH_SIZE
from imagepipe.serving.loaded_model import Arrays, LoadedModel
from imagepipe.serving.streams import Compute, build_trial, choose_streams, compile_streams, count_all_cpus

_log = logging.getLogger("imagepipe.serve")

Load = Literal["one batch", "many batches", "callers"]
"""Of a model: one batch after the other, many at any time, or callers of whom there may be many or one."""

# By which it is measured how many batches to compute at once. Eight callers share batches of 2 to 3 images
# (benchmarks/serving.py), of which several at once gain most; with larger ones they lose nothing.
_MEASURED_SIZES: dict[Load, int] = {"many batches": NETWORK_BATCH_SIZE, "callers": 2}


def load_served(folder: Path, key: Path | None = None, load: Load = "one batch") -> LoadedModel:
    """Loads a version for the engine that it was exported for, or for TensorFlow where that doesn't work.

    Args:
        folder: the SavedModel's folder.
        key: see ``LoadedModel``.
        load: see ``OpenVinoModel``.

    Raises:
        ModelError: see ``LoadedModel``.
    """
    note = ""
    if find_form(folder):
        try:
            return OpenVinoModel(folder, key, load)
        except (ModelError, RuntimeError) as error:  # the second is what OpenVINO raises
            note = f"{put_on_one_line(error).removesuffix('.')}. TensorFlow computes the network instead."
            _log.warning(note)
    model = LoadedModel(folder, key=key)
    model.note = note
    return model


class OpenVinoModel(LoadedModel):
    """See ``LoadedModel``; it answers requests, and not Examples."""

    # OpenVINO keeps some 10 MB of InceptionV3 for each size that it has met.
    batch_sizes = tuple(1 << exponent for exponent in range(NETWORK_BATCH_SIZE.bit_length()))

    def __init__(self, folder: Path, key: Path | None = None, load: Load = "one batch"):
        """Loads it.

        Args:
            folder: the SavedModel's folder.
            key: see ``LoadedModel``.
            load: for many batches or callers it measures how many batches to compute at once, which takes some seconds.
                All CPUs compute the image of a caller who is alone, also those of other workers, who may be idle.

        Raises:
            ModelError: see ``LoadedModel``; also if the version has no form for OpenVINO, or that isn't installed.
            RuntimeError: if OpenVINO can't compute it on this machine.
        """
        self._for = load
        super().__init__(folder, key=key)

    def _load(self, files: Path, signature: str) -> Mapping[str, tf.TensorSpec]:
        form = find_usable_form(files)  # before anything is loaded or measured
        if form is None:
            raise ModelError(f"{files} has no form for OpenVINO")
        self.loaded = tf.saved_model.load(str(form))
        self.has_novelty = "novelty" in self.loaded.answers.structured_outputs
        size = _MEASURED_SIZES.get(self._for)
        self.at_once = choose_streams(form, size) if size else 1
        self._network = compile_streams(form, self.at_once)
        self._free = self._free_for_one = _open_requests(self._network, self.at_once)
        all_cpus = count_all_cpus()
        if self._for == "callers" and (self.at_once > 1 or all_cpus > joblib.cpu_count()):
            self._free_for_one = _open_requests(compile_streams(form, 1, all_cpus), 1)
        self.engine = f"OpenVINO, {self._network.form['precision']}, batches at once: {self.at_once}"
        return cast(Mapping[str, tf.TensorSpec], self.loaded.preprocess.structured_input_signature[1])

    def answer(self, inputs: Arrays) -> Arrays:
        """See ``LoadedModel``."""
        return self._answer(inputs, self._free)

    def answer_alone(self, inputs: Arrays) -> Arrays:
        """See ``LoadedModel``."""
        return self._answer(inputs, self._free_for_one)

    def warm(self) -> None:
        """See ``LoadedModel``."""
        trial = build_trial(self._network, NETWORK_BATCH_SIZE)

        def answer_all(_: int) -> None:
            for size in self.batch_sizes:
                self.answer({name: array[:size] for name, array in trial.items()})

        self.answer_alone({name: array[:1] for name, array in trial.items()})
        with ThreadPoolExecutor(self.at_once) as pool:  # all at once, so that each of the streams computes some
            list(pool.map(answer_all, range(self.at_once)))

    def _answer(self, inputs: Arrays, free: "SimpleQueue[Compute]") -> Arrays:
        compute = free.get()
        try:
            outputs = compute(inputs)
        finally:
            free.put(compute)
        answers = self.loaded.answers(**{name: tf.constant(array) for name, array in outputs.items()})
        return {name: tensor.numpy() for name, tensor in answers.items()} | {"embedding": outputs["embedding"]}


def _open_requests(network: OpenVinoNetwork, count: int) -> "SimpleQueue[Compute]":
    requests: SimpleQueue[Compute] = SimpleQueue()
    for _ in range(count):
        requests.put(network.open_request())
    return requests
