"""TFDV's statistics: in plain numbers, compared, and as ranges of a schema."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2

from components.tfdv import tfdv

FILENAME = "FeatureStats.pb"  # TFX's, in the folder of a split

_MIN_IMAGES = "min_images."
_SMALL = 1e-6  # a threshold that TFDV always exceeds, so that it reports what it measures

Statistics: TypeAlias = statistics_pb2.DatasetFeatureStatisticsList


@dataclass(frozen=True)
class Distance:
    """How far a column is from what it is compared with.

    Attributes:
        feature: its name.
        measure: L_INFTY or JENSEN_SHANNON_DIVERGENCE.
        value: the distance, 0 to 1.
        allowed: what it may be.
    """

    feature: str
    measure: str
    value: float
    allowed: float


def columns(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """What is known of each column.

    Returns:
        By name ``present`` and ``missing``, numbers of Examples; of numbers ``min``, ``mean``, ``max``, ``std`` and a
        ``histogram``, rows of (low, high, count); of texts ``unique`` and the most frequent ``values``, rows of (value,
        count), at most 100.
    """
    found = {}
    for feature in statistics.datasets[0].features:
        kind = feature.WhichOneof("stats")
        common = getattr(feature, kind).common_stats
        column: dict[str, Any] = {"present": common.num_non_missing, "missing": common.num_missing}
        if kind == "num_stats":
            numbers = feature.num_stats
            plain = [h for h in numbers.histograms if h.type == statistics_pb2.Histogram.STANDARD]
            column |= {"min": numbers.min, "mean": numbers.mean, "max": numbers.max, "std": numbers.std_dev}
            column["histogram"] = [(b.low_value, b.high_value, b.sample_count) for h in plain for b in h.buckets]
        elif kind in ("string_stats", "bytes_stats"):
            texts = getattr(feature, kind)
            column["unique"] = texts.unique
            column["values"] = (
                [(b.label, b.sample_count) for b in texts.rank_histogram.buckets[:100]]
                if kind == "string_stats"
                else []
            )
        found["/".join(feature.path.step) or feature.name] = _finite(column)
    return found


def _finite(column: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in column.items()}


def count(statistics: Statistics) -> int:
    """Number of Examples."""
    return int(statistics.datasets[0].num_examples)


def distances(statistics: Statistics, other: Statistics, schema: schema_pb2.Schema, threshold: float) -> list[Distance]:
    """TFDV's distances of the columns that both have.

    Args:
        statistics: of what is to be judged.
        other: of what it is compared with.
        schema: whose own ``skew_comparator`` thresholds, where it has any, go over ``threshold``.
        threshold: what chance gives two samples of their sizes, about sqrt(1/n + 1/m), is allowed on top.
    """
    curated = {feature.name: feature.skew_comparator for feature in schema.feature}
    chance = math.sqrt(1 / max(count(statistics), 1) + 1 / max(count(other), 1))
    both = set(columns(statistics)) & set(columns(other))
    compared = tfdv.infer_schema(statistics)
    for feature in list(compared.feature):
        if feature.name not in both:
            compared.feature.remove(feature)
        elif feature.type == schema_pb2.BYTES:
            feature.skew_comparator.infinity_norm.threshold = _SMALL
        else:
            feature.skew_comparator.jensen_shannon_divergence.threshold = _SMALL
    found = []
    for info in tfdv.validate_statistics(statistics, compared, serving_statistics=other).drift_skew_info:
        (name,) = info.path.step
        own = curated.get(name)
        demanded = own and (own.infinity_norm.threshold or own.jensen_shannon_divergence.threshold)
        for measured in info.skew_measurements:
            measure = type(measured).Type.Name(measured.type)
            found.append(Distance(name, measure, measured.value, (demanded or threshold) + chance))
    return sorted(found, key=lambda distance: distance.value - distance.allowed, reverse=True)


def frozen(
    schema: schema_pb2.Schema, statistics: Iterable[Statistics], label: str, min_images: Mapping[str, int]
) -> schema_pb2.Schema:
    """A schema to be curated: with the values and ranges that were seen, and what a class has to have.

    Args:
        schema: as inferred.
        statistics: of the splits: ranges and labels are those of all of them.
        label: the label's feature, whose annotation gets a tag such as ``min_images.train=10`` a split.
        min_images: by split.
    """
    made = schema_pb2.Schema()
    made.CopyFrom(schema)
    given = list(statistics)
    seen = [columns(each) for each in given]
    for feature in made.feature:
        bounds = [
            (split[feature.name]["min"], split[feature.name]["max"])
            for split in seen
            if split.get(feature.name, {}).get("min") is not None and split[feature.name]["present"]
        ]
        if bounds and feature.WhichOneof("domain_info") is None:
            domain = feature.int_domain if feature.type == schema_pb2.INT else feature.float_domain
            kind = int if feature.type == schema_pb2.INT else float
            domain.min, domain.max = kind(min(low for low, _ in bounds)), kind(max(high for _, high in bounds))
        if feature.name == label and feature.type == schema_pb2.BYTES and feature.WhichOneof("domain_info") != "domain":
            # TFDV takes names such as 7 for numbers; it is a class like any other.
            feature.string_domain.CopyFrom(schema_pb2.StringDomain(name=label, value=_texts(given, label)))
        if feature.name == label and not minima(made, label):
            feature.annotation.tag.extend(f"{_MIN_IMAGES}{split}={least}" for split, least in min_images.items())
    return made


def _texts(statistics: list[Statistics], name: str) -> list[str]:
    """The values of a column of texts, sorted; TFDV counts at most 1,000."""
    found = {
        bucket.label
        for split in statistics
        for feature in split.datasets[0].features
        if feature.path.step == [name]
        for bucket in feature.string_stats.rank_histogram.buckets
    }
    return sorted(found)


def minima(schema: schema_pb2.Schema, label: str) -> dict[str, int]:
    """The fewest images of a class, by split, that a schema's tags demand; see ``frozen``.

    Raises:
        ValueError: if a tag has no number.
    """
    tags = [tag for feature in schema.feature if feature.name == label for tag in feature.annotation.tag]
    named = (tag.removeprefix(_MIN_IMAGES).partition("=") for tag in tags if tag.startswith(_MIN_IMAGES))
    return {split.strip(): int(least) for split, _, least in named}
