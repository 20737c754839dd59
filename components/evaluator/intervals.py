"""Confidence intervals of 95 % from a jackknife: how a metric changes as parts of the images are left out."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

_LEVEL = 0.95


def compute_standard_error(estimates: Sequence[float]) -> float:
    """Computes the standard error of a metric by the jackknife; NaN if an estimate is.

    MacKinnon, J. G., Nielsen, M. Ø., Webb, M. D. (2023): Fast and reliable jackknife and bootstrap methods for
    cluster-robust inference. Journal of Applied Econometrics 38 (5), 671-694: among the usual estimators the most
    reliable one for groups of unequal sizes.

    Args:
        estimates: the metric without each of the parts, two or more.
    """
    deviations = np.asarray(estimates, float) - np.mean(estimates)
    return float(np.sqrt((len(estimates) - 1) / len(estimates) * np.square(deviations).sum()))


def count_degrees_of_freedom(sizes: Sequence[float] | np.ndarray, alone: int = 0) -> int:
    """Returns the degrees of freedom of a standard error, at least 1: for n parts of one size n - 1, else less.

    Satterthwaite, F. E. (1946): An approximate distribution of estimates of variance components. Biometrics Bulletin 2
    (6), 110-114, for parts that vary in proportion to their sizes: two large groups and many small ones say hardly more
    about the error than two.

    Args:
        sizes: number of images of each part.
        alone: number of further parts, of one image each. With them there are two parts or more.
    """
    numbers = np.asarray(sizes, float)
    effective = (numbers.sum() + alone) ** 2 / (np.square(numbers).sum() + alone)
    return max(1, math.floor(effective * (1 - 1 / (len(numbers) + alone)) + 1e-9))


def compute_interval(
    value: float, error: float, degrees: int, lowest: float, highest: float
) -> tuple[float, float] | None:
    """Computes the ends of an interval by Student's t; None if it has no width, which is no certainty, or no ends.

    Of a metric with a minimum and a maximum the logit is taken first, so that the interval is not symmetric where the
    metric is near one of them: Franco, C., Little, R. J. A., Louis, T. A., Slud, E. V. (2019): Comparative study of
    confidence intervals for proportions in complex sample surveys. Journal of Survey Statistics and Methodology 7 (3),
    334-364. Other intervals are clipped.

    Args:
        value: the metric.
        error: its standard error.
        degrees: its degrees of freedom.
        lowest: the metric's minimum, possibly infinite.
        highest: likewise its maximum.
    """
    half = float(stats.t.ppf((1 + _LEVEL) / 2, degrees)) * error
    if not (math.isfinite(value) and math.isfinite(half) and half > 0):
        return None
    span = highest - lowest
    if math.isfinite(span) and lowest < value < highest:
        share = (value - lowest) / span
        logit, half = math.log(share / (1 - share)), half / span / (share * (1 - share))
        low, high = (lowest + span * float(special.expit(end)) for end in (logit - half, logit + half))
    else:
        low, high = max(value - half, lowest), min(value + half, highest)
    return (low, high) if low < high else None
