"""A model that answers in the caller's own process."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import joblib
import numpy as np
import tensorflow as tf

from imagepipe.base.images import BadImage, prepare_for_decoder
from imagepipe.base.workers import map_in_order
from imagepipe.deploy.versions import find_model
from imagepipe.serving.inputs import Image, build_requests, normalize_images
from imagepipe.serving.limits import NETWORK_BATCH_SIZE
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.openvino_model import load_served
from imagepipe.serving.types import Failure, Prediction, Request, Value

Embedding = np.ndarray | None
"""Float ``[d]``; None from a model whose answers don't have it."""

Observe = Callable[[Request, Request, Prediction, Embedding], None]

_Answer = tuple[Prediction | Failure, Embedding]
_Row = tuple[Request | Failure, Request | Failure, *_Answer]
"""A request as it came, the same as it was decoded, and the answer."""


def load(path: str | os.PathLike[str], verify: str | os.PathLike[str] | None = None) -> "Predictor":
    """Loads a model into this process.

    Examples:
        >>> predictor = imagepipe.load("flowers/serving/flowers")
        >>> for answer in predictor.predict(["photos/1.jpg", "photos/2.jpg"]):
        ...     if isinstance(answer, imagepipe.Prediction):
        ...         print(answer.id, answer.label, answer.score)

    Args:
        path: a SavedModel, a folder of versions (the newest is loaded) or the folder of a run (its model is loaded,
            blessed or not).
        verify: file in PEM with a public key; with it nothing is loaded that isn't signed with its private key.

    Raises:
        ModelError: if there is no model, or it can't be loaded, or isn't signed.
    """
    return Predictor(load_served(find_model(Path(path)), Path(verify) if verify else None))


class Predictor:
    """A model in this process's memory; ``load`` makes it.

    Attributes:
        model: the SavedModel, with its ``folder``, ``task``, ``labels`` (names of its outputs) and ``side`` (types of
            the side features that it needs, by name).
    """

    def __init__(self, model: LoadedModel):
        self.model = model
        self._graph_turns = model.turns_upright()

    def predict(
        self, images: Iterable[Image], side: Iterable[Mapping[str, Value]] | None = None
    ) -> list[Prediction | Failure]:
        """Answers about images.

        Examples:
            >>> predictor.predict(["photo.jpg", jpeg_bytes, numpy.zeros((64, 64, 3), numpy.uint8)])
            >>> predictor.predict(["photo.jpg"], side=[{"weight": 1.5, "camera": "old"}])

        Args:
            images: paths, encoded images (any format that ``imagepipe ingest`` takes) or arrays uint8
                ``[height, width, 3]`` in RGB. The id of an answer is the path, or the image's number as text, from 0.
            side: side features of each image by name, None or NaN for a number that is missing; None if the model
                needs none.

        Returns:
            One answer per image, in their order; an image that can't be read, decoded or asked about is a ``Failure``
            with the reason, and the others are answered.

        Raises:
            ValueError: if ``images`` and ``side`` have different lengths.
            TypeError: if ``images`` is a single image, or one of them is of another type.
        """
        return list(self.predict_requests(build_requests(images, side)))

    def predict_requests(
        self, requests: Iterable[Request | Failure], observe: Observe | None = None
    ) -> Iterator[Prediction | Failure]:
        """Answers requests in batches; while the network computes some, the next ones are decoded.

        Memory holds some batches of 8: those at work, and as many again whose turn it is not yet.

        Images of any format that ``imagepipe ingest`` takes are converted as it converts them.

        Args:
            requests: those that could not be read are failures.
            observe: called with each request that was answered, the same as the model decoded it, the answer, and the
                image's embedding.

        Returns:
            One answer per request, in their order; failures are passed through.
        """
        for sent, prepared, answer, embedding in self._answer_all(iter(requests)):
            if observe and isinstance(answer, Prediction):
                observe(cast(Request, sent), cast(Request, prepared), answer, embedding)
            yield answer

    def _answer_all(self, requests: Iterator[Request | Failure]) -> Iterator[_Row]:
        batches = iter(lambda: list(itertools.islice(requests, NETWORK_BATCH_SIZE)), [])
        first = list(itertools.islice(batches, 2))
        if len(first) == 1:  # starting threads for it would take an image 1 to 4 ms
            yield from self._answer(first[0])
            return
        threads = joblib.cpu_count() + self.model.at_once  # that decode, or wait for the network
        with ThreadPoolExecutor(threads, "predict") as pool:
            for rows in map_in_order(pool, self._answer, itertools.chain(first, batches), ahead=2 * threads):
                yield from rows

    def _prepare(self, request: Request | Failure) -> Request | Failure:
        if isinstance(request, Failure):
            return request
        if problem := self.model.find_problem(request):
            return Failure(request.id, problem)
        try:
            image, *_ = prepare_for_decoder(request.image, decoder_turns=self._graph_turns)
            return replace(request, image=image)
        except BadImage as error:
            return Failure(request.id, str(error))

    def _answer(self, sent: list[Request | Failure]) -> list[_Row]:
        prepared = [self._prepare(request) for request in sent]
        try:
            predictions = iter(self._predict(prepared))
        except tf.errors.InvalidArgumentError:  # broken pixels: the graph finds them, and doesn't say in which image
            prepared = list(normalize_images(prepared))
            try:
                predictions = iter(self._predict(prepared))
            except tf.errors.InvalidArgumentError:  # one that Pillow decodes
                prepared = [self._try_alone(request) for request in prepared]
                predictions = iter(self._predict(prepared))
        return [
            (one, decoded, *((decoded, None) if isinstance(decoded, Failure) else next(predictions)))
            for one, decoded in zip(sent, prepared, strict=True)
        ]

    def _try_alone(self, request: Request | Failure) -> Request | Failure:
        """Returns a request that the model answers, or a failure if it is the image that it refuses.

        Raises:
            tf.errors.InvalidArgumentError: if it refuses the request with a sound image, too.
        """
        try:
            self._predict([request])
        except tf.errors.InvalidArgumentError:
            sound = tf.io.encode_png(np.zeros((1, 1, 3), np.uint8)).numpy()
            self._predict([replace(cast(Request, request), image=sound)])
            return Failure(request.id, "broken image: the model can't decode it")
        return request

    def _predict(self, batch: list[Request | Failure]) -> list[_Answer]:
        requests = [request for request in batch if isinstance(request, Request)]
        if not requests:
            return []
        outputs = self.model.compute(requests)
        embeddings = outputs.get("embedding", [None] * len(requests))
        return list(zip(self.model.build_predictions(requests, outputs), embeddings, strict=True))
