"""Asks a SavedModel in this process."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from imagepipe.base.errors import ModelError
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.images import BadImage, prepare_for_decoder
from imagepipe.deploy.versions import labels, model_task
from imagepipe.serving.predictions import Prediction
from imagepipe.serving.requests import Failure, Request, Value, normalized

_BATCH_SIZE = 32


class Model:
    """A SavedModel in memory.

    Attributes:
        folder: where it came from.
        names: of its outputs, in the order of the signature's ``classes``.
        side: types of the side features that it needs, by name.
        loaded: the SavedModel, as TensorFlow gives it.
    """

    def __init__(self, folder: Path):
        """Loads it.

        Args:
            folder: the SavedModel's.

        Raises:
            ModelError: if it can't be loaded.
        """
        try:
            self.loaded = tf.saved_model.load(str(folder))  # it owns what the signature uses
            self._serve = self.loaded.signatures["serving_default"]
            self.folder, self.names, self._task = folder, labels(folder), model_task(folder)
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise ModelError(f"{folder} can't be loaded as a model of this pipeline: {error}") from error
        taken = self._serve.structured_input_signature[1]
        self.side = {name: taken[name].dtype for name in sorted(taken) if name not in ("input", "metadata")}

    def missing(self, request: Request) -> str | None:
        """What the model needs and a request has not got, in words; None if it has all."""
        for name, dtype in self.side.items():
            if name not in request.side:
                return f"the model needs '{name}' next to the image"
            if not isinstance(request.side[name], _PYTHON_TYPES[dtype]):
                return f"'{name}' is {request.side[name]!r}; the model needs a {dtype.name} there"
        return None

    def tensors(self, requests: list[Request]) -> dict[str, tf.Tensor]:
        """``input`` and the side features of requests that miss nothing, ``[n]``."""
        side = {name: [request.side[name] for request in requests] for name in self.side}
        return {"input": tf.constant([request.image for request in requests], tf.string)} | {
            name: tf.constant(values, self.side[name]) for name, values in side.items()
        }

    def predict(self, requests: list[Request]) -> list[Prediction]:
        """Answers one batch of requests that miss nothing."""
        answer = self._serve(
            metadata=tf.constant([request.id for request in requests], tf.string), **self.tensors(requests)
        )
        return [
            _prediction(*row, names=self.names, task=self._task)
            for row in zip(answer["metadata"].numpy(), answer["label"].numpy(), answer["classes"].numpy(), strict=True)
        ]


_PYTHON_TYPES: dict[tf.DType, type[Value] | tuple[type[Value], ...]] = {
    tf.string: str,
    tf.float32: (float, int),
    tf.int64: int,
}


def _prediction(metadata: bytes, label: bytes, classes: np.ndarray, names: list[str], task: str) -> Prediction:
    order = np.argsort(-classes, kind="stable")
    scores = {names[i]: float(classes[i]) for i in order}
    text = label.decode()
    said = {"classification": [text], "multilabel": text.split(LABEL_SEPARATOR), "regression": names}[task]
    return Prediction(
        metadata.decode(), text, float(classes.max()), scores, tuple(name for name in scores if name in said)
    )


def predict_all(model: Model, requests: Iterable[Request | Failure]) -> Iterator[Prediction | Failure]:
    """Asks a model, in batches, about images of any format that ``imagepipe ingest`` takes, treated as it treats them.

    Returns:
        One result a request, in their order; failures stay what they are.
    """
    remaining = iter(requests)
    while batch := list(itertools.islice(remaining, _BATCH_SIZE)):
        yield from _answers(model, [_checked(model, each) for each in batch])


def _checked(model: Model, asked: Request | Failure) -> Request | Failure:
    if isinstance(asked, Failure):
        return asked
    if problem := model.missing(asked):
        return Failure(asked.id, problem)
    try:
        return replace(asked, image=prepare_for_decoder(asked.image)[0])
    except BadImage as error:
        return Failure(asked.id, str(error))


def _answers(model: Model, batch: list[Request | Failure]) -> list[Prediction | Failure]:
    good = [each for each in batch if isinstance(each, Request)]
    try:
        answers = iter(model.predict(good) if good else ())
    except tf.errors.InvalidArgumentError:  # broken pixels: the graph finds them, and doesn't say whose
        proven = list(normalized(batch))
        if proven == batch:
            raise
        return _answers(model, proven)
    return [each if isinstance(each, Failure) else next(answers) for each in batch]
