import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from components.evaluator.significance import (
    MISSED,
    RIGHT,
    WRONG,
    PairedCounts,
    PairedErrors,
    PairedLabels,
    compare_labels,
    compute_p_if_worse,
    count_changes,
)
from components.evaluator.tfma_label_metrics import LABEL_SCORES


def test_p_of_counts_is_that_of_tosses_of_a_coin():
    assert PairedCounts(1, 7, 100).compute_p() == pytest.approx(2 * (1 + 8) / 2**8)
    assert PairedCounts(7, 1, 100).compute_p() == PairedCounts(1, 7, 100).compute_p()
    assert PairedCounts(0, 0, 100).compute_p() == PairedCounts(5, 5, 100).compute_p() == PairedCounts().compute_p() == 1


def test_only_a_candidate_that_is_worse_by_more_than_the_margin_is_tested():
    worse = PairedCounts(only_candidate=1, only_champion=11, images=100)
    assert compute_p_if_worse(worse, 0.05) == worse.compute_p() < 0.01
    assert compute_p_if_worse(worse, 0.1) == 1
    assert compute_p_if_worse(PairedCounts(11, 1, 100), 0) == compute_p_if_worse(PairedCounts(), 0) == 1


def sum_errors(candidate: np.ndarray, champion: np.ndarray) -> PairedErrors:
    squares = float(((candidate - champion) ** 2).sum())
    return PairedErrors(len(candidate), float(candidate.sum()), float(champion.sum()), squares, float(champion.sum()))


def test_p_of_errors_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    champion = rng.exponential(3, 300)
    for behind in (0.0, 0.1, 1.0):
        candidate = np.abs(champion + rng.normal(behind, 1, 300))
        assert sum_errors(candidate, champion).compute_p() == pytest.approx(
            stats.ttest_rel(candidate, champion).pvalue, 1e-9
        )


def test_p_of_errors_takes_no_memory_by_image():
    images, lead, squares = 10**12, 2e6, 1e12
    assert PairedErrors(images, lead, 0, squares, 1).compute_p() == pytest.approx(2 * stats.norm.sf(2), 1e-6)
    groups = tuple((1e6, 0, 1e6) for _ in range(3))
    assert PairedErrors(images, lead, 0, squares, 1, groups).compute_p() == pytest.approx(2 * stats.norm.sf(2), 1e-3)


def test_p_of_errors_that_never_or_always_differ_is_1_or_0():
    one = np.array([1.0, 2.0, 4.0])
    assert (
        sum_errors(one, one).compute_p() == sum_errors(one[:1], one[1:2]).compute_p() == PairedErrors().compute_p() == 1
    )
    assert sum_errors(one + 1, one).compute_p() == 0


def test_a_margin_of_errors_is_a_share():
    sums = sum_errors(np.array([1.0, 2.0, 5.0]), np.array([1.0, 2.0, 4.0]))
    assert sums.is_worse(0.14)
    assert not sums.is_worse(0.15)
    assert not sum_errors(np.zeros(3), np.zeros(3)).is_worse(0)


def test_a_candidate_whose_error_is_not_a_number_is_worse_and_has_no_p():
    sums = sum_errors(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    assert sums.is_worse(1)
    assert np.isnan(compute_p_if_worse(sums, 1))


NAMES = ["a", "b", "c"]


def count_labels(score: str, true: np.ndarray, candidate: np.ndarray, champion: np.ndarray) -> PairedLabels:
    """Counts labels given as bools ``[n, 3]``."""
    outcomes: Counter = Counter()
    changes = []
    for row in zip(true, candidate, champion, strict=True):
        has, one, other = ({name for name, there in zip(NAMES, part, strict=True) if there} for part in row)
        outcomes.update(
            (name, RIGHT if name in has & other else MISSED if name in has else WRONG) for name in has | other
        )
        changes.append(compare_labels(has, one, other))
    return PairedLabels(LABEL_SCORES[score], outcomes, count_changes(changes))


def draw_labels(images: int, wrong: tuple[float, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((images, 3)) < [0.5, 0.3, 0.1]
    return true, *(true ^ (rng.random((images, 3)) < share) for share in wrong)


@pytest.mark.parametrize(("score", "average"), [("micro_f1", "micro"), ("macro_f1", "macro")])
def test_p_of_labels_is_that_of_all_ways_to_swap_the_answers(score, average):
    true, candidate, champion = draw_labels(9, (0.3, 0.2), seed=3)
    differ = np.flatnonzero((candidate != champion).any(axis=1))

    def difference(swapped: tuple[bool, ...]) -> float:
        one, other = candidate.copy(), champion.copy()
        rows = differ[list(swapped)]
        one[rows], other[rows] = champion[rows], candidate[rows]
        return f1_score(true, one, average=average, zero_division=0) - f1_score(
            true, other, average=average, zero_division=0
        )

    observed = difference((False,) * len(differ))
    differences = [difference(swapped) for swapped in itertools.product((False, True), repeat=len(differ))]
    expected = np.mean(np.abs(differences) >= abs(observed) - 1e-9)
    sums = count_labels(score, true, candidate, champion)
    assert 0.05 < expected < 0.9
    assert sums.compute_p() == pytest.approx(expected, abs=0.02)
    assert sums.is_worse(-observed - 1e-9)
    assert not sums.is_worse(-observed + 1e-9)


@pytest.mark.parametrize("score", LABEL_SCORES)
def test_labels_that_are_clearly_worse_are_told_from_those_that_are_a_little(score):
    assert count_labels(score, *draw_labels(400, (0.2, 0.05))).compute_p() < 0.001
    assert count_labels(score, *draw_labels(400, (0.2, 0.05))).is_worse(0)
    assert count_labels(score, *draw_labels(400, (0.1, 0.1), seed=3)).compute_p() > 0.05


def test_p_of_equally_good_models_is_below_the_significance_as_often_as_that_says():
    p = [count_labels("micro_f1", *draw_labels(60, (0.1, 0.1), seed)).compute_p() for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.1


def test_labels_without_a_difference_are_not_worse():
    true, candidate, _ = draw_labels(20, (0.3, 0.3))
    sums = count_labels("macro_f1", true, candidate, candidate)
    assert (sums.compute_p(), sums.is_worse(0)) == (1, False)


def test_a_model_that_says_no_label_at_all_is_worse():
    true, _, champion = draw_labels(100, (0.1, 0.1))
    sums = count_labels("precision", true, np.zeros_like(true), champion)
    assert sums.is_worse(0.1)
    assert sums.compute_p() < 0.01
