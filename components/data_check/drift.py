"""Drift and skew: how far columns have moved since the live model was trained, and how far splits are apart."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from google.protobuf.message import DecodeError
from tensorflow_metadata.proto.v0 import schema_pb2

from components.data_check.config import ValidationConfig
from components.data_check.findings import Finding, choose_severity
from components.data_check.tfdv_statistics import Distance, Statistics, count_examples, measure_distances
from imagepipe.base import filesystem

_TRAIN = "train"
_MEASURES = {
    "L_INFTY": "the share of a value differs by",
    "JENSEN_SHANNON_DIVERGENCE": "the Jensen-Shannon divergence is",
}


def check_drift(
    statistics: Statistics, baseline: str, schema: schema_pb2.Schema, config: ValidationConfig
) -> list[Finding]:
    """Compares the training split with the one that the live model was trained on.

    Args:
        statistics: statistics of the training split.
        baseline: file with the statistics that the live model was trained on, see ``driver.choose_baseline``; '' if
            there is none.
        schema: its thresholds override the configuration's.
        config: the ``data.validation`` section.
    """
    if not config.drift or not baseline:
        return []
    try:
        trained_on = Statistics.FromString(filesystem.read_bytes(baseline))
    except (OSError, DecodeError):  # rolled back meanwhile, or another program's
        return []
    distances = measure_distances(statistics, trained_on, schema, config.drift)
    version = PurePosixPath(baseline).parents[1].name
    return judge_distances(
        "drift", _TRAIN, distances, f"the training data of the live version {version}", config.stop_on
    )


def check_skew(
    statistics_by_split: Mapping[str, Statistics], schema: schema_pb2.Schema, config: ValidationConfig
) -> list[Finding]:
    """Compares the other splits with the training split."""
    if not config.skew:
        return []
    findings = []
    for name, statistics in statistics_by_split.items():
        if name != _TRAIN and count_examples(statistics):
            distances = measure_distances(statistics, statistics_by_split[_TRAIN], schema, config.skew)
            findings += judge_distances("skew", name, distances, "the training split", config.stop_on)
    return findings


def judge_distances(
    kind: Literal["drift", "skew"],
    split: str,
    distances: Sequence[Distance],
    reference: str,
    stop_on: Sequence[str],
) -> list[Finding]:
    """Returns a finding for each column that is further from the reference than it may be."""
    return [
        Finding(
            choose_severity(kind, stop_on),
            kind,
            split,
            distance.feature,
            f"'{distance.feature}' in the split {split} differs from {reference}: {_MEASURES[distance.measure]} "
            f"{distance.value:.2f}, and {distance.allowed:.2f} is allowed (data.validation.{kind})",
        )
        for distance in distances
        if distance.value > distance.allowed
    ]
