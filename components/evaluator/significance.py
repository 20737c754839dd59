"""Paired tests: whether the difference between two models may be chance, by their answers to the same images.

Two models differ on a few hundred images by chance as well. A paired test looks at the images to which they give
different answers: if both were equally good, each of these would favour either model with the same probability. The
test depends on the metric:

- ``PairedCounts``, McNemar's test: an image is right or wrong.
- ``PairedErrors``, a paired t-test: each image has an error, and the metric is its mean.
- ``PairedLabels``, a randomization test: metrics such as F1, which are no mean over images.

Each holds sums over images: images can be added one by one, and sums can be added up. p is two-sided: the probability
that models that are equally good differ by as much or more.

Images of a group (see ``components.evaluator.groups``) are alike, so that chance favours a model for all of them at
once: where there are groups, each test counts these, and an image without one as a group of its own. Swapping the
answers to whole groups holds for groups of any size, and for a few of them: Canay, I. A., Romano, J. P., Shaikh, A. M.
(2017): Randomization tests under an approximate symmetry assumption. Econometrica 85 (3), 1013-1030.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse
from scipy import stats

from components.evaluator.intervals import count_degrees_of_freedom

_ROUNDS = 9_999  # of a randomization test: p is exact to about 0.002 near 0.05, and at least 0.0001
_NUMBERS = 2**21  # random numbers or counts in memory at a time
_ROUNDING = 1e-12  # errors of scores of the same counts


class PairedSums(Protocol):
    """Sums over images, as far as a paired test of two models needs them."""

    def compute_p(self) -> float:
        """Returns p; see the module."""

    def is_worse(self, margin: float) -> bool:
        """Returns whether the candidate is worse than the champion by more than ``margin``, or has NaN answers."""


def compute_p_if_worse(sums: PairedSums, margin: float) -> float:
    """Returns p for a candidate that is worse than the champion by more than ``margin``; 1 for any other."""
    return sums.compute_p() if sums.is_worse(margin) else 1.0


def _draw_swaps(numbers: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Draws how many of ``numbers`` ``[d]`` each round of a randomization test swaps; yields rounds, ``[n, d]``.

    Args:
        numbers: numbers of groups or images.
        width: how many numbers a round takes at most: of so many fewer rounds are in memory at a time.
    """
    generator, chunk = np.random.default_rng(0), max(1, _NUMBERS // width)
    for start in range(0, _ROUNDS, chunk):
        yield generator.binomial(numbers, 0.5, (min(chunk, _ROUNDS - start), len(numbers)))


class PairedCounts(NamedTuple):
    """Numbers of images by which of two models is right.

    McNemar, Q. (1947): Note on the sampling error of the difference between correlated proportions or percentages.
    Psychometrika 12 (2), 153-157. The probability is not the approximation by chi-square given there, but the exact one
    by the binomial distribution, so that it holds for few images too: Dietterich, T. G. (1998): Approximate statistical
    tests for comparing supervised classification learning algorithms. Neural Computation 10 (7), 1895-1923,
    section 3.1. That is the chance of the difference if the answers to each image are swapped at random; of groups,
    whole ones are.

    Attributes:
        only_candidate: number of images about which only the candidate is right.
        only_champion: likewise for the champion.
        images: number of all images.
        groups: for each group (only_candidate, only_champion), which are part of those numbers.
    """

    only_candidate: float = 0
    only_champion: float = 0
    images: float = 0
    groups: tuple[tuple[float, float], ...] = ()

    def compute_p(self) -> float:
        """Returns p; 1 without a difference. Counts images or groups, without weights."""
        leads = Counter(round(abs(candidate - champion)) for candidate, champion in self.groups)
        leads[1] += round(self.only_candidate + self.only_champion - sum(map(sum, self.groups)))
        observed = abs(round(self.only_candidate - self.only_champion))
        sizes = sorted(size for size, number in leads.items() if size and number)
        if not sizes:
            return 1.0
        if sizes == [1]:
            return float(stats.binomtest((leads[1] - observed) // 2, leads[1]).pvalue)
        numbers = np.array([leads[size] for size in sizes])
        leads_by_round = ((numbers - 2 * swapped) @ np.array(sizes) for swapped in _draw_swaps(numbers, len(sizes)))
        as_large = sum(int((np.abs(lead) >= observed).sum()) for lead in leads_by_round)
        return (as_large + 1) / (_ROUNDS + 1)

    def is_worse(self, margin: float) -> bool:
        """Compares accuracies; ``margin`` is a difference."""
        return self.only_champion - self.only_candidate > margin * self.images


class PairedErrors(NamedTuple):
    """Sums over images of both models' errors, absolute or squared.

    The t-test on the differences, image by image: Diebold, F. X., Mariano, R. S. (1995): Comparing predictive accuracy.
    Journal of Business & Economic Statistics 13 (3), 253-263, for errors that don't depend on each other. It is about
    the mean, as the metrics are; Wilcoxon's signed-rank test is about the median, so that a model with a few huge
    errors could be worse in the metric and better in the test. By the central limit theorem it holds for errors of any
    distribution with a variance, from some 30 images on.

    With groups, the standard error of the mean is the jackknife's, which leaves out one group at a time, and so are its
    degrees of freedom: see ``components.evaluator.intervals``. For single images that is the t-test.

    Attributes:
        images: number of images.
        candidate: sum of the candidate's errors.
        champion: sum of the champion's errors.
        squares: sum of the squared differences of the two.
        unit: sum of which a margin is a share.
        groups: for each group its number of images, and its sums of differences (candidate minus champion) and of
            their squares, which are part of those sums.
    """

    images: int = 0
    candidate: float = 0
    champion: float = 0
    squares: float = 0
    unit: float = 0
    groups: tuple[tuple[float, float, float], ...] = ()

    def compute_p(self) -> float:
        """Returns p; 1 without a difference, or for fewer than two groups; NaN if an error is not a number."""
        difference = self.candidate - self.champion
        numbers, differences, squares = np.array(self.groups, float).reshape(-1, 3).T
        alone = self.images - round(numbers.sum())
        count = alone + len(numbers)
        if count < 2 or difference == 0:
            return 1.0
        mean = difference / self.images
        deviations = ((differences - numbers * mean) / (self.images - numbers)) ** 2
        variance = deviations.sum()
        if alone:
            left, left_squares = difference - differences.sum(), self.squares - squares.sum()
            variance += max(left_squares - 2 * left * mean + alone * mean**2, 0.0) / (self.images - 1) ** 2
        with np.errstate(divide="ignore"):  # always the same difference: no chance
            t = np.abs(mean) / np.sqrt(np.float64(variance * (count - 1) / count))
        return float(2 * stats.t.sf(t, count_degrees_of_freedom(numbers, alone)))

    def is_worse(self, margin: float) -> bool:
        """Compares mean errors; ``margin`` is a share of ``unit``."""
        return not self.candidate - self.champion <= margin * self.unit


RIGHT, WRONG, MISSED = range(3)
"""Outcomes of a label: predicted rightly, predicted wrongly, not predicted though the image has it. The order of the
counts that scores take."""

Outcome = tuple[str, int]
"""A label and its outcome for an image."""

Change = tuple[tuple[Outcome, int], ...]
"""By how much the candidate's numbers of outcomes differ from the champion's: for an image, or for those of a group."""


def compare_labels(actual: set[str], candidate: set[str], champion: set[str]) -> dict[Outcome, int]:
    """Returns by how much the candidate's outcomes differ from the champion's, for an image with labels ``actual``."""
    changes: dict[Outcome, int] = {}
    for label in candidate ^ champion:
        change = 1 if label in candidate else -1
        changes |= {(label, RIGHT): change, (label, MISSED): -change} if label in actual else {(label, WRONG): change}
    return changes


def count_changes(differences: Iterable[Mapping[Outcome, float]]) -> Counter[Change]:
    """Counts equal differences, as from ``compare_labels``, or sums of them; those without a change are left out."""
    changes = (
        tuple(sorted((outcome, round(change)) for outcome, change in difference.items() if change))
        for difference in differences
    )
    return Counter(change for change in changes if change)


class PairedLabels(NamedTuple):
    """Two models' predictions for images that have any number of labels.

    The two answers to each image, or to each group of images, are swapped at random, and the score is computed anew for
    both sides: this is how models would differ if each answer could as well be the other's. Yeh, A. (2000): More
    accurate tests for the statistical significance of result differences. COLING, for just such scores. The difference
    itself counts among the rounds: Phipson, B., Smyth, G. K. (2010): Permutation p-values should never be zero.
    Statistical Applications in Genetics and Molecular Biology 9 (1), article 39.

    Attributes:
        score: the metric, from counts ``[..., l, 3]`` for l labels, see ``RIGHT``, to ``[...]``; higher is better. NaN
            counts as 0.
        champion: number of images by label and outcome, for the champion.
        differences: number of groups, or of images without a group, by how the two answers differ: all that a swap
            changes.
    """

    score: Callable[[np.ndarray], np.ndarray]
    champion: Counter[Outcome]
    differences: Counter[Change]

    def compute_p(self) -> float:
        """Returns p; 1 without a difference. The same for the same images in any order."""
        if not self.differences:
            return 1.0
        champion, changes, numbers = self._count()
        half = numbers @ changes / 2
        middle = champion + half
        observed = abs(self._compute_lead(middle, half))
        as_large = 0
        for swapped in _draw_swaps(numbers, max(changes.shape)):
            lead = self._compute_lead(middle, (numbers - 2 * swapped) @ changes / 2)
            as_large += int((np.abs(lead) >= observed - _ROUNDING).sum())
        return (as_large + 1) / (_ROUNDS + 1)

    def is_worse(self, margin: float) -> bool:
        """Compares scores; ``margin`` is a difference."""
        if not self.differences:
            return False
        champion, changes, numbers = self._count()
        half = numbers @ changes / 2
        return bool(self._compute_lead(champion + half, half) < -margin)

    def _count(self) -> tuple[np.ndarray, scipy.sparse.csr_array, np.ndarray]:
        """Counts images by label and outcome, for l labels and d ways in which the two answers differ.

        Returns:
            The champion's ``[3 l]``; by how much the candidate's differ in each way ``[d, 3 l]``; the number of groups
            or images that differ in each way ``[d]``.
        """
        ways = sorted(self.differences)
        names = sorted({label for label, _ in self.champion} | {label for way in ways for (label, _), _ in way})
        offsets = {name: 3 * number for number, name in enumerate(names)}
        champion = np.zeros(3 * len(names))
        for (label, outcome), number in self.champion.items():
            champion[offsets[label] + outcome] = number
        changes = scipy.sparse.lil_array((len(ways), 3 * len(names)))
        for row, way in enumerate(ways):
            for (label, outcome), change in way:
                changes[row, offsets[label] + outcome] = change
        return champion, changes.tocsr(), np.array([self.differences[way] for way in ways])

    def _compute_lead(self, middle: np.ndarray, half: np.ndarray) -> np.ndarray:
        """Returns the score of counts ``middle + half`` minus that of ``middle - half``, both ``[..., 3 l]``."""
        shape = (*half.shape[:-1], -1, 3)
        one, other = (np.nan_to_num(self.score((middle + side).reshape(shape))) for side in (half, -half))
        return one - other
