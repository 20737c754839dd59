import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from components.evaluator.significance import MISSED, RIGHT, WRONG, Errors, Labels, Pairs, p_if_worse
from components.evaluator.tfma_metrics import LABEL_SCORES


def test_p_of_pairs_is_that_of_tosses_of_a_coin():
    assert Pairs(1, 7, 100).p() == pytest.approx(2 * (1 + 8) / 2**8)
    assert Pairs(7, 1, 100).p() == Pairs(1, 7, 100).p()
    assert Pairs(0, 0, 100).p() == Pairs(5, 5, 100).p() == Pairs().p() == 1


def test_only_a_candidate_that_is_worse_by_more_than_the_margin_is_tested():
    worse = Pairs(only_candidate=1, only_champion=11, images=100)
    assert p_if_worse(worse, 0.05) == worse.p() < 0.01
    assert p_if_worse(worse, 0.1) == 1
    assert p_if_worse(Pairs(11, 1, 100), 0) == p_if_worse(Pairs(), 0) == 1


def errors_of(candidate: np.ndarray, champion: np.ndarray) -> Errors:
    squares = float(((candidate - champion) ** 2).sum())
    return Errors(len(candidate), float(candidate.sum()), float(champion.sum()), squares, float(champion.sum()))


def test_p_of_errors_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    champion = rng.exponential(3, 300)
    for behind in (0.0, 0.1, 1.0):
        candidate = np.abs(champion + rng.normal(behind, 1, 300))
        assert errors_of(candidate, champion).p() == pytest.approx(stats.ttest_rel(candidate, champion).pvalue, 1e-9)


def test_errors_without_a_difference_and_with_nothing_but_one():
    one = np.array([1.0, 2.0, 4.0])
    assert errors_of(one, one).p() == errors_of(one[:1], one[1:2]).p() == Errors().p() == 1
    assert errors_of(one + 1, one).p() == 0


def test_a_margin_of_errors_is_a_share():
    found = errors_of(np.array([1.0, 2.0, 5.0]), np.array([1.0, 2.0, 4.0]))
    assert found.is_worse(0.14)
    assert not found.is_worse(0.15)
    assert not errors_of(np.zeros(3), np.zeros(3)).is_worse(0)


def test_a_candidate_whose_error_is_not_a_number_is_worse_and_has_no_p():
    found = errors_of(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    assert found.is_worse(1)
    assert np.isnan(p_if_worse(found, 1))


NAMES = ["a", "b", "c"]


def labels_of(score: str, true: np.ndarray, candidate: np.ndarray, champion: np.ndarray) -> Labels:
    """Of bools ``[n, 3]``."""
    said: Counter = Counter()
    ways: Counter = Counter()
    for has, one, other in zip(true, candidate, champion, strict=True):
        for place, name in enumerate(NAMES):
            if has[place] or other[place]:
                said[name, RIGHT if has[place] and other[place] else MISSED if has[place] else WRONG] += 1
        if (one != other).any():
            ways[tuple((NAMES[i], bool(has[i]), bool(one[i])) for i in np.flatnonzero(one != other))] += 1
    return Labels(LABEL_SCORES[score], said, ways)


def some_labels(images: int, wrong: tuple[float, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.random((images, 3)) < [0.5, 0.3, 0.1]
    return true, *(true ^ (rng.random((images, 3)) < share) for share in wrong)


@pytest.mark.parametrize(("score", "average"), [("micro_f1", "micro"), ("macro_f1", "macro")])
def test_p_of_labels_is_that_of_all_ways_to_swap_the_answers(score, average):
    true, candidate, champion = some_labels(12, (0.3, 0.2), seed=3)
    differ = np.flatnonzero((candidate != champion).any(axis=1))

    def difference(swapped: tuple[bool, ...]) -> float:
        one, other = candidate.copy(), champion.copy()
        rows = differ[list(swapped)]
        one[rows], other[rows] = champion[rows], candidate[rows]
        return f1_score(true, one, average=average, zero_division=0) - f1_score(
            true, other, average=average, zero_division=0
        )

    observed = difference((False,) * len(differ))
    of_all = [difference(swapped) for swapped in itertools.product((False, True), repeat=len(differ))]
    expected = np.mean(np.abs(of_all) >= abs(observed) - 1e-9)
    found = labels_of(score, true, candidate, champion)
    assert 0.05 < expected < 0.9
    assert found.p() == pytest.approx(expected, abs=0.02)
    assert found.is_worse(-observed - 1e-9)
    assert not found.is_worse(-observed + 1e-9)


@pytest.mark.parametrize("score", LABEL_SCORES)
def test_labels_that_are_clearly_worse_are_told_from_those_that_are_a_little(score):
    assert labels_of(score, *some_labels(400, (0.2, 0.05))).p() < 0.001
    assert labels_of(score, *some_labels(400, (0.2, 0.05))).is_worse(0)
    assert labels_of(score, *some_labels(400, (0.1, 0.1), seed=3)).p() > 0.05


def test_p_of_equally_good_models_is_below_the_significance_as_often_as_that_says():
    p = [labels_of("micro_f1", *some_labels(60, (0.1, 0.1), seed)).p() for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.1


def test_labels_without_a_difference_are_not_worse():
    true, candidate, _ = some_labels(20, (0.3, 0.3))
    found = labels_of("macro_f1", true, candidate, candidate)
    assert (found.p(), found.is_worse(0)) == (1, False)


def test_a_model_that_says_no_label_at_all_is_worse():
    true, _, champion = some_labels(100, (0.1, 0.1))
    found = labels_of("precision", true, np.zeros_like(true), champion)
    assert found.is_worse(0.1)
    assert found.p() < 0.01
