"""Names of what the Evaluator computes beside the metrics of ``imagepipe.base.metrics``: made and parsed here only.

TFMA stores a result under its name and nothing else, so that the name of a paired test has to say which metric it
compares, and by which margin.
"""

EXAMPLE_COUNT = "example_count"
"""Number of images of a slice; TFMA's name."""

GROUP_COUNT, UNGROUPED_COUNT = "group_count", "ungrouped_count"
"""Number of groups of a slice, or a greater one than ``components.evaluator.groups.MAX_GROUPS`` for more than these;
number of its images that have no group."""

TOP_K = "k"
"""TFMA's option of a metric of the k most probable classes. With no more classes than that it is always 1."""

CONFUSION_MATRIX, LABEL_DETAILS = "multi_class_confusion_matrix", "label_details"
"""Counts by actual and predicted class, and metrics by label."""

CURVES, CALIBRATION, CONFIDENCE = "confusion_matrix_plot", "calibration_plot", "confidence"
"""Plots. The first two are TFMA's own, which it joins into one per class."""

MCNEMAR, ONLY_CANDIDATE, ONLY_CHAMPION = "mcnemar", "only_candidate_right", "only_champion_right"
"""p of McNemar's test, and the counts that it is computed from."""

_PAIRED_TEST = "_paired_p"
_MARGIN_TEST = "_not_worse_by_"


def name_paired_test(metric: str) -> str:
    """Returns the name of the p of a metric's paired test."""
    return f"{metric}{_PAIRED_TEST}"


def parse_paired_test(name: str) -> str | None:
    """Returns the metric of a name from ``name_paired_test``; None for other names."""
    return name.removesuffix(_PAIRED_TEST) if name.endswith(_PAIRED_TEST) else None


def name_margin_test(metric: str, margin: float) -> str:
    """Returns the name of a test of whether the candidate is worse than the champion by more than ``margin``."""
    return f"{metric}{_MARGIN_TEST}{margin!r}"


def parse_margin_test(name: str) -> tuple[str, float] | None:
    """Returns the metric and the margin of a name from ``name_margin_test``; None for other names."""
    metric, separator, margin = name.partition(_MARGIN_TEST)
    return (metric, float(margin)) if separator else None
