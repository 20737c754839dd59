"""Requests, answers and reports that the parts of serving, and their callers, exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Value = str | int | float | None
"""Value of a side feature; None for a number that is missing."""


@dataclass(frozen=True)
class Request:
    """A question about one image.

    Attributes:
        id: the caller's name for the image, returned with the answer.
        image: the encoded image; the serving graph decodes JPEG, PNG, BMP and GIF.
        side: side features by name.
    """

    id: str
    image: bytes
    side: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """A model's answer about one image.

    Attributes:
        id: the caller's name for the image.
        label: the most probable class; or the labels that reach their decision thresholds, joined by ``|``; or the
            value as text; '' for an image that is too novel, see ``serving.unknown``.
        score: the highest probability, or the value.
        classes: probability of every class or label by name, the most probable first; or the value by the target's
            name.
        labels: the names in ``label``, in the order of ``classes``; in a regression the target's name.
        novelty: how unlike the training images it is, 0 to 1: the share of images of their kind that are less novel;
            None from a model without.
    """

    id: str
    label: str
    score: float
    classes: dict[str, float]
    labels: tuple[str, ...]
    novelty: float | None = None


@dataclass(frozen=True)
class Failure:
    """An image without an answer.

    Attributes:
        id: the caller's name for the image, or the place in a file where it should have been.
        error: the reason.
    """

    id: str
    error: str


class RequestError(ValueError):
    """A request that can't be answered; the message gives the reason.

    Attributes:
        kind: the reason as one word, for counting.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Answers:
    """A model's answers about n images, as the server sends them.

    Attributes:
        classes: float32 ``[n, k]``.
        labels: one per image.
        scores: float32 ``[n]``.
        novelty: float32 ``[n]``; None from a model without.
        ids: the callers' names for the images.
        name: the model's name.
        version: the model's version.
        embedding: float32 ``[n, d]``, for captured traffic; None from a model whose answers don't have it.
    """

    classes: "np.ndarray"
    labels: list[str]
    scores: "np.ndarray"
    novelty: "np.ndarray | None"
    ids: list[str]
    name: str
    version: str
    embedding: "np.ndarray | None" = None


@dataclass(frozen=True)
class CheckReport:
    """Result of the check before a push.

    Attributes:
        problems: reasons why the model can't be served, as text; empty if it can.
        images: number of images that were asked about, in each format.
        refusals: number of bad requests that were refused as they should be.
        median_ms: latency of a request with one image, in milliseconds; None if it wasn't measured.
        p95_ms: 95th percentile of the same.
    """

    problems: list[str]
    images: int = 0
    refusals: int = 0
    median_ms: float | None = None
    p95_ms: float | None = None
