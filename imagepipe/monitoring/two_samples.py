"""Whether two samples come from one distribution, and how far apart they are.

Each comparison has a p-value, which says whether the difference may be chance, and a distance, which says whether it
matters: of a million images the smallest difference is no chance.

- Numbers: the two-sample Kolmogorov-Smirnov test, and the Jensen-Shannon divergence (Lin 1991: Divergence measures
  based on the Shannon entropy) of the histograms over the deciles of the reference, 0 to 1, as TFDV measures drift.
- Labels: Fisher's exact test of each label's share of the images (Fisher 1922), of which the smallest p-value counts,
  times their number; and the largest difference of a share, as TFDV's L-infinity norm.
- Vectors: the Kolmogorov-Smirnov test along the main directions of both samples together, of which the smallest p-value
  counts, times their number (Rabanser, Günnemann, Lipton 2019: Failing loudly, section 3: univariate tests on a
  representation of fewer dimensions). As the directions are those of both samples, they favour neither.
- Several comparisons: Holm 1979 (A simple sequentially rejective multiple test procedure), which bounds the chance of
  even one false alarm, whatever depends on what.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_BINS = 10
_DIRECTIONS = 4


@dataclass(frozen=True)
class Difference:
    """How a sample differs from its reference.

    Attributes:
        p: chance of such a difference, or a larger one, between two samples of one distribution.
        distance: 0 to 1.
        lift: by row of the sample, how much more frequent values like its own are than in the reference; 1 for as
            frequent. Float ``[n]``.
    """

    p: float
    distance: float
    lift: np.ndarray


def compare_numbers(sample: np.ndarray, reference: np.ndarray) -> Difference:
    """Compares numbers, float ``[n]`` and ``[m]``, without NaN; neither is empty."""
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, _BINS + 1)[1:-1]))
    # A place for each edge itself, too: of photos of one size all widths are one number.
    places, expected = (
        np.searchsorted(edges, values) + np.searchsorted(edges, values, "right") for values in (sample, reference)
    )
    shares = np.stack([np.bincount(x, minlength=2 * len(edges) + 1) / len(x) for x in (places, expected)])
    return Difference(
        float(stats.ks_2samp(sample, reference, method="asymp").pvalue),
        _measure_divergence(*shares),
        _compute_lift(shares, len(reference))[places],
    )


def compare_labels(sample: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> Difference:
    """Compares labels, any number per image; neither sample is empty."""
    counts, expected = (Counter(label for labels in images for label in set(labels)) for images in (sample, reference))
    names = sorted(counts.keys() | expected.keys())
    totals = np.array([[len(sample)], [len(reference)]])
    present = np.array([[counted[name] for name in names] for counted in (counts, expected)])
    shares = present / totals
    tables = np.stack([present, totals - present]).transpose(2, 1, 0)
    p = min((float(stats.fisher_exact(table).pvalue) for table in tables), default=1.0)
    lifts = dict(zip(names, _compute_lift(shares, len(reference)), strict=True))
    lift = np.array([max((lifts[name] for name in labels), default=1.0) for labels in sample])
    distance = np.abs(shares[0] - shares[1]).max(initial=0.0)
    return Difference(min(1.0, p * len(names)), float(distance), lift)


def compare_vectors(sample: np.ndarray, reference: np.ndarray) -> Difference:
    """Compares vectors, float ``[n, d]`` and ``[m, d]``; neither is empty."""
    both = np.concatenate([sample, reference]).astype(np.float64)
    both -= both.mean(axis=0)
    _, directions = np.linalg.eigh(both.T @ both)
    projected = both @ directions[:, ::-1][:, :_DIRECTIONS]
    differences = [compare_numbers(column[: len(sample)], column[len(sample) :]) for column in projected.T]
    clearest = min(differences, key=lambda difference: difference.p)
    return Difference(min(1.0, clearest.p * len(differences)), clearest.distance, clearest.lift)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that are corrected for their number, by Holm's procedure."""
    order = np.argsort(p_values)
    count = len(p_values)
    adjusted = np.empty(count)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, p_values[place] * (count - rank)))
        adjusted[place] = largest
    return adjusted.tolist()


def estimate_share(right: int, total: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of a share, by Wilson (1927)."""
    interval = stats.binomtest(right, total).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def _measure_divergence(one: np.ndarray, other: np.ndarray) -> float:
    mean = (one + other) / 2
    halves = [stats.entropy(shares, mean, base=2) for shares in (one, other)]
    return float(sum(halves) / 2)


def _compute_lift(shares: np.ndarray, count: int) -> np.ndarray:
    """Returns how much larger each of the first shares is than the second; a share of 0 counts as half an image."""
    return shares[0] / np.maximum(shares[1], 0.5 / count)
