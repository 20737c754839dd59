"""Whether the difference between two models may be chance, by what both say of the same images. Knows no TFMA.

Two models differ on a few hundred images by chance as well. A paired test looks at the images of which they say
different things: if both were equally good, each of these would speak for the one as probably as for the other. Which
test it is belongs to what is measured:

- ``Pairs``, McNemar's test: whether an image is right or wrong.
- ``Errors``, a paired t-test: an error of each image, of which the metric is the mean.
- ``Labels``, a randomization test: figures such as F1, that are no mean over images.

Each counts what is known of images that are added one by one, and can be added up. ``p`` is two-sided: the probability
that models that are equally good differ by so much or more.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse
from scipy import stats

_ROUNDS = 9_999  # of a randomization test: p is known to some 0.002 where it is 0.05, and is at least 0.0001
_NUMBERS = 2**21  # that are drawn or counted at a time
_ROUNDING = 1e-12  # of figures of the same counts


class Comparison(Protocol):
    """Two models, as far as a paired test needs to know them."""

    def p(self) -> float:
        """See the module."""

    def is_worse(self, margin: float) -> bool:
        """Whether the candidate is behind the champion by more than ``margin``, or what it says is not a number."""


def p_if_worse(found: Comparison, margin: float) -> float:
    """``p`` of a candidate that is behind the champion by more than ``margin``; 1 of any other."""
    return found.p() if found.is_worse(margin) else 1.0


class Pairs(NamedTuple):
    """Images by which of two models is right: only the candidate, only the champion; and all.

    McNemar, Q. (1947): Note on the sampling error of the difference between correlated proportions or percentages.
    Psychometrika 12 (2), 153-157. The probability is not the approximation by chi-square that is given there, but the
    exact one by the binomial distribution, so that it holds for few images too: Dietterich, T. G. (1998): Approximate
    statistical tests for comparing supervised classification learning algorithms. Neural Computation 10 (7), 1895-1923,
    section 3.1.
    """

    only_candidate: float = 0
    only_champion: float = 0
    images: float = 0

    def p(self) -> float:
        """1 without a difference. Counts images, without weights."""
        discordant = round(self.only_candidate + self.only_champion)
        return float(stats.binomtest(round(self.only_champion), discordant).pvalue) if discordant else 1.0

    def is_worse(self, margin: float) -> bool:
        """In accuracy; ``margin`` is a difference."""
        return self.only_champion - self.only_candidate > margin * self.images


class Errors(NamedTuple):
    """Sums over images of what is bad of each: an absolute or a squared error.

    The t-test on the differences, image by image: Diebold, F. X., Mariano, R. S. (1995): Comparing predictive accuracy.
    Journal of Business & Economic Statistics 13 (3), 253-263, for errors that don't depend on each other. It is about
    the mean, as the metrics are; Wilcoxon's signed-rank test is about the median, so that a model with a few huge
    errors could be worse in the metric and better in the test. By the central limit theorem it holds for errors of any
    distribution with a variance, from some 30 images on.

    Attributes:
        images: how many.
        candidate: sum of the candidate's errors.
        champion: sum of the champion's.
        squares: sum of the squared differences of the two.
        unit: sum that a margin is a share of.
    """

    images: int = 0
    candidate: float = 0
    champion: float = 0
    squares: float = 0
    unit: float = 0

    def p(self) -> float:
        """1 without a difference, or of less than two images; NaN if an error is not a number."""
        difference = self.candidate - self.champion
        if self.images < 2 or difference == 0:
            return 1.0
        mean = difference / self.images
        variance = max(self.squares - difference * mean, 0.0) / (self.images - 1)
        with np.errstate(divide="ignore"):  # always the same difference: no chance
            t = np.abs(mean) / np.sqrt(np.float64(variance / self.images))
        return float(2 * stats.t.sf(t, self.images - 1))

    def is_worse(self, margin: float) -> bool:
        """In the mean error; ``margin`` is a share of ``unit``."""
        return not self.candidate - self.champion <= margin * self.unit


RIGHT, WRONG, MISSED = range(3)
"""How a label was said of an image, or not although it should have been; the order of what scores look at."""

Difference = tuple[tuple[str, bool, bool], ...]
"""Of an image the labels that only one model says: (label, whether the image has it, whether the candidate says it)."""


class Labels(NamedTuple):
    """What two models say of images that have any number of labels.

    The two answers to each image are swapped at random, and the figure is taken anew of either heap: so would models
    differ if each answer could as well be the other's. Yeh, A. (2000): More accurate tests for the statistical
    significance of result differences. COLING, for just such figures. The difference itself counts among the rounds:
    Phipson, B., Smyth, G. K. (2010): Permutation p-values should never be zero. Statistical Applications in Genetics
    and Molecular Biology 9 (1), article 39.

    Attributes:
        score: the figure, from counts ``[..., l, 3]`` of l labels, see ``RIGHT``, to ``[...]``; higher is better. What
            is not a number counts as 0.
        champion: of the champion, by label and how it was said, the number of images.
        differences: how many images differ in which way: all that a swap changes.
    """

    score: Callable[[np.ndarray], np.ndarray]
    champion: Counter[tuple[str, int]]
    differences: Counter[Difference]

    def p(self) -> float:
        """1 without a difference. The same for the same images, in whatever order they come."""
        if not self.differences:
            return 1.0
        champion, changes, numbers = self._counts()
        half = numbers @ changes / 2
        middle = champion + half
        observed = abs(self._ahead(middle, half))
        generator = np.random.default_rng(0)
        as_large, at_a_time = 0, max(1, _NUMBERS // max(changes.shape))
        for start in range(0, _ROUNDS, at_a_time):
            swapped = generator.binomial(numbers, 0.5, (min(at_a_time, _ROUNDS - start), len(numbers)))
            ahead = self._ahead(middle, (numbers - 2 * swapped) @ changes / 2)
            as_large += int((np.abs(ahead) >= observed - _ROUNDING).sum())
        return (as_large + 1) / (_ROUNDS + 1)

    def is_worse(self, margin: float) -> bool:
        """In the figure; ``margin`` is a difference."""
        if not self.differences:
            return False
        champion, changes, numbers = self._counts()
        half = numbers @ changes / 2
        return bool(self._ahead(champion + half, half) < -margin)

    def _counts(self) -> tuple[np.ndarray, scipy.sparse.csr_array, np.ndarray]:
        """Of the champion ``[3 l]``; by how much the candidate differs in each way ``[d, 3 l]``; in how many images."""
        ways = sorted(self.differences)
        names = sorted({label for label, _ in self.champion} | {label for way in ways for label, _, _ in way})
        place = {name: 3 * number for number, name in enumerate(names)}
        champion = np.zeros(3 * len(names))
        for (label, how), number in self.champion.items():
            champion[place[label] + how] = number
        changes = scipy.sparse.lil_array((len(ways), 3 * len(names)))
        for row, way in enumerate(ways):
            for label, has_it, by_candidate in way:
                change = 1 if by_candidate else -1
                if has_it:
                    changes[row, place[label] + RIGHT] = change
                    changes[row, place[label] + MISSED] = -change
                else:
                    changes[row, place[label] + WRONG] = change
        return champion, changes.tocsr(), np.array([self.differences[way] for way in ways])

    def _ahead(self, middle: np.ndarray, half: np.ndarray) -> np.ndarray:
        """By how much counts of ``middle`` plus ``half`` ``[..., 3 l]`` are ahead of those of ``middle`` less that."""
        shape = (*half.shape[:-1], -1, 3)
        one, other = (np.nan_to_num(self.score((middle + side).reshape(shape))) for side in (half, -half))
        return one - other
