"""Probabilities after calibration, on logits whose right temperature is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, softmax

from trainer.config import TrainerConfig
from trainer.data import TrainingData
from trainer.export.answers import compute_classes
from trainer.export.calibration import NO_CALIBRATION, Calibration, compute_log_loss, fit_calibration
from trainer.export.fitting import calibrate
from trainer.inputs import ArrayFile, LoadedSplit
from trainer.network import scale_outputs
from trainer.tasks import Task, make_classification, make_multilabel, make_regression


def draw_classes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits that are half of the right ones, and one-hot classes drawn by the right ones."""
    rng = np.random.default_rng(0)
    right = rng.normal(0, 2, (count, 4))
    classes = [rng.choice(4, p=p) for p in softmax(right, axis=1)]
    return (right / 2).astype(np.float32), np.eye(4, dtype=np.float32)[classes]


def test_a_temperature_makes_up_for_logits_that_are_too_small_and_changes_no_answer():
    logits, targets = draw_classes(3000)
    calibration = fit_calibration("classification", logits, targets)
    assert calibration.factors == pytest.approx([2], rel=0.06)
    losses = [compute_log_loss("classification", c, logits, targets) for c in (calibration, NO_CALIBRATION)]
    assert losses[0] < losses[1] - 0.05
    assert losses[1] == pytest.approx(keras.losses.categorical_crossentropy(targets, softmax(logits, 1)).numpy().mean())
    classes = compute_classes("classification", calibration, tf.constant(logits)).numpy()
    np.testing.assert_allclose(classes, softmax(2 * logits, axis=1), atol=0.03)
    assert np.array_equal(np.argsort(classes), np.argsort(logits))


def test_images_that_are_all_answered_right_do_not_make_probabilities_of_one():
    logits = np.eye(4, dtype=np.float32)[np.arange(20) % 4] * 3
    calibration = fit_calibration("classification", logits, (logits > 0).astype(np.float32))
    assert 1 < calibration.factors[0] < 3


def test_each_label_gets_a_factor_and_an_offset_of_its_own():
    rng = np.random.default_rng(1)
    right = rng.normal(0, 2, (6000, 2))
    targets = (rng.random(right.shape) < expit(right)).astype(np.float32)
    calibration = fit_calibration("multilabel", ((right - [1, 0]) / [2, 0.5]).astype(np.float32), targets)
    assert calibration.factors == pytest.approx([2, 0.5], rel=0.1)
    assert calibration.offsets == pytest.approx([1, 0], abs=0.1)


def test_a_label_that_no_image_has_is_not_said_to_be_impossible():
    calibration = fit_calibration("multilabel", np.full((30, 1), -2, np.float32), np.zeros((30, 1), np.float32))
    classes = compute_classes("multilabel", calibration, tf.fill([1, 1], -2.0)).numpy()
    assert 0.005 < classes[0, 0] < expit(-2)


def make_data(task: Task, targets: np.ndarray, is_set_aside: bool, tmp_path) -> TrainingData:
    split = LoadedSplit(ArrayFile(tmp_path / "none", (1,), np.dtype(np.uint8)), {}, targets, task)
    return TrainingData(task, ["a", "b", "c", "d"], (1, 1), {}, split, split, is_set_aside)


@pytest.mark.parametrize(
    ("task", "config", "is_set_aside", "why"),
    [
        (make_regression("huber"), TrainerConfig(), True, "a regression has no probabilities"),
        (make_classification(4), TrainerConfig(calibration="none"), True, "trainer.calibration is none"),
        (make_classification(4), TrainerConfig(), False, "too few images are set aside for validation"),
    ],
)
def test_the_reason_is_given_where_nothing_is_calibrated(task, config, is_set_aside, why, tmp_path):
    data = make_data(task, np.zeros(4, np.int32), is_set_aside, tmp_path)
    calibration, facts = calibrate(config, data, np.zeros((4, 4), np.float32))
    assert calibration == NO_CALIBRATION
    assert facts["method"] == "none"
    assert why in facts["why"]


def test_facts_for_people_have_the_temperature_and_what_it_changed(tmp_path):
    logits, targets = draw_classes(500)
    data = make_data(make_classification(4), targets.argmax(axis=1).astype(np.int32), True, tmp_path)
    calibration, facts = calibrate(TrainerConfig(), data, logits)
    assert facts["method"] == "temperature"
    assert facts["temperature"] == pytest.approx(1 / calibration.factors[0])
    assert facts["images"] == 500
    assert facts["log_loss"] < facts["log_loss_without"]
    names = make_multilabel(4)
    _, facts = calibrate(TrainerConfig(), make_data(names, targets.astype(np.uint8), True, tmp_path), logits)
    assert (facts["method"], facts["temperature"]) == ("vector", None)


@pytest.mark.parametrize("calibration", [Calibration((2.0,)), Calibration((0.5, 1.0, 3.0), (1.0, 0.0, -1.0))])
def test_the_keras_model_that_is_kept_gives_calibrated_logits(calibration):
    layer = keras.layers.Dense(3, bias_initializer="random_normal")
    features = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    logits = layer(features).numpy()
    scale_outputs(layer, *calibration)
    np.testing.assert_allclose(layer(features), logits * calibration.factors + calibration.offsets, rtol=1e-5)
