from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.features import IMAGE, TARGET
from trainer.augmentation import make_augmentation
from trainer.config import AugmentationConfig
from trainer.inputs import LoadedSplit, load_split, make_batches, read_batches, shuffle_epochs
from trainer.tasks import make_classification, make_multilabel, make_regression
from transform.examples import read_shards


def fake_transform(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Records are numbers: the pixel, twice the side feature, and modulo 3 the target."""
    numbers = tf.strings.to_number(serialized, tf.int64)
    pixels = tf.ensure_shape(
        tf.tile(tf.cast(tf.reshape(numbers, [-1, 1, 1, 1]), tf.uint8), [1, 4, 4, 3]), [None, 4, 4, 3]
    )
    return {IMAGE: pixels, "weight": tf.cast(numbers, tf.float32) / 2, TARGET: numbers % 3}


TASK = make_classification(3)


@pytest.fixture
def split(pattern, tmp_path):
    return load_split(read_shards([pattern]), fake_transform, TASK, tmp_path / "pixels")


def numbers(batches: tf.data.Dataset) -> list[int]:
    return [int(n) for images, _ in batches for n in images[IMAGE][:, 0, 0, 0]]


def test_every_example_is_read_once_with_its_own_side_features_and_target(split):
    assert split.count == 60
    assert sorted(numbers(make_batches(split, 7))) == list(range(60))
    for batch, target in make_batches(split, 7):
        pixel = batch[IMAGE][:, 3, 3, 2].numpy()
        assert np.array_equal(batch["weight"], pixel / 2)
        assert np.array_equal(target, np.eye(3)[pixel % 3])


def test_each_image_is_transformed_once_however_often_it_is_read(pattern, tmp_path):
    calls = tf.Variable(0)

    def counting(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        calls.assign_add(tf.size(serialized))
        return fake_transform(serialized)

    batches = make_batches(load_split(read_shards([pattern]), counting, TASK, tmp_path / "pixels"), 8)
    assert numbers(batches) == numbers(batches) == numbers(batches)
    assert int(calls) == 60
    again = make_batches(load_split(read_shards([pattern]), counting, TASK, tmp_path / "pixels"), 8)  # another training
    assert int(calls) == 60
    for (inputs, targets), (inputs_again, targets_again) in zip(batches, again, strict=True):
        assert np.array_equal(targets, targets_again)
        assert all(np.array_equal(inputs[name], inputs_again[name]) for name in (IMAGE, "weight"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def replace_arrays(**arrays: np.ndarray):
    def replace(path: Path) -> None:
        stored = dict(np.load(path)) | {name.replace("__", "/"): array for name, array in arrays.items()}
        np.savez(path, **stored)

    return replace


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("pixels", Path.unlink),
        ("pixels", cut),
        ("pixels.npz", Path.unlink),  # as when it was killed before the pixels were whole
        ("pixels.npz", cut),
        ("pixels.npz", lambda path: path.write_bytes(b"")),
        ("pixels.npz", lambda path: np.savez(path, a=np.zeros(60))),
        ("pixels.npz", replace_arrays(target=np.zeros(59, np.int32))),
        ("pixels.npz", replace_arrays(target=np.zeros((60, 3), np.float32))),
        ("pixels.npz", replace_arrays(side__weight=np.zeros((60, 2), np.float32))),
    ],
)
def test_what_is_not_whole_is_transformed_again(pattern, split, name, damage):
    path = split.images.path
    whole = path.read_bytes()
    damage(path.with_name(name))
    again = load_split(read_shards([pattern]), fake_transform, TASK, path)
    assert path.read_bytes() == whole
    assert np.array_equal(again.targets, split.targets)
    assert np.array_equal(again.side["weight"], split.side["weight"])


FORMULAS = {  # of dense targets, as they were kept in memory once
    "classification": (make_classification(3, 0.1), lambda target: tf.one_hot(target, 3)),
    "multilabel": (make_multilabel(3, 0.1), lambda target: tf.cast(target, tf.float32)),
    "regression": (make_regression("huber"), lambda target: tf.reshape(tf.cast(target, tf.float32), [-1, 1])),
}


@pytest.mark.parametrize(("name", "formula"), FORMULAS.items(), ids=FORMULAS.keys())
def test_batches_mixed_targets_and_losses_are_those_of_dense_targets_bit_for_bit(pattern, tmp_path, name, formula):
    task, make_dense = formula
    records = read_shards([pattern])

    def transform(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = fake_transform(serialized)
        number = tf.cast(inputs["weight"], tf.float32)
        several = tf.stack([number % 2, number % 3, number % 5], axis=1)
        targets = {"multilabel": tf.cast(several < 1, tf.float32), "regression": number / 7}
        return inputs | {TARGET: targets.get(name, inputs[TARGET])}

    dense = make_dense(tf.concat([transform(batch)[TARGET] for batch in records.batch(8)], axis=0))
    split = load_split(records, transform, task, tmp_path / "pixels")
    ((inputs, targets),) = make_batches(split, 60)
    assert targets.dtype == dense.dtype == tf.float32
    assert np.array_equal(targets, dense)
    augment = make_augmentation(AugmentationConfig(mixup=0.4, cutmix=0.4))
    mixed, expected = (augment(inputs[IMAGE], t, tf.constant([1, 2]))[1] for t in (targets, dense))
    assert np.array_equal(mixed, expected)
    outputs = tf.random.stateless_uniform(dense.shape, [0, 1])
    assert np.array_equal(task.loss(mixed, outputs), task.loss(expected, outputs))


def test_no_dataset_has_a_tuner_that_delays_dropping_its_iterator(pattern, split):
    records = read_shards([pattern]).batch(2)
    batches = read_batches(split, shuffle_epochs(split.count, 60, 8, seed=1, first=0))
    for dataset in (records, batches, make_batches(split, 8).prefetch(2)):
        assert dataset.options().autotune.enabled is False


def epochs(split: LoadedSplit, count: int, examples: int = 60, seed: int = 1, first: int = 0) -> list[list[int]]:
    steps = -(-examples // 8)
    indices = shuffle_epochs(split.count, examples, 8, seed, first)
    batches = read_batches(split, indices)
    return [numbers(batches.skip(epoch * steps).take(steps)) for epoch in range(count)]


def test_training_order_changes_with_each_epoch_and_is_the_same_for_the_same_seed(split):
    first = epochs(split, 2)
    assert sorted(first[0]) == sorted(first[1]) == list(range(60))
    assert first[0] != first[1]
    assert epochs(split, 2) == first
    assert epochs(split, 2, seed=2) != first


def test_an_epoch_is_the_same_whether_or_not_those_before_it_were_read(split):
    assert epochs(split, 1, first=2) == epochs(split, 3)[2:]


@pytest.mark.parametrize("examples", [40, 90])
def test_an_epoch_may_take_fewer_examples_than_there_are_or_more(split, examples):
    (taken,) = epochs(split, 1, examples)
    assert len(taken) == examples
    counts = np.bincount(taken, minlength=60)
    assert set(counts) == ({0, 1} if examples < 60 else {1, 2})


def test_parts_of_a_split_have_their_own_examples_and_joined_all_of_them(split):
    odd, even = (replace(split, groups=np.arange(60)).select(np.arange(first, 60, 2)) for first in (1, 0))
    assert odd.count == even.count == 30
    joined = odd.join(even)
    assert np.array_equal(joined.groups, [*range(1, 60, 2), *range(0, 60, 2)])
    assert numbers(make_batches(joined, 7)) == numbers(make_batches(odd, 7)) + numbers(make_batches(even, 7))
    for batch, target in make_batches(joined.select(np.arange(10, 50)), 7):
        pixel = batch[IMAGE][:, 3, 3, 2].numpy()
        assert np.array_equal(batch["weight"], pixel / 2)
        assert np.array_equal(target, np.eye(3)[pixel % 3])


def test_an_empty_split_is_one(tmp_path):
    (tmp_path / "none.gz").write_bytes(b"")
    split = load_split(read_shards([str(tmp_path / "none.gz")]), fake_transform, TASK, tmp_path / "pixels")
    assert split.count == 0
    again = load_split(read_shards([str(tmp_path / "none.gz")]), fake_transform, TASK, tmp_path / "pixels")
    assert again.count == 0


def test_a_truncated_file_is_an_error(split):
    path = split.images.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="ends before row 59"):
        split.images.read(np.array([3, 59]))
