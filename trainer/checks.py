"""What makes training pointless, found before it begins."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from imagepipe.base.errors import TrainingError
from trainer.inputs import Split
from trainer.tasks import Task


def check(task: Task, names: list[str], splits: dict[str, Split], raw_labels: Callable[[str], Counter[str]]) -> None:
    """Refuses splits from which nothing can be learned, or that can't be evaluated.

    Args:
        task: what is to be learned.
        names: of the task's outputs.
        splits: ``train`` and ``eval``.
        raw_labels: counts the labels of a split as they are in the Examples; called to name those that are the trouble.

    Raises:
        TrainingError: if a split is empty, training has one class only, or examples have a class that is not in the
            train split, or no number where one is to be learned.
    """
    for name, split in splits.items():
        if not split.count:
            raise TrainingError(
                f"The {name} split is empty: nothing to {'train on' if name == 'train' else 'evaluate with'}. Ingest "
                "more images, or give it a larger share (imagepipe ingest --splits; data.split)."
            )
    if task.name == "classification" and len(names) < 2:
        raise TrainingError(
            f"The train split has one class only ('{names[0]}'), and so nothing to tell apart. Add images of another "
            "class, or let task be regression or multilabel."
        )
    for name, split in splits.items():
        unknown = int(np.count_nonzero(~task.known(split.targets)))
        if unknown and task.name == "classification":
            unseen = {label: count for label, count in raw_labels(name).items() if label not in names}
            listed = ", ".join(f"'{label}' ({count})" for label, count in sorted(unseen.items()))
            raise TrainingError(
                f"{unknown} of {split.count} images of the {name} split have a class of which the train split has "
                f"none: {listed}. Add images of it, or take these out."
            )
        if unknown:
            raise TrainingError(
                f"{unknown} of {split.count} Examples of the {name} split have no finite number as their label. "
                "Correct them, or take them out."
            )


def class_weights(given: str | dict[str, float] | None, names: list[str], targets: np.ndarray) -> np.ndarray | None:
    """How much an example of each class counts.

    Args:
        given: ``balanced``: inversely to the class's share, 1 on average over the examples; or by class, 1 where none
            is given; or None.
        names: of the classes.
        targets: of the train split, float32 ``[n, classes]``, one-hot.

    Returns:
        float32 ``[classes]``, or None if all count the same.

    Raises:
        TrainingError: if ``given`` names a class that there isn't.
    """
    if given is None:
        return None
    if isinstance(given, dict):
        if unknown := sorted(set(given) - set(names)):
            raise TrainingError(
                f"trainer.class_weights: {', '.join(unknown)}: no class of the train split, which are "
                f"{', '.join(names)}"
            )
        return np.array([given.get(name, 1) for name in names], np.float32)
    return (len(targets) / (len(names) * targets.sum(axis=0))).astype(np.float32)
