"""Results of an evaluation as plain data: metric values with intervals, slices, curves, rules of the gate."""

from dataclasses import dataclass, field
from typing import Literal

from components.evaluator.groups import MAX_GROUPS

CANDIDATE, CHAMPION = "candidate", "champion"
"""Names of the models."""

RuleKind = Literal["min", "max", "not_worse_than_champion"]
Verdict = Literal["passed", "refused", "skipped"]


@dataclass(frozen=True)
class RuleOutcome:
    """A rule of the gate, and the values that decided it; None for a value that is missing or not a number.

    Attributes:
        metric: the metric that the rule is about.
        slice: the images that it is about, by column and value; empty for all.
        kind: the kind of bound.
        bound: the minimum, the maximum, or by how much the candidate may be worse than the champion.
        relative: whether the bound is a share of the champion's value.
        significance: a candidate that is worse is refused only if ``p`` is below this; None for a rule without a test.
        value: the candidate's.
        interval: the ends of its 95 % confidence interval.
        champion: the champion's value.
        difference: the candidate's value minus the champion's.
        difference_interval: the ends of its 95 % confidence interval.
        p: for a rule with a test: two-sided probability of such a difference between models that are equally good.
        verdict: ``skipped`` if there is no champion to compare with, or if the metric is always the same.
        because: the reason for the verdict as text.
    """

    metric: str
    slice: dict[str, str]
    kind: RuleKind
    bound: float
    relative: bool
    significance: float | None
    value: float | None
    interval: tuple[float, float] | None
    champion: float | None
    difference: float | None
    difference_interval: tuple[float, float] | None
    p: float | None
    verdict: Verdict
    because: str


@dataclass(frozen=True)
class MetricValue:
    """A metric's value, None if it is not a number; the ends of its 95 % confidence interval, None if it has none.

    The value is TFMA's; for the ends see ``components.evaluator.intervals``.
    """

    value: float | None
    interval: tuple[float, float] | None = None


MetricValues = dict[str, MetricValue]


@dataclass(frozen=True)
class McNemarResult:
    """McNemar's test of two classifiers: images that only one has right, and p; see ``significance.PairedCounts``."""

    only_candidate: int
    only_champion: int
    p: float


@dataclass(frozen=True)
class Slice:
    """A part of the images.

    Attributes:
        columns: the values that select its images, by column; empty for all images.
        count: number of images.
        metrics: the candidate's.
        champion_metrics: the champion's; None if there is no champion.
        differences: the candidate's values minus the champion's; empty if there is no champion.
        mcnemar: McNemar's test; None unless the task is a classification and there is a champion.
        p_values: of the paired tests, by metric; None for a p that is not a number.
        groups: number of groups of images; any number above ``groups.MAX_GROUPS`` for more than that.
        ungrouped: number of images that have no group.
    """

    columns: dict[str, str]
    count: int
    metrics: MetricValues
    champion_metrics: MetricValues | None
    differences: MetricValues
    mcnemar: McNemarResult | None
    p_values: dict[str, float | None] = field(default_factory=dict)
    groups: int = 0
    ungrouped: int = 0

    @property
    def counted(self) -> str:
        """The groups that intervals and paired tests count, such as ``40 groups``; '' if they count images."""
        if not self.groups:
            return ""
        number = f"more than {MAX_GROUPS:,}" if self.groups > MAX_GROUPS else f"{self.groups:,}"
        groups = f"{number} group{'s' if self.groups > 1 else ''}"
        images = f"{self.ungrouped:,} image{'s' if self.ungrouped > 1 else ''}"
        return f"{groups} and {images} without a group" if self.ungrouped else groups


@dataclass(frozen=True)
class CalibrationBucket:
    """The scores from ``low`` to ``high``: their number, their mean, and the share that was right."""

    low: float
    high: float
    count: int
    mean_score: float
    share_right: float


@dataclass(frozen=True)
class Curves:
    """A model's scores for one class or label at each threshold; lists of one length, thresholds ascending.

    Attributes:
        thresholds: a score above counts as yes.
        precision: share of the yes answers that are right; 1 if there is no yes.
        recall: share of the class's images that get a yes: the true positive rate of ROC.
        false_positive_rate: share of the other images that get a yes.
        f1: of precision and recall.
        auc: area under ROC, by trapezoids.
        average_precision: precision, weighted by the growth of recall.
        best_threshold: the threshold with the highest F1 on these images, which are the gate's: not one to use.
        calibration: the buckets that have images.
    """

    thresholds: list[float]
    precision: list[float]
    recall: list[float]
    false_positive_rate: list[float]
    f1: list[float]
    auc: float
    average_precision: float
    best_threshold: float
    calibration: list[CalibrationBucket]


@dataclass(frozen=True)
class Evaluation:
    """The results of the Evaluator.

    Attributes:
        slices: the whole split first, then by column and value.
        by_label: in a multilabel task, metrics of the labels that occur or were predicted; empty for other tasks.
        confusion: in a classification, counts by (actual class, predicted class); actual -1 is a label unknown to the
            model. Empty for other tasks.
        curves: of all images, by model (``candidate``, ``champion``) and index of the class in the output ``classes``.
            Empty for a regression, and for more classes than ``components.evaluator.tfma_curves.MAX_CLASSES``.
        confidence: calibration of the most probable class, by model. Empty for other tasks than classification.
        rules: the outcome of each rule of the gate.
        champion_note: why the champion was judged by its SavedModel though it has a form for OpenVINO; '' if it wasn't.
    """

    slices: list[Slice]
    by_label: dict[str, dict[str, float | None]]
    confusion: dict[tuple[int, int], int]
    curves: dict[str, dict[int, Curves]]
    confidence: dict[str, list[CalibrationBucket]]
    rules: list[RuleOutcome]
    champion_note: str = ""

    @property
    def whole(self) -> Slice:
        """All images."""
        return self.slices[0]

    @property
    def refusals(self) -> list[str]:
        """The reasons why the candidate is not blessed; it is blessed if there are none."""
        return [rule.because for rule in self.rules if rule.verdict == "refused"]

    @property
    def unchecked(self) -> str | None:
        """Why nothing spoke for or against the candidate, which is blessed then; None if a rule could be checked."""
        if any(rule.verdict != "skipped" for rule in self.rules):
            return None
        reasons = "; ".join(rule.because for rule in self.rules)
        return f"The gate checked nothing ({reasons}). evaluation.thresholds can demand something."
