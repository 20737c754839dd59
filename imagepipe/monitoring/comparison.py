"""Compares a part of the traffic with its reference, measure by measure, and tells what has moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from imagepipe.monitoring.measures import ANSWERS, EMBEDDING, LABEL, MEASURES, Sample, Versus
from imagepipe.monitoring.two_samples import Difference, adjust, compare_labels, compare_numbers, compare_vectors


@dataclass(frozen=True)
class Limits:
    """From when on a measure has moved: both have to be exceeded.

    Attributes:
        false_alarms: chance of one or more false alarms, over all comparisons.
        divergence: Jensen-Shannon divergence of numbers and embeddings, 0 to 1.
        share: difference of the share of a class, 0 to 1.
    """

    false_alarms: float = 0.05
    divergence: float = 0.02
    share: float = 0.05


@dataclass(frozen=True)
class Comparison:
    """A measure of a part of the traffic, against its reference.

    Attributes:
        measure: name of the column.
        versus: the split of the reference.
        images: number of images that were compared.
        difference: how they differ.
    """

    measure: str
    versus: Versus
    images: int
    difference: Difference


@dataclass(frozen=True)
class Moved:
    """A measure that has moved.

    Attributes:
        part: of the traffic.
        comparison: of the measure.
        p: corrected for the number of comparisons.
    """

    part: str
    comparison: Comparison
    p: float


def compare(traffic: Sample, trained: Sample, evaluated: Sample | None) -> list[Comparison]:
    """Compares traffic with its reference.

    Args:
        traffic: a part of it.
        trained: images of the train split.
        evaluated: images of the eval split with the answers of the version that answered the traffic; None if it is
            another version's.

    Returns:
        A comparison for each measure that both have.
    """
    comparisons = _compare_numbers(traffic, trained, MEASURES, "train")
    if evaluated:
        comparisons += _compare_numbers(traffic, evaluated, ANSWERS, "eval")
    if evaluated and traffic.labels and evaluated.labels:
        difference = compare_labels(traffic.labels, evaluated.labels)
        comparisons.append(Comparison(LABEL, "eval", len(traffic.labels), difference))
    if evaluated and traffic.embedding is not None and evaluated.embedding is not None:
        difference = compare_vectors(traffic.embedding, evaluated.embedding)
        comparisons.append(Comparison(EMBEDDING, "eval", len(traffic.embedding), difference))
    return comparisons


def _compare_numbers(traffic: Sample, reference: Sample, names: Sequence[str], versus: Versus) -> list[Comparison]:
    comparisons = []
    for name in names:
        sample, expected = (_drop_missing(side.numbers.get(name)) for side in (traffic, reference))
        if len(sample) and len(expected):
            comparisons.append(Comparison(name, versus, len(sample), compare_numbers(sample, expected)))
    return comparisons


def find_moved(comparisons_by_part: Mapping[str, Sequence[Comparison]], limits: Limits) -> list[Moved]:
    """Returns the measures that have moved, in the order of the parts, the furthest first."""
    pairs = [(part, comparison) for part, comparisons in comparisons_by_part.items() for comparison in comparisons]
    adjusted = adjust([comparison.difference.p for _, comparison in pairs])
    moved = [
        Moved(part, comparison, p)
        for (part, comparison), p in zip(pairs, adjusted, strict=True)
        if p < limits.false_alarms and comparison.difference.distance > find_limit(comparison.measure, limits)
    ]
    order = list(comparisons_by_part)
    return sorted(moved, key=lambda m: (order.index(m.part), -m.comparison.difference.distance))


def find_limit(measure: str, limits: Limits) -> float:
    """Returns the distance up to which a measure has not moved."""
    return limits.share if measure == LABEL else limits.divergence


def _drop_missing(values: np.ndarray | None) -> np.ndarray:
    return np.empty(0) if values is None else values[np.isfinite(values)]
