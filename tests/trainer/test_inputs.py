import numpy as np
import pytest
import tensorflow as tf

from trainer import inputs
from transform.features import IMAGE, TARGET


def fake_transform(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Records are numbers: the pixel, and the target that is it modulo 3 less 1, so that every third is unknown."""
    numbers = tf.strings.to_number(serialized, tf.int64)
    pixels = tf.cast(tf.reshape(numbers, [-1, 1, 1, 1]), tf.uint8)
    return {IMAGE: tf.tile(pixels, [1, 4, 4, 3]), TARGET: numbers % 3 - 1}


def known(target: tf.Tensor) -> tf.Tensor:
    return target >= 0


@pytest.fixture
def pattern(tmp_path):
    for shard in range(2):
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(tmp_path / f"{shard}.gz"), options) as writer:
            for number in range(shard * 30, shard * 30 + 30):
                writer.write(str(number).encode())
    return str(tmp_path / "*.gz")


def numbers(batches: tf.data.Dataset) -> list[int]:
    return [int(n) for images, _ in batches for n in images[IMAGE][:, 0, 0, 0]]


def test_every_known_example_is_read_once_and_those_of_unknown_label_are_left_out(pattern, tmp_path):
    split = inputs.load([pattern], fake_transform, str(tmp_path), known)
    assert split.count == 60
    assert sorted(numbers(inputs.evaluation_batches(split, 7))) == [n for n in range(60) if n % 3]


def test_training_order_changes_with_each_epoch_and_is_the_same_for_the_same_seed(pattern, tmp_path):
    def epochs(seed: int) -> list[list[int]]:
        tf.keras.utils.set_random_seed(seed)
        batches = inputs.training_batches(inputs.load([pattern], fake_transform, str(tmp_path), known), 8, seed)
        return [numbers(batches), numbers(batches)]

    first = epochs(1)
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1])
    assert epochs(1) == first
    assert epochs(2) != first


@pytest.mark.parametrize("available", [1, 10**9], ids=["on disk", "in memory"])
def test_each_image_is_transformed_once_wherever_the_pixels_are_kept(pattern, tmp_path, monkeypatch, available):
    memory = type("Memory", (), {"available": available})()
    monkeypatch.setattr(inputs.psutil, "virtual_memory", lambda: memory)
    calls = tf.Variable(0)

    def counting(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        calls.assign_add(tf.size(serialized))
        return fake_transform(serialized)

    cache = tmp_path / "cache"
    cache.mkdir()
    batches = inputs.evaluation_batches(inputs.load([pattern], counting, str(cache), known), 8)
    assert numbers(batches) == numbers(batches) == numbers(batches)
    assert int(calls) == 60
    assert any(cache.rglob("pixels*")) == (available == 1)


def test_records_come_in_the_same_order_each_time(pattern):
    first, second = (np.array(list(inputs.records([pattern]).as_numpy_iterator())) for _ in range(2))
    assert np.array_equal(first, second)
