"""A model that answers in the caller's own process."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import tensorflow as tf

from imagepipe.base.images import BadImage, prepare_for_decoder
from imagepipe.deploy.versions import find_model
from imagepipe.serving.inputs import Image, build_requests, normalize_images
from imagepipe.serving.limits import BATCH_SIZE
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.types import Failure, Prediction, Request, Value

Observe = Callable[[Request, Request, Prediction], None]


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
    return Predictor(LoadedModel(find_model(Path(path)), key=Path(verify) if verify else None))


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
            side: side features of each image by name; None if the model needs none.

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
        """Answers requests in batches; memory holds one batch, whatever their number.

        Images of any format that ``imagepipe ingest`` takes are converted as it converts them.

        Args:
            requests: those that could not be read are failures.
            observe: called with each request that was answered, the same as the model decoded it, and the answer.

        Returns:
            One answer per request, in their order; failures are passed through.
        """
        remaining = iter(requests)
        while batch := list(itertools.islice(remaining, BATCH_SIZE)):
            prepared = [self._prepare(request) for request in batch]
            answers = self._predict_batch(prepared)
            if observe:
                for sent, decoded, answer in zip(batch, prepared, answers, strict=True):
                    if isinstance(sent, Request) and isinstance(decoded, Request) and isinstance(answer, Prediction):
                        observe(sent, decoded, answer)
            yield from answers

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

    def _predict_batch(self, batch: list[Request | Failure]) -> list[Prediction | Failure]:
        requests = [request for request in batch if isinstance(request, Request)]
        try:
            answers = iter(self.model.predict(requests) if requests else ())
        except tf.errors.InvalidArgumentError:  # broken pixels: the graph finds them, and doesn't say in which image
            decoded = list(normalize_images(batch))
            if decoded == batch:
                raise
            return self._predict_batch(decoded)
        return [request if isinstance(request, Failure) else next(answers) for request in batch]
