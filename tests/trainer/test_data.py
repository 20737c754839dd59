from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from trainer.data import check_splits, compute_class_weights, compute_pixel_statistics
from trainer.inputs import ArrayFile, LoadedSplit
from trainer.tasks import make_classification, make_multilabel, make_regression

PIXELS = ArrayFile(Path("unread"), (1, 1, 3), np.dtype(np.uint8))
TWO = make_classification(2)


def split(*targets: int) -> LoadedSplit:
    return LoadedSplit(PIXELS, {}, np.array(targets, np.int32), TWO)


def refuse(*args: object) -> Counter[str]:
    raise AssertionError("labels are read only to name what is wrong")


def test_what_can_be_learned_passes():
    check_splits(TWO, ["a", "b"], {"train": split(0, 1), "eval": split(1)}, refuse)
    none, one = (LoadedSplit(PIXELS, {}, np.array([[n]], np.uint8), make_multilabel(1)) for n in (0, 1))
    check_splits(make_multilabel(1), ["a"], {"train": none, "eval": one}, refuse)


@pytest.mark.parametrize("empty", ["train", "eval"])
def test_an_empty_split_is_named(empty):
    splits = {"train": split(0), "eval": split(1), empty: split()}
    with pytest.raises(TrainingError, match=f"The {empty} split is empty"):
        check_splits(TWO, ["a", "b"], splits, refuse)


def test_a_single_class_is_named():
    with pytest.raises(TrainingError, match="one class only \\('cat'\\)"):
        check_splits(make_classification(1), ["cat"], {"train": split(0), "eval": split(0)}, refuse)


def test_a_class_that_training_lacks_is_named_with_its_number_of_images():
    splits = {"train": split(0, 1), "eval": split(1, -1, -1)}
    with pytest.raises(TrainingError, match=r"2 of 3 images of the eval split .*none: 'zebra' \(2\)"):
        check_splits(TWO, ["a", "b"], splits, lambda name: Counter({"b": 1, "zebra": 2}))


def test_a_missing_number_is_counted():
    task = make_regression("huber")
    targets = {"train": [[1], [np.nan]], "eval": [[2]]}
    splits = {name: LoadedSplit(PIXELS, {}, np.array(rows, np.float32), task) for name, rows in targets.items()}
    with pytest.raises(TrainingError, match="1 of 2 Examples of the train split have no finite number"):
        check_splits(task, ["price"], splits, refuse)


def test_balanced_classes_weigh_the_same_together_and_1_on_average():
    targets = np.array([0, 0, 0, 1], np.int32)
    weights = compute_class_weights("balanced", ["a", "b"], targets)
    assert weights * np.bincount(targets) == pytest.approx([2, 2])
    assert weights[targets].mean() == pytest.approx(1)


@pytest.mark.parametrize("classes", [2, 7, 100])
def test_balanced_weights_are_those_of_dense_targets_bit_for_bit(classes):
    targets = np.random.default_rng(classes).integers(0, classes, 997).astype(np.int32)
    dense = np.eye(classes, dtype=np.float32)[targets]
    expected = (len(dense) / (classes * dense.sum(axis=0))).astype(np.float32)
    weights = compute_class_weights("balanced", [str(n) for n in range(classes)], targets)
    assert weights.dtype == np.float32
    assert np.array_equal(weights, expected)


def test_given_weights_are_taken_by_name_and_unknown_names_refused():
    targets = np.array([0, 1], np.int32)
    assert compute_class_weights(None, ["a", "b"], targets) is None
    assert compute_class_weights({"b": 3}, ["a", "b"], targets).tolist() == [1, 3]
    with pytest.raises(
        TrainingError, match=r"trainer\.class_weights: c: not among the labels of the split train, which are a, b"
    ):
        compute_class_weights({"c": 3}, ["a", "b"], targets)


def test_statistics_are_those_of_all_pixels_whatever_their_order_and_batches():
    images = np.random.default_rng(0).integers(0, 256, (50, 9, 7, 3)).astype(np.uint8)
    images[..., 2] = 7
    statistics = compute_pixel_statistics(tf.data.Dataset.from_tensor_slices(images).batch(8))
    assert statistics == compute_pixel_statistics(reversed(images))
    pixels = images.reshape(-1, 3).astype(np.float64)
    assert statistics.mean == pytest.approx(pixels.mean(axis=0), rel=1e-14)
    assert statistics.variance == pytest.approx(pixels.var(axis=0), rel=1e-12)
    assert (statistics.mean[2], statistics.variance[2]) == (7, 0)


def test_no_images_have_no_statistics():
    with pytest.raises(ValueError, match="no images"):
        compute_pixel_statistics([])
