"""Names of a served model's classes by the places of their scores: captured rows have the answer as text alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from imagepipe.base.names import TaskName
from imagepipe.monitoring.traffic import split_label

_MAX_TEXTS = 10_000  # of 1,000 labels 80 MB; fewer answers leave more names out, and name none wrongly


class AnsweredScores:
    """Scores that one model gave, by the text that it answered: of each class the lowest and the highest.

    Attributes:
        texts: all that were answered.
        ranges: of the first 10,000 the lowest and the highest scores, float32 ``[k]``.
    """

    def __init__(self) -> None:
        """Makes it, without answers."""
        self.texts: set[str] = set()
        self.ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._best: dict[int, str] = {}

    def add(self, text: str, scores: Sequence[float]) -> None:
        """Takes an answer; one without a label, as of an image that is too novel for one, tells nothing."""
        if text:
            row = np.asarray(scores, np.float32)
            self._best.setdefault(int(row.argmax()), text)
            self.texts.add(text)
            if text in self.ranges or len(self.ranges) < _MAX_TEXTS:
                lowest, highest = self.ranges.get(text, (row, row))
                self.ranges[text] = (np.minimum(lowest, row), np.maximum(highest, row))

    def name_places(self, task: TaskName) -> dict[int, str]:
        """Returns the names of those places among the scores of which it is certain."""
        if task == "multilabel":
            return infer_names(self.ranges)
        return self._best if task == "classification" else {}


def infer_names(ranges: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[int, str]:
    """Returns the names of the places where several labels may be answered at once.

    A label is answered from a threshold of its own on, which the rows don't have. So at its place all scores with it
    are higher than all without; a name with several such places, as of few answers, is left out.

    Args:
        ranges: by answer the lowest and the highest scores, float ``[k]``.
    """
    answered = {text: set(split_label(text, "multilabel")) for text in ranges}
    names = {}
    for name in sorted(set().union(*answered.values())):
        lowest = np.min([ranges[text][0] for text, labels in answered.items() if name in labels], axis=0)
        others = [ranges[text][1] for text, labels in answered.items() if name not in labels]
        places = np.flatnonzero(lowest > (np.max(others, axis=0) if others else -1))
        if len(places) == 1:
            names[int(places[0])] = name
    return names
