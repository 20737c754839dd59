from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

import trainer.data
from imagepipe.base.errors import TrainingError
from imagepipe.base.features import Features
from tests.conftest import make_example
from trainer.config import TrainerConfig
from trainer.data import (
    check_targets,
    choose_validation,
    compute_class_weights,
    compute_pixel_statistics,
    hash_groups,
    load_data,
)
from trainer.tasks import make_classification, make_multilabel, make_regression

TWO = make_classification(2)


def split(*targets: int) -> np.ndarray:
    return np.array(targets, np.int32)


def refuse(*args: object) -> Counter[str]:
    raise AssertionError("labels are read only to name what is wrong")


def test_what_can_be_learned_passes_and_its_labels_are_not_read():
    asked: list[str] = []
    check_targets(TWO, ["a", "b"], {"train": split(0, 1), "eval": split(1)}, asked.append)
    none, one = (np.array([[n]], np.uint8) for n in (0, 1))
    check_targets(make_multilabel(1), ["a"], {"train": none, "eval": one}, asked.append)
    assert not asked


@pytest.mark.parametrize("empty", ["train", "eval"])
def test_an_empty_split_is_named(empty):
    splits = {"train": split(0), "eval": split(1), empty: split()}
    with pytest.raises(TrainingError, match=f"The {empty} split is empty"):
        check_targets(TWO, ["a", "b"], splits, refuse)


def test_a_single_class_is_named():
    with pytest.raises(TrainingError, match="one class only \\('cat'\\)"):
        check_targets(make_classification(1), ["cat"], {"train": split(0), "eval": split(0)}, refuse)


def test_a_class_that_training_lacks_is_named_with_its_number_of_images():
    splits = {"train": split(0, 1), "eval": split(1, -1, -1)}
    with pytest.raises(TrainingError, match=r"2 of 3 images of the eval split .*none: 'zebra' \(2\)"):
        check_targets(TWO, ["a", "b"], splits, lambda name: Counter({"b": 1, "zebra": 2}))


def test_a_missing_number_is_counted():
    task = make_regression("huber")
    splits = {"train": np.array([[1], [np.nan]], np.float32), "eval": np.array([[2]], np.float32)}
    with pytest.raises(TrainingError, match="1 of 2 Examples of the train split have no finite number"):
        check_targets(task, ["price"], splits, refuse)


def draw_hashes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**62, count)


def test_a_tenth_of_the_groups_is_set_aside_whole_and_the_choice_stays_as_the_set_grows():
    hashes = np.repeat(draw_hashes(1000), 3)
    targets = np.tile(split(0, 1), 1500)
    chosen = choose_validation(TWO, targets, hashes, 0.1)
    assert 0.08 < chosen.mean() < 0.12
    assert not set(hashes[chosen]) & set(hashes[~chosen])
    grown = np.random.default_rng(1).permutation(len(hashes))
    assert np.array_equal(choose_validation(TWO, targets[grown][:99], hashes[grown][:99], 0.1), chosen[grown][:99])


@pytest.mark.parametrize("task", [TWO, make_regression("huber")])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
def test_of_few_groups_about_the_share_is_set_aside_whatever_their_hashes(count, task):
    rng = np.random.default_rng(count)
    for _ in range(50):
        hashes = np.repeat(rng.integers(0, 2**62, count), 60)
        targets = np.tile(split(0, 1), 30 * count) if task is TWO else np.ones((len(hashes), 1), np.float32)
        chosen = choose_validation(task, targets, hashes, 0.1)
        assert max(1, count // 20) / count <= chosen.mean() <= max(0.2, 1 / count) + 1e-9
        assert not set(hashes[chosen]) & set(hashes[~chosen])


def test_a_group_that_is_most_of_the_images_is_trained_on_though_its_hash_is_the_lowest():
    hashes = np.repeat([1, 2**61, 2**61 + 1, 2**61 + 2], [600, 100, 100, 100])
    chosen = choose_validation(TWO, np.tile(split(0, 1), 450), hashes, 0.1)
    assert set(hashes[chosen]) == {2**61}


@pytest.mark.parametrize("task", [TWO, make_multilabel(2), make_regression("huber")])
@pytest.mark.parametrize(
    ("sizes", "smallest"), [([900, 100], 100), ([995, 5], 5), ([600, 390, 10], 10), ([500, 500], 500)]
)
def test_of_groups_that_are_all_too_large_the_smallest_is_set_aside_whichever_has_the_highest_hash(
    task, sizes, smallest
):
    targets = {
        "classification": np.tile(split(0, 1), 500),
        "multilabel": np.packbits(np.eye(2, dtype=bool)[np.arange(1000) % 2], axis=1),
        "regression": np.ones((1000, 1), np.float32),
    }[task.name]
    for drawn in (draw_hashes(9)[: len(sizes)], *np.random.default_rng(3).integers(0, 2**62, (20, len(sizes)))):
        assert choose_validation(task, targets, np.repeat(drawn, sizes), 0.1).sum() == smallest


def test_a_group_is_set_aside_though_each_is_the_last_one_of_a_class_as_long_as_others_have_its_classes():
    hashes = np.repeat([1, 2**61, 2**61 + 5], 40)  # of the classes 0 and 1, 1 and 2, and 2
    targets = np.repeat(split(0, 1, 1, 2, 2), [20, 20, 20, 20, 40])
    assert set(hashes[choose_validation(make_classification(3), targets, hashes, 0.1)]) == {2**61}


def test_no_group_of_more_than_half_of_the_images_is_set_aside_though_the_smaller_one_can_not_be():
    hashes = np.repeat([1, 2**61], [900, 100])
    targets = np.repeat(split(0, 1, 2), [450, 450, 100])
    assert not choose_validation(make_classification(3), targets, hashes, 0.1).any()
    hashes = np.repeat([1, 2**61], [600, 400])
    assert choose_validation(TWO, np.tile(split(0, 1), 500), hashes, 0.5).mean() == 0.6
    hashes = np.repeat([1, 2**61], [900, 100])
    assert choose_validation(TWO, np.tile(split(0, 1), 500), hashes, 0.5).mean() == 0.1


def test_a_group_set_aside_of_few_stays_so_when_images_are_added_to_all():
    rng = np.random.default_rng(0)
    groups = draw_hashes(8)
    hashes = np.repeat(groups, rng.integers(40, 60, 8))
    grown = np.repeat(groups, rng.integers(90, 110, 8))
    kept, then = (set(h[choose_validation(TWO, np.arange(len(h)) % 2, h, 0.1)]) for h in (hashes, grown))
    assert kept == then


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (make_classification(3), split(0, 0, 1, 1, 2)),
        (make_multilabel(3), np.packbits([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 1]], axis=1)),
    ],
)
def test_of_a_class_that_would_be_set_aside_altogether_one_group_stays(task, targets):
    hashes = np.array([1, 2**61, 3, 4, 4])
    assert choose_validation(task, targets, hashes, 0.2).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("task", [TWO, make_regression("huber")])
def test_nothing_is_set_aside_of_one_group(task):
    assert not choose_validation(task, np.zeros((40, 1) if task is not TWO else 40, np.int32), np.ones(40), 0.1).any()


def test_images_of_one_group_and_copies_of_an_image_without_one_or_of_an_empty_one_have_the_same_hash():
    plain, copy, other = make_example(b"a"), make_example(b"a", "x"), make_example(b"b")
    grouped = [make_example(b"a", group="g"), make_example(b"c", group="g")]
    nameless = make_example(b"a", group="")
    numbered = make_example(b"a")
    numbered.features.feature["group"].int64_list.value.append(7)
    records = [example.SerializeToString() for example in (plain, copy, other, *grouped, numbered, nameless)]
    hashes = hash_groups(tf.constant(records), Features()).numpy()
    assert hashes[0] == hashes[1] == hashes[6]
    assert hashes[3] == hashes[4]
    assert len(set(hashes)) == 4
    assert hashes.min() >= 0
    # Fixed for all times: another hash would exchange the images that a model was chosen on for others.
    assert hashes[0] == 1170416445458845835


@pytest.mark.slow  # the graph is traced for each split
def test_what_is_set_aside_is_not_trained_on_and_no_image_of_the_eval_split_is_decoded(arguments, tmp_path):
    config = TrainerConfig(weights="none", validation=0.5)
    data = load_data(SimpleNamespace(**arguments(tmp_path)), config, tmp_path)
    assert data.is_set_aside
    images = [part.images.read(np.arange(part.count)) for part in (data.train, data.validation)]
    assert len(images[0]) + len(images[1]) == 48
    assert not {image.tobytes() for image in images[0]} & {image.tobytes() for image in images[1]}
    assert set(data.train.side) == {"transformed_weight", "missing_value_of_weight", "transformed_camera"}
    assert [path.name for path in tmp_path.glob("*.pixels")] == ["train.pixels"]


@pytest.mark.slow
def test_why_the_eval_split_is_chosen_on_is_said_and_that_then_a_refit_has_no_effect(
    arguments, tmp_path, caplog, monkeypatch
):
    config = TrainerConfig(weights="none", refit=True)
    data = load_data(SimpleNamespace(**arguments(tmp_path)), config, tmp_path)
    assert not data.is_set_aside
    assert "of 48 images of the train split would be set aside to choose on, and 20 are the minimum" in caplog.text
    assert "trainer.refit has no effect" in caplog.text
    monkeypatch.setattr(trainer.data, "choose_validation", lambda *arguments: np.zeros(48, bool))
    load_data(SimpleNamespace(**arguments(tmp_path)), TrainerConfig(weights="none"), tmp_path)
    assert "no group of the train split can be set aside to choose on" in caplog.text
    assert caplog.text.count("trainer.refit") == 1


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
