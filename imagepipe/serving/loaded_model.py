"""A SavedModel of this pipeline in this process's memory, and its signatures."""

import mmap
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, cast

import joblib
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from imagepipe.base.errors import ModelError
from imagepipe.base.features import IMAGE, LABEL_SEPARATOR
from imagepipe.base.filesystem import link_plainly
from imagepipe.base.in_use import hold_folder
from imagepipe.deploy.saved_model import GRAPH, read_labels, read_task
from imagepipe.deploy.signing import copy_verified
from imagepipe.serving.side import fill_missing
from imagepipe.serving.types import Prediction, Request, Value
from imagepipe.serving.wire import iterate_fields

_PYTHON_TYPES: dict[tf.DType, type | tuple[type, ...]] = {
    tf.string: str,
    tf.float32: (float, int),
    tf.int64: int,
}
_BATCH_SIZE = 32  # images per call at most: the throughput of a CPU is flat from 8 on
_EXACT = 2**53  # whole numbers below are floats exactly
_NOT_SIDE = {"serving_default": ("input", "metadata"), "tf_examples": ("examples",)}


Arrays = Mapping[str, np.ndarray]
"""Arrays by name, each with a row per image."""


class LoadedModel:
    """A SavedModel in memory; as long as it is there, its folder is marked as in use.

    Attributes:
        folder: its folder.
        labels: names of its outputs, in the order of the signatures' ``classes``.
        task: classification, multilabel or regression.
        has_novelty: whether its answers have ``novelty``; those of earlier versions don't.
        side: types of the side features that the signature needs, by name.
        loaded: the object that TensorFlow loaded.
        signatures: the SavedModel's signatures, in TensorFlow Serving's form.
        engine: what computes the network, in words.
        at_once: number of batches that it computes at once; further ones wait.
        batch_sizes: numbers of images that it should be asked about at once.
        note: why it is another engine than the version was exported for; '' if it is not.
    """

    engine = "TensorFlow"
    at_once = 1
    batch_sizes = tuple(range(1, _BATCH_SIZE + 1))
    note = ""

    def __init__(
        self,
        folder: Path,
        signature: Literal["serving_default", "tf_examples"] = "serving_default",
        key: Path | None = None,
    ):
        """Loads it.

        Args:
            folder: the SavedModel's folder.
            signature: the signature of the graph that the caller needs.
            key: public key; with it nothing is loaded that isn't signed, see ``imagepipe.deploy.signing``.

        Raises:
            ModelError: if it can't be loaded, lacks the signature, or isn't signed with the key.
        """
        in_use = ExitStack()
        weakref.finalize(self, in_use.close)
        try:
            in_use.enter_context(hold_folder(folder))
            with copy_verified(folder, key) if key else link_plainly(folder) as files:
                inputs = self._load(files, signature)
                self.labels, self.task, self.signatures = read_labels(files), read_task(files), _read_signatures(files)
            self.folder = folder
        except ModelError:  # which is a ValueError
            raise
        except (OSError, LookupError, ValueError, DecodeError, tf.errors.OpError) as error:
            raise ModelError(f"{folder} can't be loaded as a model of this pipeline: {error}") from error
        self.side = {name: inputs[name].dtype for name in sorted(inputs) if name not in _NOT_SIDE[signature]}

    def _load(self, files: Path, signature: str) -> Mapping[str, tf.TensorSpec]:
        """Loads the graph, and returns its inputs."""
        if threads := tf.config.threading.get_intra_op_parallelism_threads():
            self.at_once = max(1, joblib.cpu_count() // threads)
        if self.at_once > 1:  # together they hold no more images than one
            self.batch_sizes = tuple(range(1, max(1, _BATCH_SIZE // self.at_once) + 1))
            self.engine = f"TensorFlow, batches at once: {self.at_once}"
        self._turns = threading.BoundedSemaphore(self.at_once)
        self.loaded = tf.saved_model.load(str(files))  # it owns what the signatures use
        self.has_novelty = "novelty" in self.loaded.signatures[signature].structured_outputs
        return cast(Mapping[str, tf.TensorSpec], self.loaded.signatures[signature].structured_input_signature[1])

    def build_trial_request(self, image: bytes) -> Request:
        """Returns a request about an image that lacks nothing, whose answer means nothing."""
        return Request("", image, {name: "" if dtype == tf.string else 0 for name, dtype in self.side.items()})

    def turns_upright(self) -> bool:
        """Returns whether the graph turns photos upright by their EXIF, and by XMP where that alone tells.

        Such a graph gets them unchanged; for another one they are turned, and encoded anew. The graph itself is asked,
        about one small image: it can be older than the rest of the model, whose training took it from a cache.
        """
        if not self.has_halves:
            return False
        half = np.repeat(np.array([[[255]] * 16 + [[0]] * 16], np.uint8), 32, axis=0)  # white, black
        encoded = tf.io.encode_jpeg(half, xmp_metadata='tiff:Orientation="3"')  # graphs that read XMP read EXIF, too
        tensors = self.build_tensors([self.build_trial_request(encoded.numpy())])
        row = self.loaded.preprocess(**tensors)[IMAGE][0, 0, :, 0].numpy()
        return bool(row[0] < row[-1])

    @property
    def has_halves(self) -> bool:
        """Whether decoding and network can be asked one by one; those of early versions can't."""
        return hasattr(self.loaded, "preprocess")

    @property
    def side_types(self) -> dict[str, str]:
        """Type of each side feature: ``string``, ``float32`` or ``int64``."""
        return {name: dtype.name for name, dtype in self.side.items()}

    def find_problem(self, request: Request) -> str | None:
        """Returns which side feature a request lacks, or has with another type, as text; None if it has all."""
        for name, dtype in self.side.items():
            if name not in request.side:
                return f"the model needs '{name}' next to the image"
            value = request.side[name]
            if value is None and dtype != tf.float32:  # whose NaN the graph takes for a missing value
                return f"'{name}' is missing, and the model needs a {dtype.name} there"
            is_whole = (
                isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
            )  # 3.0, as pandas writes it
            if value is not None and not (isinstance(value, _PYTHON_TYPES[dtype]) or (is_whole and dtype == tf.int64)):
                return f"'{name}' is {value!r}; the model needs a {dtype.name} there"
        return None

    def build_tensors(self, requests: Sequence[Request]) -> dict[str, tf.Tensor]:
        """Returns ``input`` and the side features of requests that lack none, ``[n]`` each."""
        tensors = {"input": tf.constant([request.image for request in requests], tf.string)}
        for name, dtype in self.side.items():
            values: Sequence[Value] = [request.side[name] for request in requests]
            if dtype == tf.float32:
                values = fill_missing(values)
            elif dtype == tf.int64:
                values = [int(cast(float, value)) for value in values]
            tensors[name] = tf.constant(values, dtype)
        return tensors

    def preprocess(self, requests: Sequence[Request]) -> Arrays:
        """Decodes and resizes the images of requests, which lack no side feature.

        Returns:
            The outputs of the Transform graph by name, ``[n, …]`` each.

        Raises:
            tf.errors.InvalidArgumentError: if an image can't be decoded.
        """
        return {name: tensor.numpy() for name, tensor in self.loaded.preprocess(**self.build_tensors(requests)).items()}

    def answer(self, inputs: Arrays) -> Arrays:
        """Returns ``classes``, ``label``, ``score``, ``novelty`` and ``embedding`` of what ``preprocess`` made.

        For any number of threads, see ``at_once``.
        """
        with self._turns:
            answers = self.loaded.answer(**{name: tf.constant(array) for name, array in inputs.items()})
            return {name: tensor.numpy() for name, tensor in answers.items()}

    def answer_alone(self, inputs: Arrays) -> Arrays:
        """Does as ``answer``, for one image with nothing else to be computed meanwhile."""
        return self.answer(inputs)

    def warm(self) -> None:
        """Makes first answers take no longer than others."""

    def predict(self, requests: Sequence[Request]) -> list[Prediction]:
        """Answers one batch of requests, which lack no side feature."""
        return self.build_predictions(requests, self.compute(requests))

    def compute(self, requests: Sequence[Request]) -> Arrays:
        """Returns what ``answer`` does about one batch of requests, which lack no side feature."""
        if self.has_halves:
            return self.answer(self.preprocess(requests))
        ids = tf.constant([request.id for request in requests], tf.string)  # models of the first versions
        outputs = self.loaded.signatures["serving_default"](metadata=ids, **self.build_tensors(requests))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def build_predictions(self, requests: Sequence[Request], outputs: Arrays) -> list[Prediction]:
        """Returns the answers to requests, of the outputs for their images."""
        novelty = outputs["novelty"].tolist() if self.has_novelty else [None] * len(requests)
        rows = zip([request.id for request in requests], outputs["label"], outputs["classes"], novelty, strict=True)
        return [self._build_prediction(*row) for row in rows]

    def _build_prediction(self, id_: str, label: bytes, classes: np.ndarray, novelty: float | None) -> Prediction:
        scores = {self.labels[i]: float(classes[i]) for i in np.argsort(-classes, kind="stable")}
        text = label.decode()
        answer = {"classification": [text], "multilabel": text.split(LABEL_SEPARATOR), "regression": self.labels}
        names = tuple(name for name in scores if text and name in answer[self.task])
        return Prediction(id_, text, float(classes.max()), scores, names, novelty)

    def predict_examples(self, examples: Sequence[bytes]) -> list[tuple[np.ndarray, str, float | None]]:
        """Answers one batch of serialized Examples by the signature ``tf_examples``.

        Returns:
            The outputs ``classes``, float32 ``[k]``, ``label`` and ``novelty``, if the model has that, of each Example.
        """
        outputs = self.loaded.signatures["tf_examples"](examples=tf.constant(examples, tf.string))
        texts = [label.decode(errors="replace") for label in outputs["label"].numpy()]
        novelty = outputs["novelty"].numpy().tolist() if self.has_novelty else [None] * len(texts)
        return list(zip(outputs["classes"].numpy(), texts, novelty, strict=True))


def _read_signatures(folder: Path) -> dict[str, Any]:
    """Reads the signatures alone: the graph beside them may have 100 MB of constants."""
    with (folder / GRAPH).open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # until its last part is gone
    fields = b"".join(
        bytes(entry)
        for number, graph, _ in iterate_fields(view)
        if number == saved_model_pb2.SavedModel.META_GRAPHS_FIELD_NUMBER and graph is not None
        for inner, _, entry in iterate_fields(graph)
        if inner == meta_graph_pb2.MetaGraphDef.SIGNATURE_DEF_FIELD_NUMBER
    )
    return {
        name: json_format.MessageToDict(signature, preserving_proto_field_name=True)
        for name, signature in meta_graph_pb2.MetaGraphDef.FromString(fields).signature_def.items()
    }
