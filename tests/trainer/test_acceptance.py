"""Which faster forms of a network may answer in its place."""

import json
import tracemalloc

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import beta

from imagepipe.base.metrics import CHAMPION_METRIC
from trainer.export.acceptance import Bounds, compare_calibration, describe, judge_form
from trainer.export.agreement import Parts, show_at_best
from trainer.export.loss import METRICS, compute_paired_interval

BOUNDS = Bounds(max_loss=0.005, min_agreement=0.99, max_difference=None)


def make_classes(images: int, seed: int = 0) -> np.ndarray:
    return softmax(np.random.default_rng(seed).normal(0, 3, (images, 4)), axis=1).astype(np.float32)


def swap_best(classes: np.ndarray, images: int) -> np.ndarray:
    """Gives another label to the first images."""
    changed = classes.copy()
    changed[:images] = np.roll(changed[:images], 1, axis=1)
    return changed


def judge(
    network: Parts,
    form: Parts,
    targets=None,
    bounds=BOUNDS,
    must_prove=True,
    task="classification",
    size=1,
    unknown=None,
    noise=0.0,
):
    """Judges a form on images in groups of ``size``."""
    sample, held_out = (np.arange(len(part)) // size for part in network)
    thresholds, groups = [0.5] * network.sample.shape[1], Parts(sample, -1 - held_out)
    unknown = unknown or 2 * (Parts(*(np.zeros(len(part), bool) for part in network)),)
    return judge_form(
        task,
        thresholds,
        network,
        form,
        unknown=unknown,
        groups=groups,
        targets=targets,
        noise=noise,
        bounds=bounds,
        must_prove=must_prove,
    )


def nudge(classes: np.ndarray, by: float = 0.002) -> np.ndarray:
    """Changes probabilities by more than rounding, and no label."""
    return (1 - by) * classes + by * np.eye(4, dtype=np.float32)[classes.argmax(axis=1)]


def test_many_agreeing_images_prove_a_form_and_few_do_not():
    for images, is_accepted in ((400, True), (60, False)):
        classes = make_classes(images)
        network, form = Parts(classes[:0], classes), Parts(classes[:0], nudge(classes))
        judgement = judge(network, form)
        agreement = judgement.facts["agreement"]
        assert (agreement["held_out"]["same"], agreement["held_out"]["images"]) == (images, images)
        assert agreement["low"] == pytest.approx(0.025 ** (1 / images))  # by hand: all agree
        assert (judgement.refusals == []) is is_accepted
        if not is_accepted:
            assert "60 of 60 set aside" in judgement.refusals[0]
            assert "about 36" in judgement.refusals[0]  # of 0.99 ** n = 0.025, n is 367.04
            assert judge(network, form, must_prove=False).refusals == []  # no harm is shown either
        assert f"{images} of {images} set aside" in describe(judgement.facts)


def test_images_of_groups_prove_less_than_as_many_others():
    classes = make_classes(4000)
    network = Parts(classes[:0], classes)
    alike = judge(network, Parts(classes[:0], nudge(classes)), size=20)
    assert alike.facts["agreement"]["low"] == pytest.approx(0.025 ** (1 / 200))  # by hand: 200 groups agree
    assert alike.refusals

    def measure(differing: np.ndarray, size: int) -> float:
        form = nudge(classes)
        form[differing] = np.roll(form[differing], 1, axis=1)
        return judge(network, Parts(classes[:0], form), size=size).facts["agreement"]["low"]

    together, apart = np.arange(100), np.arange(0, 4000, 40)  # five whole groups, or an image of each second one
    assert measure(together, 20) == pytest.approx(beta.ppf(0.025, 195, 6), abs=0.003)
    assert measure(apart, 20) == pytest.approx(beta.ppf(0.025, 3900, 101), abs=0.006)
    assert measure(together, 20) < measure(apart, 20) < measure(apart, 1)
    assert measure(apart, 1) == pytest.approx(beta.ppf(0.025, 3900, 101))


def test_groups_that_change_together_may_be_chance_where_as_many_single_images_are_not():
    sample, held_out = make_classes(1000), make_classes(400, seed=1)
    targets = np.eye(4, dtype=np.float32)[held_out.argmax(axis=1)]
    form = Parts(nudge(sample), swap_best(held_out, 20))
    loose = BOUNDS._replace(min_agreement=0.5)
    one, groups = (judge(Parts(sample, held_out), form, targets, loose, size=size) for size in (1, 20))
    assert any("5.00 points of accuracy" in refusal for refusal in one.refusals)
    assert groups.refusals == []
    assert groups.facts["loss"]["low"] < 0 < one.facts["loss"]["low"]


def test_a_form_that_gives_other_labels_is_refused_though_it_was_asked_for():
    classes = make_classes(1000)
    network = Parts(classes[:0], classes)
    judgement = judge(network, Parts(classes[:0], swap_best(classes, 40)), must_prove=False)
    assert "960 of 1000 set aside" in judgement.refusals[0]
    assert judgement.facts["agreement"]["high"] == pytest.approx(beta.ppf(0.975, 961, 40))
    assert judge(network, Parts(classes[:0], swap_best(classes, 2))).refusals == []


def test_trained_images_do_not_hide_what_happens_to_others():
    sample, held_out = make_classes(5000), make_classes(100, seed=1)
    judgement = judge(Parts(sample, held_out), Parts(nudge(sample), swap_best(held_out, 20)), must_prove=False)
    assert "80 of 100 set aside" in judgement.refusals[0]


def judge_counts(trained: tuple[int, int], held_out: tuple[int, int], size: int = 1):
    """Judges a form that gives other labels to the first so many of so many images."""
    parts = [make_classes(images, seed) for seed, (_, images) in enumerate((trained, held_out))]
    form = [swap_best(nudge(part), changed) for part, (changed, _) in zip(parts, (trained, held_out), strict=True)]
    return judge(Parts(*parts), Parts(*form), size=size)


@pytest.mark.parametrize(
    ("trained", "held_out"), [((1, 1350), (4, 150)), ((0, 4096), (9, 455)), ((2, 500), (5, 200)), ((0, 500), (2, 43))]
)
def test_images_that_were_trained_on_prove_nothing_if_others_change_more_often_than_chance_gives(trained, held_out):
    judgement = judge_counts(trained, held_out)
    changed, images = held_out
    agreement = judgement.facts["agreement"]
    assert agreement["low"] == pytest.approx(beta.ppf(0.025, images - changed, changed + 1))
    assert "by those set aside alone, of which fewer do than chance gives" in judgement.refusals[0]
    assert "those set aside, which change more, show" in describe(judgement.facts)


@pytest.mark.parametrize(("trained", "held_out"), [((0, 500), (1, 200)), ((9, 3000), (1, 100)), ((0, 500), (0, 43))])
def test_images_that_were_trained_on_prove_a_form_with_others_that_change_as_often(trained, held_out):
    judgement = judge_counts(trained, held_out)
    changed, images = map(sum, zip(trained, held_out, strict=True))
    assert judgement.facts["agreement"]["low"] == pytest.approx(beta.ppf(0.025, images - changed, changed + 1))
    assert judgement.refusals == []
    assert "of images like all of these" in describe(judgement.facts)  # of new ones alone so few show less


def test_that_a_group_set_aside_changes_is_chance_where_as_many_single_images_are_not():
    single, group = (judge_counts((0, 4000), (10, 400), size).facts["agreement"] for size in (1, 10))
    assert (single["is_alone"], group["is_alone"]) == (True, False)


def test_what_images_can_show_at_best_is_what_they_show_if_all_agree():
    groups = Parts(np.arange(300), -1 - np.arange(100))
    assert show_at_best(groups) == pytest.approx(0.025 ** (1 / 400))
    assert show_at_best(Parts(*(part // 10 for part in groups))) == pytest.approx(0.025 ** (1 / 40), abs=0.01)


def test_images_whose_label_is_empty_by_one_of_both_alone_do_not_agree():
    classes = make_classes(1000)
    network = Parts(classes[:0], classes)
    both, network_alone = np.zeros(1000, bool), np.zeros(1000, bool)
    both[:100] = network_alone[:130] = True
    form = Parts(classes[:0], swap_best(nudge(classes), 50))  # 50 of another class, which have no label anyway
    none = np.zeros(0, bool)
    for own, same in ((both, 1000), (network_alone, 970)):
        judgement = judge(network, form, unknown=(Parts(none, own), Parts(none, both)))
        assert judgement.facts["agreement"]["held_out"]["same"] == same
        assert (judgement.refusals == []) is (same == 1000)
    rounded = judge(
        network, Parts(classes[:0], classes + 1e-5), unknown=(Parts(none, network_alone), Parts(none, both))
    )
    assert "970 of 1000 set aside" in rounded.refusals[0]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_few_groups_show_no_loss_and_no_calibration_error(task):
    sample, held_out = make_classes(4000), make_classes(40, seed=1)
    targets = np.eye(4, dtype=np.float32)[held_out.argmax(axis=1)]
    form = Parts(nudge(sample), swap_best(held_out, 20))
    loose = BOUNDS._replace(min_agreement=0)
    few, enough = (judge(Parts(sample, held_out), form, targets, loose, False, task, size=n) for n in (20, 4))
    assert (few.facts["loss"], few.facts["calibration_error"], few.facts["few_groups"]) == (None, None, 2)
    assert "count as 2.0 groups, too few" in describe(few.facts)
    assert few.refusals == []
    json.dumps(few.facts, allow_nan=False)
    assert enough.facts["loss"]["value"] > 0


def test_calibration_with_many_labels_is_measured_in_bounded_memory():
    rng = np.random.default_rng(0)
    targets = (rng.random((500, 40)) < 0.3).astype(np.float32)
    network, form = (np.clip(0.4 * targets + by + 0.1 * rng.random((500, 40)), 0, 1) for by in (0.2, 0.3))
    groups = np.arange(500)
    tracemalloc.start()
    own, changed, is_chance = compare_calibration("multilabel", network, form, targets, groups)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for classes, error in ((network, own), (form, changed)):  # by hand
        order = np.argsort(classes.ravel(), kind="stable")
        excess = (classes - targets).ravel()[order]
        assert error == pytest.approx(np.abs(np.cumsum(excess)).max() / excess.size)
    assert changed > own + 0.01
    assert not is_chance
    assert peak < 150 * 2**20


def test_a_loss_of_the_main_metric_beyond_the_margin_is_refused():
    assert METRICS == CHAMPION_METRIC
    sample, held_out = make_classes(1000), make_classes(400, seed=1)
    targets = np.eye(4, dtype=np.float32)[held_out.argmax(axis=1)]  # the network is always right
    lost = swap_best(held_out, 3)  # within the agreement
    judgement = judge(Parts(sample, held_out), Parts(swap_best(nudge(sample), 3), lost), targets)
    loss = judgement.facts["loss"]
    assert (loss["metric"], loss["value"]) == ("accuracy", pytest.approx(3 / 400))
    assert judgement.refusals == []  # three may be chance: 0.2 points are within the interval
    assert loss["low"] < 0.005 < loss["high"]
    loose = BOUNDS._replace(min_agreement=0.5)
    judgement = judge(Parts(sample, held_out), Parts(nudge(sample), swap_best(held_out, 30)), targets, loose)
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
    judgement = judge(Parts(sample, held_out), Parts(nudge(sample), over), targets)
    assert judgement.facts["calibration_error"]["network"] < 0.03
    assert any("probabilities are off by" in refusal for refusal in judgement.refusals)


def test_one_label_more_or_less_among_few_images_is_no_calibration_error():
    sample, held_out = make_classes(2000), make_classes(50, seed=1)
    targets = np.eye(4, dtype=np.float32)[held_out.argmax(axis=1)]
    for changed, is_accepted in ((1, True), (25, False)):
        form = Parts(nudge(sample), swap_best(held_out, changed))
        refusals = judge(Parts(sample, held_out), form, targets, must_prove=False).refusals
        assert (refusals == []) is is_accepted, refusals


def test_rounding_needs_no_proof_but_a_hard_bound_holds():
    classes = make_classes(10)
    network = Parts(classes, classes)
    rounded = Parts(classes + 1e-5, classes)
    assert judge(network, rounded).refusals == []
    tight = BOUNDS._replace(max_difference=1e-6)
    assert "serving.max_difference is 1e-06" in judge(network, rounded, bounds=tight).refusals[0]
    broken = Parts(classes * np.nan, classes)
    assert judge(network, broken, must_prove=False).refusals == ["it gives answers that are not numbers"]


def test_with_several_labels_images_agree_if_all_labels_do():
    classes = expit(np.random.default_rng(0).normal(0, 3, (1000, 4))).astype(np.float32)
    changed = classes.copy()
    changed[:30, 2] = 1 - changed[:30, 2]
    targets = (classes >= 0.5).astype(np.float32)
    judgement = judge(Parts(classes, classes), Parts(changed, changed), targets, task="multilabel")
    assert judgement.facts["agreement"]["held_out"]["same"] == 1000 - 30
    assert judgement.refusals


def test_with_several_labels_the_loss_is_of_macro_f1_in_which_rare_labels_count_as_much():
    rng = np.random.default_rng(0)
    targets = (rng.random((1000, 4)) < (0.5, 0.5, 0.5, 0.02)).astype(np.float32)
    network = np.where(targets > 0, 0.9, 0.1).astype(np.float32)
    rare, loose = np.flatnonzero(targets[:, 3]), BOUNDS._replace(min_agreement=0.5)
    form = network.copy()
    form[rare[:10], 3] = 0.2  # a quarter of a percent of all labels
    judgement = judge(Parts(network[:0], network), Parts(network[:0], form), targets, loose, task="multilabel")
    loss, right = judgement.facts["loss"], len(rare) - 10
    assert loss["metric"] == "macro_f1"
    assert loss["value"] == pytest.approx((1 - 2 * right / (right + len(rare))) / 4)
    assert any("points of macro_f1 on 1000 images" in refusal for refusal in judgement.refusals)
    form[rare[1:], 3] = 0.9  # a single one may be chance
    assert (
        judge(Parts(network[:0], network), Parts(network[:0], form), targets, loose, task="multilabel").refusals == []
    )


@pytest.mark.parametrize(("value", "spread"), [(1e6, 0), (0.1, 0), (1e6, 1)])
def test_rounding_of_a_large_value_is_nothing_that_a_form_does(value, spread):
    network = (value + spread * np.random.default_rng(0).normal(size=(100, 1))).astype(np.float32)
    form = network.copy()
    form[::3] = np.nextafter(form[::3], np.float32(np.inf))
    judgement = judge(
        Parts(network[:0], network), Parts(network[:0], form), network, must_prove=False, task="regression"
    )
    assert judgement.refusals == []
    wrong = judge(
        Parts(network[:0], network), Parts(network[:0], network * 1.01), network, must_prove=False, task="regression"
    )
    assert wrong.refusals


@pytest.mark.parametrize("highest", [1e6, 1e9], ids=["all large", "one far larger"])
def test_half_a_deviation_of_large_values_is_no_rounding(highest):
    network = (1e6 + np.random.default_rng(0).normal(size=(100, 1))).astype(np.float32)
    targets = network.copy()
    network[0] = highest
    form = network + np.float32(0.5)
    parts = Parts(network[:0], network), Parts(network[:0], form)
    judgement = judge(*parts, targets, must_prove=False, task="regression", noise=1.0)
    assert judgement.facts["agreement"] is not None
    assert judgement.refusals


def test_a_regression_agrees_within_a_tenth_of_its_own_noise():
    rng = np.random.default_rng(0)
    targets = rng.normal(0, 10, (1000, 1)).astype(np.float32)
    values = targets + rng.normal(0, 2, (1000, 1)).astype(np.float32)
    network = Parts(values, values)
    for shift, is_accepted in ((0.15, True), (0.25, False)):
        form = Parts(values + shift, values + shift)
        judgement = judge(network, form, targets, task="regression", noise=2.0)
        assert (judgement.refusals == []) is is_accepted, shift
        assert judgement.facts["loss"]["metric"] == "mean_absolute_error"
