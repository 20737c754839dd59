"""The linear model on features of a frozen network."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from trainer import linear_probe
from trainer.linear_probe import fit_probe, predict_out_of_fold

N, WIDTH = 240, 30


@pytest.fixture(scope="module")
def blobs():
    """Features of three classes that overlap, as the network's float16, and the classes."""
    rng = np.random.default_rng(1)
    classes = np.arange(N) % 3
    centres = rng.normal(0, 0.5, (3, WIDTH))
    return (centres[classes] + rng.normal(0, 1, (N, WIDTH)) + 4).astype(np.float16), classes.astype(np.int32)


def log_loss(probabilities, classes):
    return -np.log(probabilities[np.arange(len(classes)), classes]).mean()


def test_classes_are_told_apart_as_well_as_by_the_best_of_scikit_learn(blobs):
    features, classes = (array[: N // 2] for array in blobs)
    others, their_classes = (array[N // 2 :] for array in blobs)
    loss = log_loss(fit_probe(features, classes, "classification", 3).predict(others), their_classes)
    with threadpool_limits(1):
        losses = [
            log_loss(LogisticRegression(C=c).fit(features, classes).predict_proba(others), their_classes)
            for c in (0.01, 0.1, 1)
        ]
    assert loss < min(losses) + 0.02


@pytest.mark.parametrize("count", [N, WIDTH // 2], ids=["more rows than features", "fewer"])
def test_the_model_is_in_the_units_of_the_features(blobs, count):
    features, classes = (array[:count] for array in blobs)
    probe = fit_probe(features, classes, "classification", 3)
    scaled = fit_probe(features.astype(np.float32) * 100 - 7, classes, "classification", 3)
    np.testing.assert_allclose(scaled.weights * 100, probe.weights, atol=2e-2 * np.abs(probe.weights).max())
    linear = features[:5].astype(np.float32) @ probe.weights + probe.bias
    expected = np.exp(linear) / np.exp(linear).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probe.predict(features[:5]), expected, rtol=1e-5)


def test_a_number_is_predicted_as_by_ridge_regression(blobs):
    features, _ = blobs
    rng = np.random.default_rng(2)
    numbers = (features @ rng.normal(0, 1, WIDTH) * 50 + 1000 + rng.normal(0, 20, N)).astype(np.float32)[:, None]
    learned, judged = slice(0, N // 2), slice(N // 2, N)
    probe = fit_probe(features[learned], numbers[learned], "regression", 1)
    errors = [
        np.abs(Ridge(alpha).fit(features[learned], numbers[learned]).predict(features[judged]) - numbers[judged][:, 0])
        for alpha in (0.01, 0.1, 1, 10)
    ]
    error = np.abs(probe.predict(features[judged]) - numbers[judged])
    assert error.mean() < 1.05 * min(map(np.mean, errors))


def test_each_label_is_a_question_of_its_own(blobs):
    features, classes = blobs
    labels = np.stack([classes == 0, classes != 2, np.zeros(N, bool)], axis=1).astype(np.uint8)
    probabilities = fit_probe(features, np.packbits(labels, axis=1), "multilabel", 3).predict(features)
    assert ((probabilities > 0.5) == labels).mean() > 0.85
    assert probabilities[:, 2].max() < 0.2


def test_examples_of_no_importance_are_as_if_they_were_not_there(blobs):
    features, classes = blobs
    importance = (np.arange(N) % 2).astype(float)
    wrong = np.where(importance > 0, classes, (classes + 1) % 3)
    probe = fit_probe(features, wrong, "classification", 3, importance=importance)
    assert (probe.predict(features).argmax(axis=1) == classes).mean() > 0.8


def test_no_example_is_judged_by_a_model_that_has_seen_it_or_one_of_its_group():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 3)
    features = (rng.normal(0, 1, (40, 200))[groups] + rng.normal(0, 0.01, (120, 200))).astype(np.float32)
    classes = rng.permutation(np.arange(40) % 2)[groups]  # there is nothing to learn but who is who
    seen = fit_probe(features, classes, "classification", 2).predict(features).argmax(axis=1)
    alone = predict_out_of_fold(features, classes, "classification", 2).argmax(axis=1)
    grouped = predict_out_of_fold(features, classes, "classification", 2, groups).argmax(axis=1)
    assert (seen == classes).mean() > 0.9
    assert (alone == classes).mean() > 0.9
    assert (grouped == classes).mean() < 0.7


def test_of_many_rows_a_sample_is_learned_from(blobs, monkeypatch):
    features, classes = blobs
    fitted = []
    fit = linear_probe._fit
    monkeypatch.setattr(linear_probe, "MAX_ROWS", 90)
    monkeypatch.setattr(linear_probe, "_fit", lambda rows, *rest: fitted.append(len(rows.inputs)) or fit(rows, *rest))
    fit_probe(features, classes, "classification", 3)
    assert max(fitted) == 90
    assert predict_out_of_fold(features, classes, "classification", 3).shape == (N, 3)
    assert fitted[-linear_probe.FOLDS :] == [90] * linear_probe.FOLDS


def compact(task, numbers):
    """Targets of a task with three outputs, or one, that numbers from 0 to 1 tell."""
    match task:
        case "classification":
            return (numbers * 2.99).astype(np.int32), 3
        case "multilabel":
            return np.packbits(numbers[:, None] > np.array([0.3, 0.5, 0.7]), axis=1), 3
        case "regression":
            return numbers.astype(np.float32)[:, None], 1


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_of_each_task_examples_are_predicted_by_what_was_learned_from_other_groups(task):
    rng = np.random.default_rng(4)
    groups = np.repeat(rng.permutation(50), 4)
    numbers = rng.random(50)[groups]
    targets, outputs = compact(task, numbers)
    features = (np.outer(numbers - 0.5, np.ones(8)) * 10 + rng.normal(0, 1, (200, 8))).astype(np.float16)
    predicted = predict_out_of_fold(features, targets, task, outputs, groups)
    assert (predicted.shape, predicted.dtype) == ((200, outputs), np.float32)
    match task:
        case "classification":
            assert (predicted.argmax(axis=1) == targets).mean() > 0.85
        case "multilabel":
            assert ((predicted > 0.5) == np.unpackbits(targets, axis=1, count=3)).mean() > 0.85
        case "regression":
            assert np.abs(predicted - targets).mean() < 0.1
    # What is said of a group is the same whatever its own targets are.
    changed = np.where(groups == 7, numbers[::-1], numbers)
    others, _ = compact(task, changed)
    again = predict_out_of_fold(features, others, task, outputs, groups)
    np.testing.assert_allclose(again[groups == 7], predicted[groups == 7], atol=0.1)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_copies_do_not_make_the_model_too_sure_of_what_is_new(task):
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(60), 10)
    numbers = rng.random(60)[groups]  # nothing in the features tells them, but copies are known again
    targets, outputs = compact(task, numbers)
    features = rng.normal(0, 1, (60, 200))[groups] + rng.normal(0, 0.01, (600, 200))
    others = rng.normal(0, 1, (300, 200))
    probe = fit_probe(features, targets, task, outputs, groups)
    assert probe.predict(others).std(axis=0).max() < 0.15
    assert predict_out_of_fold(features, targets, task, outputs, groups).std(axis=0).max() < 0.15


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("groups", [[1], [1, 1, 1], [1, 2]], ids=["one example", "one group", "two groups"])
def test_of_one_example_or_group_it_learns_how_often_each_target_comes(task, groups):
    numbers = np.array([0.8, 0.9, 0.9])[: len(groups)]
    targets, outputs = compact(task, numbers)
    features = np.random.default_rng(6).normal(0, 1, (len(groups), 5))
    predicted = fit_probe(features, targets, task, outputs, np.array(groups)).predict(features)
    assert np.isfinite(predicted).all()
    assert predicted[:, -1].min() > 0.6


def test_many_classes_of_few_examples_are_predicted_as_well():
    features = np.repeat(np.eye(5), 2, axis=0)
    classes = np.repeat(np.arange(5), 2)
    assert predict_out_of_fold(features, classes, "classification", 5).shape == (10, 5)
