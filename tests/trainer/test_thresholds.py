"""Decision thresholds of several labels: given, chosen on the images set aside, or left where they are too few."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from trainer.config import TrainerConfig
from trainer.export.calibration import fit_calibration
from trainer.export.thresholds import MIN_IMAGES, compute_f1, find_highest_f1, settle_thresholds
from trainer.tasks import make_classification, make_multilabel

LABELS = ["rain", "snow", "sun"]
IMAGES = 400


def make_data(targets: np.ndarray, is_set_aside: bool = True) -> SimpleNamespace:
    task = make_multilabel(targets.shape[1])
    validation = SimpleNamespace(targets=task.compact(tf.constant(targets, tf.float32)).numpy())
    return SimpleNamespace(
        task=task, output_names=LABELS[: targets.shape[1]], validation=validation, is_set_aside=is_set_aside
    )


def settle(data, logits: np.ndarray, thresholds, **options):
    return settle_thresholds(TrainerConfig(weights="none", label_thresholds=thresholds, **options), data, logits)


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Targets of a frequent label, one that hardly any image has, and one that nearly all have; and their logits."""
    rng = np.random.default_rng(0)
    targets = rng.random((IMAGES, 3)) < [0.15, 0.01, 0.99]
    return targets, (rng.normal(0, 1, (IMAGES, 3)) + 1.5 * targets - 2).astype(np.float32)


def test_the_threshold_has_the_highest_f1_that_any_has():
    rng = np.random.default_rng(1)
    targets = rng.random(60) < 0.3
    for decimals in (1, 5):  # many probabilities that are alike, or none
        probabilities = np.round(0.6 * rng.random(60) + 0.2 * targets, decimals).astype(np.float32)
        threshold = find_highest_f1(probabilities, targets)
        others = [compute_f1(probabilities >= limit, targets) for limit in np.linspace(0, 1, 2001)]
        assert compute_f1(probabilities >= threshold, targets) == pytest.approx(max(others))


def test_it_is_chosen_of_calibrated_probabilities():
    targets, logits = draw()
    facts = settle(make_data(targets), logits, "highest_f1")
    factors, offsets = fit_calibration("multilabel", logits, targets.astype(np.float32))
    probabilities = 1 / (1 + np.exp(-(logits[:, 0] * factors[0] + offsets[0])))
    best = find_highest_f1(probabilities, targets[:, 0])
    assert facts["rain"]["threshold"] == pytest.approx(best, abs=1e-4)
    assert best < 0.4  # F1 of a rare label asks for less than a half
    plain = settle(make_data(targets), logits, "highest_f1", calibration="none")
    assert plain["rain"]["threshold"] != pytest.approx(best, abs=1e-3)


def test_of_a_label_that_too_few_images_have_or_lack_none_is_chosen():
    targets, logits = draw()
    facts = settle(make_data(targets), logits, "highest_f1")
    assert [facts[name]["threshold"] for name in ("snow", "sun")] == [0.5, 0.5]
    kept = f"are set aside to choose one: {targets[:, 1].sum()}, and {MIN_IMAGES} are the minimum"
    assert facts["snow"]["why"] == f"too few images with it {kept}"
    assert facts["sun"]["why"].startswith("too few images without it")


def test_none_is_chosen_on_the_images_of_the_gate(caplog):
    targets, logits = draw()
    facts = settle(make_data(targets, is_set_aside=False), logits, "highest_f1")
    assert {fact["threshold"] for fact in facts.values()} == {0.5}
    assert "no decision thresholds are chosen: too few images are set aside" in caplog.text


def test_those_that_are_given_stay_and_the_others_are_a_half():
    targets, logits = draw()
    facts = settle(make_data(targets), logits, {"rain": 0.3})
    assert facts["rain"] == {"threshold": 0.3, "why": "trainer.label_thresholds"}
    assert facts["snow"] == {"threshold": 0.5, "why": "the default"}
    one_of_several = SimpleNamespace(task=make_classification(3))
    assert settle(one_of_several, logits, {}) == {}
