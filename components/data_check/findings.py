"""Findings: what is wrong with the data, each with a message that says how much and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

MAX_EXAMPLES = 500
"""Maximum number of image ids in a finding, and of groups of near-duplicates."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with the data.

    Attributes:
        severity: an error stops the run.
        kind: missing_label, several_labels, unusable_label, unseen_label, too_few_images, missing_column,
            faulty_value, too_many_slices, unknown_value, leak, unreadable, left_out, anomaly, drift, skew,
            near_duplicates, groups, label_errors, outliers or sampled.
        split: the split that it is about; '' if several.
        feature: the column that it is about; '' if none.
        message: a sentence with numbers, and what to do.
        examples: ids of the images that it is about, at most MAX_EXAMPLES.
    """

    severity: Severity
    kind: str
    split: str
    feature: str
    message: str
    examples: list[str] = field(default_factory=list)


def choose_severity(kind: str, stop_on: Iterable[str]) -> Severity:
    """Returns "error" for the kinds that ``data.validation.stop_on`` lists, else "warning"."""
    return "error" if kind in stop_on else "warning"


def rate_split(split: str) -> Severity:
    """Returns "error" for the splits by which a model is made and judged, else "warning"."""
    return "error" if split in ("train", "eval") else "warning"


def count_images(number: int) -> str:
    """Returns a number of images as text, such as "1 image" or "1,234 images"."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def describe_left_out(number: int, what: str) -> str:
    """Returns how many images or groups are not listed, as the end of a message; "" if all are."""
    return (
        f". Not listed: {number:,} {what}{'' if number == 1 else 's'} on which a person has decided" if number else ""
    )
