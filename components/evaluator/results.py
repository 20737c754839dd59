"""What the Evaluator found, as plain data: figures with intervals, slices, curves. Imports neither TFX nor TFMA."""

from dataclasses import dataclass, field
from typing import Literal

CANDIDATE, CHAMPION = "candidate", "champion"
COUNT = "example_count"


@dataclass(frozen=True)
class Outcome:
    """A rule, and the figures that decided it; None for what there is none of, or is not a number.

    Attributes:
        metric: the metric that it is about.
        slice: the images that it is about, by column and value; empty for all.
        kind: what is demanded.
        bound: the least, the most, or by how much the candidate may be behind the champion.
        relative: whether that is a share of the champion's figure.
        significance: what is worse is refused only if ``p`` is below this; None for a rule without a test.
        value: the candidate's figure.
        interval: the ends of its 95 % confidence interval.
        champion: the champion's figure.
        difference: the candidate's less the champion's.
        difference_interval: the ends of its 95 % confidence interval.
        p: of a rule with a test: two-sided probability of such a difference between models that are equally good.
        verdict: ``skipped`` if there is no champion to compare with.
        because: the same in words.
    """

    metric: str
    slice: dict[str, str]
    kind: Literal["min", "max", "not_worse_than_champion"]
    bound: float
    relative: bool
    significance: float | None
    value: float | None
    interval: tuple[float, float] | None
    champion: float | None
    difference: float | None
    difference_interval: tuple[float, float] | None
    p: float | None
    verdict: Literal["passed", "refused", "skipped"]
    because: str


@dataclass(frozen=True)
class Figure:
    """A metric's value, None if it is not a number; the ends of its 95 % confidence interval, None if it has none.

    The value is TFMA's. So are the ends, but within what the metric can be: TFMA takes Student's t, which knows no
    bounds, and of an accuracy near 1 would say that it may be 1.01.
    """

    value: float | None
    interval: tuple[float, float] | None = None


Figures = dict[str, Figure]


@dataclass(frozen=True)
class Paired:
    """McNemar's test of two classifiers, see ``significance.Pairs``: images that only one has right, and its p."""

    only_candidate: int
    only_champion: int
    p: float


@dataclass(frozen=True)
class Slice:
    """Some of the images.

    Attributes:
        columns: which: their values by column; empty for all images.
        count: how many they are.
        metrics: of the candidate.
        champion: of the champion; None if there is none.
        differences: the candidate's figures less the champion's; empty if there is none.
        paired: of two classifiers.
        p_values: of the paired tests that were made, by metric; None for what is not a number.
    """

    columns: dict[str, str]
    count: int
    metrics: Figures
    champion: Figures | None
    differences: Figures
    paired: Paired | None
    p_values: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Bucket:
    """Calibration: of the scores from ``low`` to ``high`` their number, their mean, and the share that was right."""

    low: float
    high: float
    count: int
    said: float
    right: float


@dataclass(frozen=True)
class Curves:
    """What a model's scores of one class or label say at each threshold; lists of one length, thresholds ascending.

    Attributes:
        thresholds: a score above counts as yes.
        precision: the share of yes that is right; 1 where none is said.
        recall: the share of the class's images that are found: of ROC the true positive rate.
        false_positive_rate: the share of the other images that are taken for the class.
        f1: of precision and recall.
        auc: area under ROC, by trapezoids.
        average_precision: precision, weighted by the growth of recall.
        best_threshold: where F1 is highest.
        calibration: those buckets that have images.
    """

    thresholds: list[float]
    precision: list[float]
    recall: list[float]
    false_positive_rate: list[float]
    f1: list[float]
    auc: float
    average_precision: float
    best_threshold: float
    calibration: list[Bucket]


@dataclass(frozen=True)
class Evaluation:
    """What the Evaluator found.

    Attributes:
        slices: the whole split first, then by column and value.
        by_label: of several labels those that occur or are said, each with its figures; empty for other tasks.
        confusion: of a classification, counts by (actual class, predicted class); actual -1 is a label unknown to the
            model. Empty for other tasks.
        curves: of all images, by model (``candidate``, ``champion``) and place of the class in the output ``classes``.
            Empty for a regression, and for more classes than ``components.evaluator.tfma_curves.MOST_CLASSES``.
        confidence: calibration of the most probable class, by model. Empty for other tasks.
        rules: what became of each.
    """

    slices: list[Slice]
    by_label: dict[str, dict[str, float | None]]
    confusion: dict[tuple[int, int], int]
    curves: dict[str, dict[int, Curves]]
    confidence: dict[str, list[Bucket]]
    rules: list[Outcome]

    @property
    def whole(self) -> Slice:
        """All images."""
        return self.slices[0]
