"""A part of the training schedule."""

from dataclasses import dataclass

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
