"""What became of a rule of the gate. Imports nothing."""

from dataclasses import dataclass
from typing import Literal


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
