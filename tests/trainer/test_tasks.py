import numpy as np
import pytest
import tensorflow as tf

from trainer.config import TrainerConfig, list_thresholds
from trainer.tasks import make_classification, make_multilabel, make_regression, make_task, measure_targets


@pytest.mark.parametrize(
    ("task", "target", "kept", "encoded"),
    [
        (make_classification(3), tf.constant([2, 0, -1], tf.int64), np.int32, [[0, 0, 1], [1, 0, 0], [0, 0, 0]]),
        (make_multilabel(2), tf.constant([[1.0, 1.0], [0.0, 0.0]]), np.uint8, [[1, 1], [0, 0]]),
        (make_multilabel(9), tf.constant([[0.0] * 8 + [1.0]]), np.uint8, [[0] * 8 + [1]]),
        (make_regression("huber"), tf.constant([1.5, -2.1]), np.float32, [[1.5], [np.float32(-2.1)]]),
    ],
)
def test_targets_are_kept_small_and_become_dense(task, target, kept, encoded):
    compact = task.compact(target)
    assert compact.dtype == kept
    assert task.encode(compact).dtype == tf.float32
    assert task.encode(compact).numpy().tolist() == encoded


def test_many_labels_take_a_bit_each():
    labels = np.random.default_rng(0).integers(0, 2, (50, 1000))
    task = make_multilabel(1000)
    compact = task.compact(tf.constant(labels, tf.float32)).numpy()
    assert compact.nbytes == 50 * 125
    assert np.array_equal(compact, np.packbits(labels, axis=1))
    assert np.array_equal(task.encode(compact), labels)


def test_only_targets_without_an_answer_are_unusable():
    assert make_classification(2).is_usable(np.array([1, 0, -1, 2])).tolist() == [True, True, False, False]
    assert make_multilabel(2).is_usable(np.zeros((3, 2))).tolist() == [True] * 3
    assert make_regression("huber").is_usable(np.array([[0.0], [-3.0], [np.nan]])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("name", "outputs", "activation", "metric"),
    [
        ("classification", 3, "softmax", "accuracy"),
        ("multilabel", 3, "sigmoid", "binary_accuracy"),
        ("regression", 1, "linear", "mean_absolute_error"),
    ],
)
def test_a_task_is_made_by_name_and_has_one_loss_per_row(name, outputs, activation, metric):
    task = make_task(name, outputs, TrainerConfig())
    assert (task.activation, next(iter(task.make_metrics()))) == (activation, metric)
    targets = tf.one_hot([0, outputs - 1], outputs)
    assert task.loss(targets, tf.fill([2, outputs], 0.3)).shape == (2,)


@pytest.mark.parametrize(
    ("numbers", "mean", "deviation"), [((200_000, 600_000), 400_000, 200_000), ((0.1,) * 7, np.float32(0.1), 1)]
)
def test_numbers_are_learned_in_deviations_from_their_mean_and_given_in_their_unit(numbers, mean, deviation):
    compact = np.array(numbers, np.float32)[:, None]
    task = measure_targets(make_regression("huber"), compact)
    assert (task.mean, task.deviation) == (pytest.approx(mean), deviation)
    standardized = task.standardize(task.encode(tf.constant(compact)))
    np.testing.assert_allclose(standardized, (compact - mean) / deviation, atol=1e-6)
    np.testing.assert_allclose(task.restore(standardized), compact)


def test_the_targets_of_other_tasks_are_learned_unchanged():
    task = measure_targets(make_classification(2), np.array([0, 1, 1], np.int32))
    assert (task.mean, task.deviation) == (0, 1)


def test_each_label_has_its_threshold():
    assert list_thresholds(["a", "b"], {"b": 0.9}) == [0.5, 0.9]
    with pytest.raises(ValueError, match=r"x, y: not among the labels of the split train, which are a, b"):
        list_thresholds(["a", "b"], {"y": 0.1, "a": 0.1, "x": 0.1})
