"""Which faster forms of a network may answer in its place."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import beta

from trainer.export.acceptance import Bounds, Classes, Groups, compute_paired_interval, describe, judge_form

BOUNDS = Bounds(max_loss=0.005, min_agreement=0.99, max_difference=None)


def make_classes(images: int, seed: int = 0) -> np.ndarray:
    return softmax(np.random.default_rng(seed).normal(0, 3, (images, 4)), axis=1).astype(np.float32)


def swap_best(classes: np.ndarray, images: int) -> np.ndarray:
    """Gives another label to the first images."""
    changed = classes.copy()
    changed[:images] = np.roll(changed[:images], 1, axis=1)
    return changed


def judge(network: Classes, form: Classes, targets=None, bounds=BOUNDS, must_prove=True, task="classification", size=1):
    """Judges a form on images in groups of ``size``."""
    sample, held_out = (np.arange(len(part)) // size for part in network)
    groups = Groups(sample, -1 - held_out)
    return judge_form(task, [0.5] * network.sample.shape[1], network, form, groups, targets, bounds, must_prove)


def nudge(classes: np.ndarray, by: float = 0.002) -> np.ndarray:
    """Changes probabilities by more than rounding, and no label."""
    return (1 - by) * classes + by * np.eye(4, dtype=np.float32)[classes.argmax(axis=1)]


def test_many_agreeing_images_prove_a_form_and_few_do_not():
    for images, is_accepted in ((400, True), (60, False)):
        classes = make_classes(images)
        network, form = Classes(classes, classes[:0]), Classes(nudge(classes), classes[:0])
        judgement = judge(network, form)
        agreement = judgement.facts["agreement"]
        assert (agreement["same"], agreement["images"]) == (images, images)
        assert agreement["low"] == pytest.approx(0.025 ** (1 / images))  # by hand: all agree
        assert (judgement.refusals == []) is is_accepted
        if not is_accepted:
            assert "60 of 60 images" in judgement.refusals[0]
            assert "about 36" in judgement.refusals[0]  # of 0.99 ** n = 0.025, n is 367.04
            assert judge(network, form, must_prove=False).refusals == []  # no harm is shown either
    assert "400 of 400" in describe(judge(network, form).facts) or "60 of 60" in describe(judge(network, form).facts)


def test_images_of_groups_prove_less_than_as_many_others():
    classes = make_classes(4000)
    network = Classes(classes, classes[:0])
    alike = judge(network, Classes(nudge(classes), classes[:0]), size=20)
    assert alike.facts["agreement"]["low"] == pytest.approx(0.025 ** (1 / 200))  # by hand: 200 groups agree
    assert alike.refusals

    def measure(differing: np.ndarray, size: int) -> float:
        form = nudge(classes)
        form[differing] = np.roll(form[differing], 1, axis=1)
        return judge(network, Classes(form, classes[:0]), size=size).facts["agreement"]["low"]

    together, apart = np.arange(100), np.arange(0, 4000, 40)  # five whole groups, or an image of each second one
    assert measure(together, 20) == pytest.approx(beta.ppf(0.025, 195, 6), abs=0.003)
    assert measure(apart, 20) == pytest.approx(beta.ppf(0.025, 3900, 101), abs=0.006)
    assert measure(together, 20) < measure(apart, 20) < measure(apart, 1)
    assert measure(apart, 1) == pytest.approx(beta.ppf(0.025, 3900, 101))


def test_groups_that_change_together_may_be_chance_where_as_many_single_images_are_not():
    sample, held_out = make_classes(1000), make_classes(400, seed=1)
    targets = np.eye(4, dtype=np.float32)[held_out.argmax(axis=1)]
    form = Classes(nudge(sample), swap_best(held_out, 20))
    loose = BOUNDS._replace(min_agreement=0.5)
    one, groups = (judge(Classes(sample, held_out), form, targets, loose, size=size) for size in (1, 20))
    assert any("5.00 points of accuracy" in refusal for refusal in one.refusals)
    assert groups.refusals == []
    assert groups.facts["loss"]["low"] < 0 < one.facts["loss"]["low"]


def test_a_form_that_gives_other_labels_is_refused_though_it_was_asked_for():
    classes = make_classes(1000)
    network = Classes(classes, classes[:0])
    judgement = judge(network, Classes(swap_best(classes, 40), classes[:0]), must_prove=False)
    assert "960 of 1000 images" in judgement.refusals[0]
    assert judgement.facts["agreement"]["high"] == pytest.approx(beta.ppf(0.975, 961, 40))
    assert judge(network, Classes(swap_best(classes, 2), classes[:0])).refusals == []


def test_trained_images_do_not_hide_what_happens_to_others():
    sample, held_out = make_classes(5000), make_classes(100, seed=1)
    judgement = judge(Classes(sample, held_out), Classes(nudge(sample), swap_best(held_out, 20)), must_prove=False)
    assert "80 of 100 images" in judgement.refusals[0]


def test_a_loss_of_the_main_metric_beyond_the_margin_is_refused():
    sample, held_out = make_classes(1000), make_classes(400, seed=1)
    targets = np.eye(4, dtype=np.float32)[held_out.argmax(axis=1)]  # the network is always right
    lost = swap_best(held_out, 3)  # within the agreement
    judgement = judge(Classes(sample, held_out), Classes(nudge(sample), lost), targets)
    loss = judgement.facts["loss"]
    assert (loss["metric"], loss["value"]) == ("accuracy", pytest.approx(3 / 400))
    assert judgement.refusals == []  # three may be chance: 0.2 points are within the interval
    assert loss["low"] < 0.005 < loss["high"]
    loose = BOUNDS._replace(min_agreement=0.5)
    judgement = judge(Classes(sample, held_out), Classes(nudge(sample), swap_best(held_out, 30)), targets, loose)
    assert any("7.50 points of accuracy on 400 images" in refusal for refusal in judgement.refusals)


def test_the_paired_interval_holds_the_true_difference_in_95_of_100_draws():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(80):  # of 150 images: 80 % right by both, 7 % by the first only, 2 % by the second only
        drawn = rng.choice(4, 150, p=(0.8, 0.07, 0.02, 0.11))
        _, low, high = compute_paired_interval(drawn <= 1, (drawn == 0) | (drawn == 2))
        mirrored = compute_paired_interval((drawn == 0) | (drawn == 2), drawn <= 1)
        assert (-high, -low) == pytest.approx(mirrored[1:])
        hits.append(low <= 0.05 <= high)
    assert np.mean(hits) >= 0.9


def test_probabilities_that_no_longer_say_how_often_they_are_right_are_refused():
    sample, held_out = make_classes(2000), make_classes(2000, seed=1)
    rng = np.random.default_rng(2)
    drawn = [rng.choice(4, p=row / row.sum()) for row in held_out.astype(float)]  # as often right as they say
    targets = np.eye(4, dtype=np.float32)[drawn]
    over = softmax(2 * np.log(held_out), axis=1)
    judgement = judge(Classes(sample, held_out), Classes(nudge(sample), over), targets)
    assert judgement.facts["calibration_error"]["network"] < 0.03
    assert any("probabilities are off by" in refusal for refusal in judgement.refusals)


def test_one_label_more_or_less_among_few_images_is_no_calibration_error():
    sample, held_out = make_classes(2000), make_classes(50, seed=1)
    targets = np.eye(4, dtype=np.float32)[held_out.argmax(axis=1)]
    for changed, is_accepted in ((1, True), (25, False)):
        form = Classes(nudge(sample), swap_best(held_out, changed))
        refusals = judge(Classes(sample, held_out), form, targets, must_prove=False).refusals
        assert (refusals == []) is is_accepted, refusals


def test_rounding_needs_no_proof_but_a_hard_bound_holds():
    classes = make_classes(10)
    network = Classes(classes, classes)
    rounded = Classes(classes + 1e-5, classes)
    assert judge(network, rounded).refusals == []
    tight = BOUNDS._replace(max_difference=1e-6)
    assert "serving.max_difference is 1e-06" in judge(network, rounded, bounds=tight).refusals[0]
    broken = Classes(classes * np.nan, classes)
    assert judge(network, broken, must_prove=False).refusals == ["it gives answers that are not numbers"]


def test_with_several_labels_images_agree_if_all_labels_do():
    classes = expit(np.random.default_rng(0).normal(0, 3, (1000, 4))).astype(np.float32)
    changed = classes.copy()
    changed[:30, 2] = 1 - changed[:30, 2]
    targets = (classes >= 0.5).astype(np.float32)
    judgement = judge(Classes(classes, classes), Classes(changed, changed), targets, task="multilabel")
    assert judgement.facts["agreement"]["same"] == 2000 - 2 * 30
    assert judgement.facts["loss"]["value"] == pytest.approx(30 / 4000)  # a mean over images and labels
    assert judgement.refusals


def test_a_regression_agrees_within_a_tenth_of_its_own_noise():
    rng = np.random.default_rng(0)
    targets = rng.normal(0, 10, (1000, 1)).astype(np.float32)
    values = targets + rng.normal(0, 2, (1000, 1)).astype(np.float32)
    network = Classes(values, values)
    for shift, is_accepted in ((0.15, True), (0.25, False)):
        form = Classes(values + shift, values + shift)
        judgement = judge(network, form, targets, task="regression")
        assert (judgement.refusals == []) is is_accepted, shift
        assert judgement.facts["loss"]["metric"] == "mean_absolute_error"
