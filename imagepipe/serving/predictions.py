"""What a model says, wherever it was asked. Imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image.

    Attributes:
        id: the caller's name of the image.
        label: the most probable class; or the labels at their thresholds, joined by |; or the value as text.
        score: the highest probability, or the value.
        classes: probabilities of all classes or labels by name, the most probable first; or the value by the target's
            name.
        said: the names in ``label``, in the order of ``classes``; of a regression the target's name.
    """

    id: str
    label: str
    score: float
    classes: dict[str, float]
    said: tuple[str, ...]
