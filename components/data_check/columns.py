"""Columns that are missing or have too many values, and images that can't be decoded."""

from collections.abc import Mapping, Sequence

from tfx import types

from components.data_check.findings import MAX_EXAMPLES, Finding, count_images, rate_split
from components.data_check.split import MAX_SLICES, Split, take
from components.data_check.tfdv_statistics import Statistics, count_examples, summarize_columns
from components.example_gen.left_out import describe_left_out, read_left_out
from imagepipe.base.labels import describe_unknown, find_fault, list_names


def find_missing_columns(statistics_by_split: Mapping[str, Statistics], needed: Sequence[str]) -> list[Finding]:
    """Finds columns that the model needs and a split lacks entirely."""
    findings = []
    for name, statistics in statistics_by_split.items():
        columns, count = summarize_columns(statistics), count_examples(statistics)
        for feature in needed:
            missing = columns.get(feature, {}).get("missing", count)
            if count and missing == count:
                message = (
                    f"no image of the split {name} has the column '{feature}', which the model needs. Add it, or "
                    "remove it from data.features"
                )
                findings.append(Finding(rate_split(name), "missing_column", name, feature, message))
    return findings


def find_faulty_values(splits: Mapping[str, Split]) -> list[Finding]:
    """Finds values of categorical columns that no vocabulary can hold, and no request can ask for."""
    findings = []
    for name, split in splits.items():
        for feature, values in ((feature, values) for feature, values in split.faulty.items() if values):
            listed = list_names([f"{value!r}, which holds {find_fault(value)}" for value in sorted(values)])
            message = (
                f"{count_images(values.total())} in the split {name} with values of '{feature}' that can't be "
                f"categories: {listed}. Correct them, or remove the column from data.features.categorical"
            )
            findings.append(Finding("error", "faulty_value", name, feature, message))
    return findings


def check_slices(name: str, slices: Mapping[tuple[str, ...], set[tuple[str, ...]]]) -> list[Finding]:
    """Finds columns with more values than the evaluation can slice by, such as one with an id per image."""
    findings = []
    for columns, values in slices.items():
        if len(values) > MAX_SLICES:
            names = "' and '".join(columns)
            examples = ", ".join(" and ".join(combination) for combination in sorted(values)[:3])
            message = (
                f"the split {name} has more than {MAX_SLICES} values of '{names}', such as "
                f"{examples}, and evaluation.slices or evaluation.rules want a slice for each: so few images per slice "
                "say little. Slice by a column that groups the images, or remove this one"
            )
            findings.append(Finding("error", "too_many_slices", name, columns[0], message))
    return findings


def find_unknown_values(
    splits: Mapping[str, Split], demands: Sequence[tuple[str, str, Sequence[str], str]], label: str
) -> list[Finding]:
    """Finds names in the configuration that the data lacks: classes, and values of columns to slice by.

    Args:
        splits: by name.
        demands: key of the configuration, column, values and split that must have them.
        label: name of the label's feature.
    """
    findings = []
    for key, column, names, split in demands:
        values = _collect_values(splits[split], column, label)
        kind = "labels" if column == label else f"values of '{column}'"
        if values is not None and (message := describe_unknown(names, values, f"{kind} of the split {split}")):
            findings.append(Finding("error", "unknown_value", split, column, f"{key}: {message}"))
    return findings


def _collect_values(split: Split, column: str, label: str) -> set[str] | None:
    """Returns the values that a column has in a split, None if they are not known or too many to slice by."""
    if column == label:
        return set(split.label_counts)
    for columns, combinations in split.slices.items():
        if column in columns and len(combinations) <= MAX_SLICES:
            return {values[columns.index(column)] for values in combinations}
    return None


def find_left_out(examples: list[types.Artifact]) -> list[Finding]:
    """Finds out which records ImportExampleGen has left out."""
    left_out = read_left_out(examples)
    if not left_out:
        return []
    return [
        Finding(
            "warning", "left_out", "", "", describe_left_out(left_out), [line["id"] for line in left_out[:MAX_EXAMPLES]]
        )
    ]


def find_unreadable_images(splits: Mapping[str, Split]) -> list[Finding]:
    """Finds images that are missing or can't be decoded."""
    findings = []
    for name, split in splits.items():
        if count := len(split.unreadable):
            ids = list(take(split.ids, split.unreadable[:MAX_EXAMPLES].tolist()).values())
            message = f"{count_images(count)} in the split {name} that can't be decoded: {list_names(ids, count)}"
            findings.append(Finding("warning", "unreadable", name, "", message, ids))
    return findings
