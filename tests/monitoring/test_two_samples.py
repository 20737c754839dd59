"""False alarms and what is found, by simulation: draws of 1,000 images, from columns as captured traffic has them."""

import numpy as np
import pytest

from imagepipe.monitoring.comparison import Limits, compare, find_moved
from imagepipe.monitoring.measures import Sample
from imagepipe.monitoring.two_samples import adjust, compare_labels, compare_numbers, compare_vectors

CLASSES, IMAGES = list("abcdefgh"), 1000


def draw(rng: np.random.Generator, count: int, brighter: float = 0.0, doubled: float = 1.0) -> Sample:
    """Images with measures as photos have them: skewed, tied, correlated."""
    shares = np.ones(len(CLASSES))
    shares[2] *= doubled
    widths = rng.choice([320.0, 640.0, 1024.0], count, p=[0.6, 0.3, 0.1])
    brightness = rng.normal(0.5, 0.15, count)
    numbers = {
        "width": widths,
        "aspect": rng.choice([1.0, 1.5, 0.75], count),
        "bytes": np.exp(rng.normal(10, 1, count)) * widths,
        "brightness": brightness + brighter * 0.15,
        "contrast": 0.2 - 0.1 * brightness + rng.normal(0, 0.03, count),
        "score": rng.beta(5, 1, count),
        "novelty": rng.uniform(0, 1, count),
    }
    labels = [[CLASSES[place]] for place in rng.choice(len(CLASSES), count, p=shares / shares.sum())]
    embedding = rng.normal(size=(min(count, 300), 32)) @ np.diag(np.linspace(2, 0.1, 32))
    return Sample(numbers, labels, embedding)


def count_alarms(draws: int, **shift: float) -> int:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(draws):
        trained, evaluated = draw(rng, 3000), draw(rng, 1000)
        comparisons = compare(draw(rng, IMAGES, **shift), trained, evaluated)
        alarms += bool(find_moved({"day": comparisons}, Limits()))
    return alarms


@pytest.mark.parametrize("draws", [5, pytest.param(200, marks=pytest.mark.long)])
def test_traffic_like_the_training_data_is_seldom_an_alarm(draws):
    assert count_alarms(draws) <= 0.05 * draws


@pytest.mark.parametrize("draws", [5, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize("shift", [{"brighter": 0.5}, {"doubled": 2.0}], ids=["brighter by half a sd", "class doubled"])
def test_a_shift_is_found(shift, draws):
    assert count_alarms(draws, **shift) >= 0.95 * draws


def test_distances_are_those_by_hand():
    same = compare_numbers(np.arange(100.0), np.arange(100.0))
    assert same.p == 1
    assert same.distance == pytest.approx(0)
    apart = compare_numbers(np.full(50, 9.0), np.full(50, 1.0))
    assert apart.p < 1e-10
    assert apart.distance == pytest.approx(1)
    labels = compare_labels([["a"]] * 3 + [["b"]], [["b"]] * 4)
    assert labels.distance == pytest.approx(0.75)
    assert labels.p == pytest.approx(2 * 2 / 14)  # 2 of 70 tables on either side are as unlikely; times two labels
    assert labels.lift.tolist() == pytest.approx([6, 6, 6, 0.25])  # of "a" there is none: as of half an image


def test_rows_that_moved_have_the_largest_lift():
    rng = np.random.default_rng(1)
    usual, new = rng.normal(size=(200, 8)), rng.normal(6, 1, size=(50, 8))
    difference = compare_vectors(np.concatenate([usual[:100], new]), usual[100:])
    assert difference.p < 1e-4
    assert difference.lift[100:].mean() > 2 * difference.lift[:100].mean()


def test_p_values_are_adjusted_as_holm_does():
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust([]) == []
