"""A part of the training schedule, and how long its parts are."""

from dataclasses import dataclass
from typing import NamedTuple

import keras

from trainer.inputs import LoadedSplit


@dataclass(frozen=True)
class Phase:
    """A part of the schedule.

    Attributes:
        name: for people.
        model: the model to train, from the splits' inputs to the task's outputs; its frozen layers are set.
        variables: everything that training may change, including the random state of dropout.
        train: the images to train on.
        validation: the images to choose on.
        augmented: whether the images of ``train`` are augmented.
        views: number of views in ``train``, see ``inputs.shuffle_epochs``.
        epochs: maximum number of epochs.
        learning_rate: the peak.
    """

    name: str
    model: keras.Model
    variables: list[keras.Variable]
    train: LoadedSplit
    validation: LoadedSplit
    augmented: bool
    epochs: int
    learning_rate: float
    views: int = 1


class Chosen(NamedTuple):
    """How long a training is to be, as another one has chosen it on fewer images.

    Attributes:
        epochs: of each phase by name, see ``schedule.count_chosen``.
        images: number of images that were trained on in an epoch, which has as many steps again.
    """

    epochs: dict[str, int]
    images: int
