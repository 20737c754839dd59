"""Intervals and paired tests of grouped images: by simulated draws, and against what is computed by hand."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.transforms.combiners import MeanCombineFn
from scipy import stats

from components.evaluator import groups as groups_module
from components.evaluator.groups import (
    RECORD_HASH,
    GroupSums,
    extract_group,
    extract_unit,
    hash_record,
    merge_groups,
)
from components.evaluator.intervals import compute_interval, compute_standard_error, count_degrees_of_freedom
from components.evaluator.leave_one_out import Combined, LeaveOneOutFn
from components.evaluator.significance import PairedCounts, PairedErrors, PairedLabels, compare_labels, count_changes
from components.evaluator.tfma_label_metrics import LABEL_SCORES

DRAWS = 500


def combine(values: np.ndarray, groups: list[int], bundles: int = 1) -> Combined:
    """Takes the mean of values as Beam would: in bundles, whose accumulators are merged."""
    combiner = LeaveOneOutFn(MeanCombineFn())
    accumulators = [combiner.create_accumulator() for _ in range(bundles)]
    for number, (value, group) in enumerate(zip(values.tolist(), groups, strict=True)):
        accumulators[number % bundles] = combiner.add_input(accumulators[number % bundles], (group, value))
    return combiner.extract_output(combiner.merge_accumulators(map(combiner.compact, accumulators)))


def find_interval(combined: Combined) -> tuple[float, float] | None:
    if not combined.sizes:
        return None
    error, degrees = compute_standard_error(combined.without), count_degrees_of_freedom(combined.sizes)
    return compute_interval(combined.total, error, degrees, 0, 1)


def draw_hashes(rng: np.random.Generator, number: int) -> np.ndarray:
    return rng.integers(0, 2**63, number)


class Draw:
    """Two equally good models' answers to images of groups; how well each does on a group varies a lot."""

    ACCURACY = 0.8

    def __init__(self, rng: np.random.Generator, groups: int, are_equal: bool):
        sizes = np.full(groups, 8) if are_equal else np.ceil(rng.lognormal(np.log(6), 1, groups)).astype(int)
        self.groups, self.number = np.repeat(np.arange(groups), sizes), groups
        self.hashes = draw_hashes(rng, groups)[self.groups].tolist()
        # Within a group the correlation of two answers is 1 / (2 + 0.5 + 1).
        chances = [rng.beta(2, 0.5, groups)[self.groups] for _ in range(2)]
        self.candidate, self.champion = (rng.random(len(self.groups)) < chance for chance in chances)
        self.errors = [rng.exponential(rng.exponential(1, groups)[self.groups]) for _ in range(2)]

    def count_pairs(self) -> PairedCounts:
        ways = self.candidate & ~self.champion, self.champion & ~self.candidate
        one, other = (np.bincount(self.groups, way, self.number) for way in ways)
        return PairedCounts(one.sum(), other.sum(), len(self.groups), tuple(zip(one, other, strict=True)))

    def sum_errors(self) -> PairedErrors:
        difference = self.errors[0] - self.errors[1]
        by_group = [
            np.bincount(self.groups, x, self.number) for x in (np.ones_like(difference), difference, difference**2)
        ]
        sums = [error.sum() for error in self.errors]
        return PairedErrors(len(self.groups), *sums, (difference**2).sum(), sums[1], tuple(zip(*by_group, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("are_equal", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize("groups", [20, 50, 200])
def test_intervals_cover_and_tests_err_as_often_as_they_say(groups, are_equal):
    rng = np.random.default_rng(groups)
    names = ("covered", "covered by image", "mcnemar", "mcnemar by image", "t", "t by image")
    hits: Counter = Counter()
    for _ in range(DRAWS):
        draw = Draw(rng, groups, are_equal)
        low, high = find_interval(combine(draw.candidate, draw.hashes))
        accuracy = draw.candidate.mean()
        by_image = compute_interval(accuracy, np.sqrt(accuracy * (1 - accuracy) / len(draw.groups)), 10**6, 0, 1)
        counts, errors = draw.count_pairs(), draw.sum_errors()
        outcomes = (
            low <= Draw.ACCURACY <= high,
            by_image[0] <= Draw.ACCURACY <= by_image[1],
            *(
                sums.compute_p() < 0.05
                for sums in (counts, counts._replace(groups=()), errors, errors._replace(groups=()))
            ),
        )
        hits.update(name for name, hit in zip(names, outcomes, strict=True) if hit)
    shares = {name: hits[name] / DRAWS for name in names}
    print(
        f"{groups:4d} {'equal' if are_equal else 'unequal':8s}",
        *(f"{name} {share:.3f}" for name, share in shares.items()),
    )
    assert 0.92 <= shares["covered"] <= 0.98
    assert shares["covered by image"] < 0.85
    assert 0.02 <= shares["mcnemar"] <= 0.08 < 0.15 < shares["mcnemar by image"]
    assert 0.02 <= shares["t"] <= 0.08 < 0.15 < shares["t by image"]


def test_the_jackknife_leaves_out_one_group_at_a_time():
    rng = np.random.default_rng(0)
    values, groups = rng.random(100), rng.integers(0, 7, 100)
    hashes = draw_hashes(rng, 7)
    combined = combine(values, hashes[groups].tolist())
    order = np.argsort(hashes)
    assert combined.total == pytest.approx(values.mean())
    assert combined.sizes == [(groups == group).sum() for group in order]
    assert combined.without == pytest.approx([values[groups != group].mean() for group in order])


@pytest.mark.parametrize("number", [7, 60, 300], ids=["few", "many", "put together"])
def test_bundles_and_their_order_change_nothing(number):
    rng = np.random.default_rng(1)
    values, hashes = rng.random(1000), draw_hashes(rng, number)[rng.integers(0, number, 1000)].tolist()
    combined = combine(values, hashes)
    assert len(combined.sizes) == len(combined.without) == (number if number < 64 else 20)
    assert sum(combined.sizes) == 1000
    for bundles in (2, 13, 100):
        merged = combine(values, hashes, bundles)
        assert merged.sizes == combined.sizes
        assert (merged.total, *merged.without) == pytest.approx((combined.total, *combined.without))


def find_units(number: int) -> list[int]:
    """Returns the units that the Evaluator counts for so many images without a group."""
    hashes = [hash_record(f"Example {n}".encode()) for n in range(number)]
    return [extract_unit(SimpleNamespace(features={RECORD_HASH: np.array([one])}), "group") for one in hashes]


def test_an_image_without_a_group_is_a_group_of_its_own():
    values = np.random.default_rng(0).random(30)
    error = compute_standard_error(combine(values, find_units(30)).without)
    assert error == pytest.approx(stats.sem(values))
    assert combine(values, [5] * 20 + find_units(10)).sizes.count(1) == 10
    grouped = SimpleNamespace(features={RECORD_HASH: np.array([1]), "group": np.array([b"p1"])})
    assert extract_unit(grouped, "group") == extract_group(grouped, "group")


def test_the_same_images_have_the_same_interval_in_any_order():
    rng = np.random.default_rng(0)
    values, units = rng.random(500), np.array(find_units(500))
    intervals = set()
    for bundles in (1, 2, 40):
        order = rng.permutation(500)
        low, high = find_interval(combine(values[order], units[order].tolist(), bundles))
        intervals.add((round(low, 9), round(high, 9)))
    assert len(intervals) == 1


def test_one_group_has_no_interval_and_two_a_wide_one():
    values = np.tile([0.0, 1.0, 1.0], 20)
    assert find_interval(combine(values, [1] * 60)) is None
    low, high = find_interval(combine(values, [1] * 29 + [2] * 31))
    assert low < 2 / 3 < high
    high_by_image = find_interval(combine(values, find_units(60)))[1]
    assert high > high_by_image


def test_degrees_of_freedom_are_less_for_groups_of_unequal_sizes():
    assert count_degrees_of_freedom([3] * 12) == 11
    assert count_degrees_of_freedom([1, 1]) == count_degrees_of_freedom([1000, 1]) == 1
    assert count_degrees_of_freedom([1000, 1000, *[1] * 30]) == count_degrees_of_freedom([1000, 1000], 30) == 1
    assert count_degrees_of_freedom([], 12) == 11


def test_an_interval_of_a_share_lies_within_its_range_and_that_of_others_is_clipped():
    low, high = compute_interval(0.98, 0.02, 19, 0, 1)
    assert 0.98 - low > high - 0.98
    assert high < 1
    # In a wider range far from its ends it is the t interval.
    assert compute_interval(0.1, 1e-4, 19, -1, 1) == pytest.approx(stats.t.interval(0.95, 19, 0.1, 1e-4), abs=1e-6)
    assert compute_interval(0.1, 0.2, 19, 0, np.inf)[0] == 0
    for value, error in ((0.5, 0.0), (1.0, 0.0), (0.5, np.nan), (np.nan, 0.1)):
        assert compute_interval(value, error, 19, 0, 1) is None


def test_p_of_groups_is_that_of_all_ways_to_swap_whole_groups():
    groups = ((5, 1), (2, 0), (0, 1), (3, 3), (4, 0), (0, 2), (1, 0))
    leads = [one - other for one, other in groups]
    swaps = [np.dot(signs, leads) for signs in itertools.product((1, -1), repeat=len(leads))]
    expected = np.mean(np.abs(swaps) >= abs(sum(leads)))
    one, other = (sum(numbers) for numbers in zip(*groups, strict=True))
    grouped = PairedCounts(one, other, 100, groups)
    assert grouped.compute_p() == pytest.approx(expected, abs=0.02)
    # Images without a group are swapped one by one.
    mixed = PairedCounts(one + 3, other + 1, 100, groups)
    swaps = [s + sum(t) for s in swaps for t in itertools.product((1, -1), repeat=4)]
    assert mixed.compute_p() == pytest.approx(np.mean(np.abs(swaps) >= abs(sum(leads) + 2)), abs=0.02)
    # Groups of one image are images.
    single = PairedCounts(4, 1, 100, tuple((int(number < 4), int(number == 4)) for number in range(5)))
    assert single.compute_p() == PairedCounts(4, 1, 100).compute_p()


def test_one_group_proves_nothing():
    assert PairedCounts(90, 0, 100, ((90, 0),)).compute_p() == 1
    assert PairedErrors(100, 50, 20, 30, 20, ((100, 30, 30),)).compute_p() == 1
    # Nor do four: one of them may well be chance.
    assert PairedCounts(90, 0, 100, ((30, 0), (20, 0), (20, 0), (20, 0))).compute_p() > 0.05


def test_p_of_errors_of_groups_of_one_image_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    one, other = rng.exponential(3, (2, 40))
    difference = one - other
    for grouped in (0, 15, 40):
        groups = tuple((1, d, d**2) for d in difference[:grouped])
        sums = PairedErrors(40, one.sum(), other.sum(), (difference**2).sum(), other.sum(), groups)
        assert sums.compute_p() == pytest.approx(stats.ttest_rel(one, other).pvalue, 1e-9)


def test_p_of_labels_is_that_of_all_ways_to_swap_whole_groups():
    rng = np.random.default_rng(2)
    has, one, other = ([set(np.array(["a", "b"])[rng.random(2) < 0.5].tolist()) for _ in range(24)] for _ in range(3))
    groups = rng.integers(0, 8, 24)
    counts: Counter = Counter()
    sums = GroupSums()
    for actual, candidate, champion, group in zip(has, one, other, groups, strict=True):
        for outcome, labels in enumerate((champion & actual, champion - actual, actual - champion)):
            counts.update((label, outcome) for label in labels)
        sums.add(int(group), compare_labels(actual, candidate, champion))
    score = LABEL_SCORES["micro_f1"]

    def difference(swapped: tuple[bool, ...]) -> float:
        pairs = [(b, a) if swapped[group] else (a, b) for a, b, group in zip(one, other, groups, strict=True)]
        scores = []
        for side in (0, 1):
            numbers = [[len(p[side] & h), len(p[side] - h), len(h - p[side])] for p, h in zip(pairs, has, strict=True)]
            scores.append(float(score(np.sum(numbers, axis=0)[None])))
        return scores[0] - scores[1]

    swaps = [difference(swapped) for swapped in itertools.product((False, True), repeat=8)]
    expected = np.mean(np.abs(swaps) >= abs(swaps[0]) - 1e-9)
    labels = PairedLabels(score, counts, count_changes(sums.list_sums()))
    assert 0.05 < expected < 0.95
    assert labels.compute_p() == pytest.approx(expected, abs=0.02)


def test_sums_of_many_groups_take_bounded_memory_and_lose_nothing(monkeypatch):
    monkeypatch.setattr(groups_module, "MAX_GROUPS", 10)
    rng = np.random.default_rng(0)
    hashes = draw_hashes(rng, 50).tolist()
    parts = [GroupSums() for _ in range(4)]
    for number in range(400):
        parts[number % 4].add(hashes[number % 50 if number % 4 else number % 8], {"images": 1, number % 3: 2})
    merged = [merge_groups(order) for order in (parts, parts[::-1])]
    assert merged[0].list_sums() == merged[1].list_sums()
    assert len(merged[0].list_sums()) <= 10
    assert sum(sums["images"] for sums in merged[0].list_sums()) == 400
    assert sum(sums["images"] for part in parts for sums in part.list_sums()) == 400


@pytest.mark.parametrize("values", [None, [], [b""]], ids=["absent", "empty", "empty text"])
def test_an_empty_group_is_none(values):
    assert extract_group(SimpleNamespace(features={"group": values}), "group") is None
    assert extract_group(SimpleNamespace(features=None), "group") is None


def test_groups_are_told_apart_by_text_or_number():
    values = [[b"p1"], [b"p2"], [7], [b"7"], [b"p1", b"p2"], *([number] for number in range(100))]
    hashes = [extract_group(SimpleNamespace(features={"patient": np.array(v)}), "patient") for v in values]
    assert len(set(hashes)) == len(hashes) - 1  # one is there twice
    assert hashes[0] == extract_group(SimpleNamespace(features={"patient": np.array([[b"p1"]], object)}), "patient")
    assert all(VarIntCoder().decode(VarIntCoder().encode(value)) == value for value in hashes)
