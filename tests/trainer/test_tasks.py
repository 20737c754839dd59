import numpy as np
import pytest
import tensorflow as tf

from trainer import tasks
from trainer.config import TrainerConfig, list_thresholds


def test_targets_become_dense_whatever_the_task():
    classes = tasks.classification(3).encode(tf.constant([2, 0, -1], tf.int64))
    assert classes.numpy().tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    labels = tasks.multilabel(2).encode(tf.constant([[1.0, 1.0], [0.0, 0.0]]))
    assert labels.numpy().tolist() == [[1, 1], [0, 0]]
    numbers = tasks.regression("huber").encode(tf.constant([1.5, -2.0]))
    assert numbers.numpy().tolist() == [[1.5], [-2.0]]


def test_only_what_has_no_answer_is_not_learnt_from():
    assert tasks.classification(2).known(np.array([[0, 1], [1, 0], [0, 0]])).tolist() == [True, True, False]
    assert tasks.multilabel(2).known(np.zeros((3, 2))).tolist() == [True] * 3
    assert tasks.regression("huber").known(np.array([[0.0], [-3.0], [np.nan]])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("name", "outputs", "activation", "metric"),
    [
        ("classification", 3, "softmax", "accuracy"),
        ("multilabel", 3, "sigmoid", "binary_accuracy"),
        ("regression", 1, "linear", "mean_absolute_error"),
    ],
)
def test_a_task_is_made_by_name_and_its_loss_is_one_a_row(name, outputs, activation, metric):
    task = tasks.make(name, outputs, TrainerConfig())
    assert (task.activation, next(iter(task.metrics()))) == (activation, metric)
    targets = tf.one_hot([0, outputs - 1], outputs)
    assert task.loss(targets, tf.fill([2, outputs], 0.3)).shape == (2,)


def test_each_label_has_its_threshold():
    assert list_thresholds(["a", "b"], {"b": 0.9}) == [0.5, 0.9]
    with pytest.raises(ValueError, match=r"x, y: not among the labels of the training split, which are a, b"):
        list_thresholds(["a", "b"], {"y": 0.1, "a": 0.1, "x": 0.1})
