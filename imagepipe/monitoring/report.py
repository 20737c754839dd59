"""The figures of monitored traffic: each day and version of what was captured against a reference."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from imagepipe.monitoring.comparison import Comparison, Limits, Moved, Sample, compare, find_limit, find_moved
from imagepipe.monitoring.feedback import Feedback
from imagepipe.monitoring.measures import EMBEDDING, LABEL
from imagepipe.monitoring.reference import Reference
from imagepipe.monitoring.traffic import Part, Traffic, join, make_sample, read_traffic, to_numbers

MIN_IMAGES = 30
"""Images of a day and version, fewer of which say nothing; they are counted."""

ALL_DAYS = "all days"


@dataclass(frozen=True)
class Monitored:
    """Traffic, compared.

    Attributes:
        reference: what it was compared with.
        limits: from which on a measure has moved.
        traffic: by day and version; of a version that answered on several days also all of them together.
        comparisons: of each of these; none if there are too few images.
        moved: the measures that have moved.
        feedback: accuracy in service; None if no true labels were given.
    """

    reference: Reference
    limits: Limits
    traffic: Mapping[Part, Traffic]
    comparisons: Mapping[Part, list[Comparison]]
    moved: list[Moved]
    feedback: Feedback | None


def monitor(
    capture: str, reference: Reference, limits: Limits, since: datetime | None = None, feedback: Feedback | None = None
) -> Monitored:
    """Compares captured traffic with a reference.

    Answers are compared where the reference's version gave them; those of other versions are counted, and the images
    that they were asked about are compared.

    Raises:
        ModelError: if there is no traffic, or a file of it can't be read.
    """
    by_day = read_traffic(capture, since)
    traffic = by_day | _join_days(by_day)
    comparisons = {
        part: _compare(part, answers, reference) if answers.images >= MIN_IMAGES else []
        for part, answers in traffic.items()
    }
    moved = find_moved({str(part): measured for part, measured in comparisons.items()}, limits)
    return Monitored(reference, limits, traffic, comparisons, moved, feedback)


def to_json(monitored: Monitored) -> dict[str, Any]:
    """Returns all figures as plain data."""
    moved = {(m.part, m.comparison.measure): m.p for m in monitored.moved}
    return {
        "run": monitored.reference.run,
        "version": monitored.reference.version,
        "limits": vars(monitored.limits),
        "compared": not describe_nothing_compared(monitored),
        "moved": sorted({m.comparison.measure for m in monitored.moved}),
        "parts": [
            {
                "day": part.day,
                "version": part.version,
                "images": traffic.images,
                "labels": dict(traffic.labels.most_common()),
                "errors": dict(traffic.errors.most_common()),
                "milliseconds": measure_latency(traffic),
                "comparisons": [
                    {
                        "measure": comparison.measure,
                        "versus": comparison.versus,
                        "images": comparison.images,
                        "distance": comparison.difference.distance,
                        "limit": find_limit(comparison.measure, monitored.limits),
                        "p": comparison.difference.p,
                        "moved": (str(part), comparison.measure) in moved,
                    }
                    for comparison in monitored.comparisons[part]
                ],
            }
            for part, traffic in monitored.traffic.items()
        ],
        "feedback": monitored.feedback and asdict(monitored.feedback),
    }


def describe_moved(moved: Moved) -> str:
    """Returns what has moved as a sentence."""
    measure, difference = moved.comparison.measure, moved.comparison.difference
    other = "the training images" if moved.comparison.versus == "train" else "the model's answers about the eval split"
    return f"{moved.part}: {measure} differs from {other}: distance {difference.distance:.3f}, p = {moved.p:.2g}"


def describe_nothing_compared(monitored: Monitored) -> str:
    """Returns a sentence if no measure of any day and version was compared; '' if some were."""
    if any(monitored.comparisons.values()):
        return ""
    return f"Nothing could be compared: a day and version needs at least {MIN_IMAGES} answered images"


def describe_other_versions(monitored: Monitored) -> str:
    """Returns a sentence if the reference is of a version that gave none of the answers; '' if it gave some."""
    answered = {part.version for part, traffic in monitored.traffic.items() if traffic.images}
    if not answered or monitored.reference.version in ("", *answered):
        return ""
    return (
        f"None of these answers is version {monitored.reference.version}'s, which they are compared with, but "
        f"{', '.join(sorted(answered))}'s: only the images are compared. Give the version that answers (--against)"
    )


def list_rows(comparison: Comparison, traffic: Traffic) -> np.ndarray:
    """Returns the rows of the sample that a comparison's lift is of, int64 ``[n]``."""
    table = traffic.sample
    if comparison.measure == LABEL:
        return np.arange(len(table))
    if comparison.measure == EMBEDDING:
        return np.flatnonzero(table[EMBEDDING].is_valid().to_numpy())
    return np.flatnonzero(np.isfinite(to_numbers(table[comparison.measure])))


def measure_latency(traffic: Traffic) -> dict[str, float] | None:
    """Returns median and 95th percentile of the sample's milliseconds; None if they weren't measured."""
    values = to_numbers(traffic.sample["milliseconds"])
    values = values[np.isfinite(values)]
    return dict(zip(("median", "p95"), np.percentile(values, (50, 95)).tolist(), strict=True)) if len(values) else None


def _join_days(by_day: Mapping[Part, Traffic]) -> dict[Part, Traffic]:
    together = {}
    for version in {part.version for part in by_day}:
        days = [traffic for part, traffic in by_day.items() if part.version == version]
        if len(days) > 1:
            together[Part(ALL_DAYS, version)] = join(days)
    return dict(sorted(together.items()))


def _compare(part: Part, traffic: Traffic, reference: Reference) -> list[Comparison]:
    sample = make_sample(traffic, reference.task)
    is_its_own = reference.version in ("", part.version) and _may_be_of_one_model(sample, reference.evaluated)
    return compare(sample, reference.trained, reference.evaluated if is_its_own else None)


def _may_be_of_one_model(sample: Sample, other: Sample) -> bool:
    """Returns whether embeddings have as many numbers, if both samples have some."""
    sizes = {some.embedding.shape[1] for some in (sample, other) if some.embedding is not None}
    return len(sizes) <= 1
