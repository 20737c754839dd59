"""What a check of a model found. Imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """What became of the check.

    Attributes:
        problems: why the model can't be served, in words; empty if it can.
        images: that were asked about, in each format.
        refusals: bad requests that were refused as they should be.
        median_ms: latency of a request of one image, in milliseconds; None if it wasn't measured.
        p95_ms: the same, 95th percentile.
    """

    problems: list[str]
    images: int = 0
    refusals: int = 0
    median_ms: float | None = None
    p95_ms: float | None = None
