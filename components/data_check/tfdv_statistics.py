"""TFDV's statistics: as plain numbers, and compared with each other."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from components.tfdv import tfdv

_TINY = 1e-6  # a threshold that TFDV always exceeds, so that it reports what it measures

Statistics: TypeAlias = statistics_pb2.DatasetFeatureStatisticsList


@dataclass(frozen=True)
class Distance:
    """How far a column is from what it is compared with.

    Attributes:
        feature: name of the column.
        measure: L_INFTY or JENSEN_SHANNON_DIVERGENCE.
        value: the distance, 0 to 1.
        allowed: maximum distance that is allowed.
    """

    feature: str
    measure: str
    value: float
    allowed: float


def count_examples(statistics: Statistics) -> int:
    """Returns the number of Examples."""
    return int(statistics.datasets[0].num_examples)


def summarize_columns(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """Summarizes each column, for JSON.

    Returns:
        By name ``present`` and ``missing``, numbers of Examples; of numbers ``min``, ``mean``, ``max``, ``std``, each
        None if it is not finite, and a ``histogram`` of those that are, rows of (low, high, count); of text ``unique``
        and the most frequent ``values``, rows of (value, count), at most 100.
    """
    summary = {}
    for feature in statistics.datasets[0].features:
        kind = feature.WhichOneof("stats")
        common = getattr(feature, kind).common_stats
        column: dict[str, Any] = {"present": common.num_non_missing, "missing": common.num_missing}
        if kind == "num_stats":
            numbers = feature.num_stats
            plain = [h for h in numbers.histograms if h.type == statistics_pb2.Histogram.STANDARD]
            column |= {"min": numbers.min, "mean": numbers.mean, "max": numbers.max, "std": numbers.std_dev}
            buckets = [(b.low_value, b.high_value, b.sample_count) for h in plain for b in h.buckets]
            column["histogram"] = [bucket for bucket in buckets if all(map(math.isfinite, bucket))]
        elif kind in ("string_stats", "bytes_stats"):
            texts = getattr(feature, kind)
            column["unique"] = texts.unique
            column["values"] = (
                [(b.label, b.sample_count) for b in texts.rank_histogram.buckets[:100]]
                if kind == "string_stats"
                else []
            )
        # JSON has no infinity and no NaN.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in column.items()}
        summary["/".join(feature.path.step) or feature.name] = finite
    return summary


def measure_distances(
    statistics: Statistics, reference: Statistics, schema: schema_pb2.Schema, threshold: float
) -> list[Distance]:
    """Measures TFDV's distances of the columns that both have, the furthest beyond what is allowed first.

    Args:
        statistics: statistics of what is judged.
        reference: statistics of what it is compared with.
        schema: its ``skew_comparator`` thresholds, if it has any, override ``threshold``.
        threshold: maximum distance; what chance gives two samples of their sizes, about sqrt(1/n + 1/m), is allowed on
            top.
    """
    curated = {feature.name: feature.skew_comparator for feature in schema.feature}
    chance = math.sqrt(1 / max(count_examples(statistics), 1) + 1 / max(count_examples(reference), 1))
    common = set(summarize_columns(statistics)) & set(summarize_columns(reference))
    compared = tfdv.infer_schema(statistics)
    for feature in list(compared.feature):
        if feature.name not in common:
            compared.feature.remove(feature)
        elif feature.type == schema_pb2.BYTES:
            feature.skew_comparator.infinity_norm.threshold = _TINY
        else:
            feature.skew_comparator.jensen_shannon_divergence.threshold = _TINY
    distances = []
    for info in tfdv.validate_statistics(statistics, compared, serving_statistics=reference).drift_skew_info:
        (name,) = info.path.step
        comparator = curated.get(name)
        own = comparator and (comparator.infinity_norm.threshold or comparator.jensen_shannon_divergence.threshold)
        for measured in info.skew_measurements:
            measure = type(measured).Type.Name(measured.type)
            distances.append(Distance(name, measure, measured.value, (own or threshold) + chance))
    return sorted(distances, key=lambda distance: distance.value - distance.allowed, reverse=True)
