"""The schema that a person curates: made from the statistics, and read back."""

from collections.abc import Iterable, Mapping
from typing import Any

from tensorflow_metadata.proto.v0 import schema_pb2

from components.data_check.tfdv_statistics import Statistics, summarize_columns

_MIN_IMAGES = "min_images."


def freeze_ranges(
    schema: schema_pb2.Schema, statistics: Iterable[Statistics], label: str, min_images: Mapping[str, int]
) -> schema_pb2.Schema:
    """Returns a schema for a person to curate: with the observed values and ranges, and the minima of a class.

    Args:
        schema: as inferred.
        statistics: one per split: ranges and labels are those of all splits together.
        label: name of the label's feature, whose annotation gets a tag such as ``min_images.train=10`` per split.
        min_images: minimum number of images of a class, by split.
    """
    frozen = schema_pb2.Schema()
    frozen.CopyFrom(schema)
    splits = list(statistics)
    summaries = [summarize_columns(split) for split in splits]
    for feature in frozen.feature:
        bounds: list[Any] = [
            bound
            for columns in summaries
            if columns.get(feature.name, {}).get("present")
            for bound in (columns[feature.name].get("min"), columns[feature.name].get("max"))
        ]
        # Of text there are none, and of numbers some of which are infinite not both.
        if bounds and None not in bounds and feature.WhichOneof("domain_info") is None:
            domain = feature.int_domain if feature.type == schema_pb2.INT else feature.float_domain
            kind = int if feature.type == schema_pb2.INT else float
            domain.min, domain.max = kind(min(bounds)), kind(max(bounds))
        if feature.name == label and feature.type == schema_pb2.BYTES and feature.WhichOneof("domain_info") != "domain":
            # TFDV takes names such as 7 for numbers; it is a class like any other.
            feature.string_domain.CopyFrom(schema_pb2.StringDomain(name=label, value=_list_values(splits, label)))
        if feature.name == label and not read_min_images(frozen, label):
            feature.annotation.tag.extend(f"{_MIN_IMAGES}{split}={minimum}" for split, minimum in min_images.items())
    return frozen


def read_min_images(schema: schema_pb2.Schema, label: str) -> dict[str, int]:
    """Returns the minimum number of images of a class, by split, that a schema's tags demand; see ``freeze_ranges``.

    Raises:
        ValueError: if a tag has no number.
    """
    tags = [tag for feature in schema.feature if feature.name == label for tag in feature.annotation.tag]
    minima = (tag.removeprefix(_MIN_IMAGES).partition("=") for tag in tags if tag.startswith(_MIN_IMAGES))
    return {split.strip(): int(minimum) for split, _, minimum in minima}


def _list_values(statistics: Iterable[Statistics], name: str) -> list[str]:
    """Returns the values of a text column, sorted; TFDV counts at most 1,000."""
    values = {
        bucket.label
        for split in statistics
        for feature in split.datasets[0].features
        if feature.path.step == [name]
        for bucket in feature.string_stats.rank_histogram.buckets
    }
    return sorted(values)
