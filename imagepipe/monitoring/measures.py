"""Names and values that are compared of images and of answers about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

MEASURES = ("width", "height", "aspect", "bytes", "brightness", "contrast")
"""Columns of images, which are compared with the train split."""

ANSWERS = ("score", "novelty")
"""Columns of answers, which are compared with what the model said of the eval split."""

LABEL, EMBEDDING = "label", "embedding"

KEY = b"imagepipe"
"""Key of the metadata of a reference, whose value is JSON: ``task``, ``version`` and ``run``."""

Versus = Literal["train", "eval"]


@dataclass(frozen=True)
class Sample:
    """Images, by what is compared.

    Attributes:
        numbers: float ``[n]`` by the column's name, NaN for a missing value.
        labels: of each image, as answered; empty if they are not compared, as in a regression.
        embedding: float ``[m, d]``, of some of the images; None if there are none.
    """

    numbers: Mapping[str, np.ndarray]
    labels: Sequence[Sequence[str]]
    embedding: np.ndarray | None
