from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from imagepipe.base.errors import TrainingError
from trainer import checks, tasks
from trainer.inputs import Rows, Split

ROWS = Rows(Path("unread"), (1, 1, 3), np.dtype(np.uint8))
TWO = tasks.classification(2)


def split(*targets: list[float]) -> Split:
    return Split(ROWS, {}, np.array(targets, np.float32))


def refuse(*args: object) -> Counter[str]:
    raise AssertionError("labels are read only to name what is wrong")


def test_what_can_be_learned_passes():
    checks.check(TWO, ["a", "b"], {"train": split([1, 0], [0, 1]), "eval": split([0, 1])}, refuse)
    checks.check(tasks.multilabel(1), ["a"], {"train": split([0]), "eval": split([1])}, refuse)


@pytest.mark.parametrize("empty", ["train", "eval"])
def test_an_empty_split_is_named(empty):
    splits = {"train": split([1, 0]), "eval": split([0, 1]), empty: split()}
    with pytest.raises(TrainingError, match=f"The {empty} split is empty"):
        checks.check(TWO, ["a", "b"], splits, refuse)


def test_a_single_class_is_named():
    with pytest.raises(TrainingError, match="one class only \\('cat'\\)"):
        checks.check(tasks.classification(1), ["cat"], {"train": split([1]), "eval": split([1])}, refuse)


def test_a_class_that_training_lacks_is_named_with_its_number_of_images():
    splits = {"train": split([1, 0], [0, 1]), "eval": split([0, 1], [0, 0], [0, 0])}
    with pytest.raises(TrainingError, match=r"2 of 3 images of the eval split .*none: 'zebra' \(2\)"):
        checks.check(TWO, ["a", "b"], splits, lambda name: Counter({"b": 1, "zebra": 2}))


def test_a_missing_number_is_counted():
    splits = {"train": split([1], [np.nan]), "eval": split([2])}
    with pytest.raises(TrainingError, match="1 of 2 Examples of the train split have no finite number"):
        checks.check(tasks.regression("huber"), ["price"], splits, refuse)


def test_balanced_classes_weigh_the_same_together_and_1_on_average():
    targets = np.eye(2, dtype=np.float32)[[0, 0, 0, 1]]
    weights = checks.class_weights("balanced", ["a", "b"], targets)
    assert weights * targets.sum(axis=0) == pytest.approx([2, 2])
    assert (targets @ weights).mean() == pytest.approx(1)


def test_given_weights_are_taken_by_name_and_unknown_names_refused():
    targets = np.eye(2, dtype=np.float32)
    assert checks.class_weights(None, ["a", "b"], targets) is None
    assert checks.class_weights({"b": 3}, ["a", "b"], targets).tolist() == [1, 3]
    with pytest.raises(TrainingError, match=r"trainer\.class_weights: c: no class.*a, b"):
        checks.class_weights({"c": 3}, ["a", "b"], targets)
