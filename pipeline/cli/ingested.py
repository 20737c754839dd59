"""Tables and JSON of the content of a dataset, after an ingest."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from imagepipe.base.console import quote
from imagepipe.base.labels import sum_counts
from imagepipe.base.progress import print_note
from pipeline.cli.shared import ERR

if TYPE_CHECKING:
    from imagepipe.ingest.dataset import Dataset
    from imagepipe.ingest.outcomes import IngestResult

_MAX_ROWS = 20  # of a table
_MEASURED = "measured"
_ROLES = {
    "input": "the image",
    "metadata": "identifier of the image",
    "label": "target",
    "group": "group, never in two splits",
}


def describe_dataset(description: "Dataset") -> dict[str, Any]:
    """Returns the number of images by split and label, and type and role of each feature, for JSON."""
    from imagepipe.ingest.dataset import list_features

    own = list_features(description.options.task, has_groups=True)
    return {
        "splits": {
            name: {"images": split.records, "labels": split.labels} for name, split in description.splits.items()
        },
        "columns": {
            name: {"type": type_, "role": _ROLES.get(name, _MEASURED if name in own else "side feature")}
            for name, type_ in description.features.items()
        },
    }


def print_ingested(result: "IngestResult", out: str) -> None:
    """Prints to stderr what the dataset in ``out`` holds, and what to look at."""
    described = describe_dataset(result.dataset)
    ERR.print(_tabulate_splits(described["splits"]))
    ERR.print(_tabulate_columns(described["columns"]))
    if result.reasons:
        ERR.print(_tabulate_reasons(result.reasons))
    for note in result.notes:
        print_note(note)
    if result.overview:
        ERR.print(quote(f"A picture of the dataset: {result.overview}"))
    for warning in result.warnings:
        ERR.print(f"[yellow]{quote(warning)}[/]")
    if result.quarantined:
        ERR.print(f"Quarantined files, with reasons: {quote(out)}/quarantine.jsonl")


def _tabulate_splits(splits: dict[str, Any]) -> Table:
    """Returns the number of images by label and split, those of the most frequent labels first."""
    table = Table("label", *splits, "all", box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    totals = sum_counts(split["labels"] for split in splits.values())
    ranked = sorted(totals, key=lambda label: (-totals[label], label))
    for label in ranked[:_MAX_ROWS]:
        counts = [split["labels"].get(label, 0) for split in splits.values()]
        table.add_row(quote(label), *(f"{count:,}" for count in (*counts, totals[label])))
    if len(ranked) > _MAX_ROWS:
        table.add_row(f"… and {len(ranked) - _MAX_ROWS:,} more")
    images = [split["images"] for split in splits.values()]
    table.add_row("[bold]images[/]", *(f"{count:,}" for count in (*images, sum(images))))
    return table


def _tabulate_columns(columns: dict[str, Any]) -> Table:
    """Returns type and role of the features; of the measured ones, which are always the same, the names."""
    table = Table("column", "type", "role", box=box.SIMPLE_HEAD)
    told = [name for name, column in columns.items() if column["role"] != _MEASURED]
    for name in told[:_MAX_ROWS]:
        table.add_row(quote(name), columns[name]["type"], columns[name]["role"])
    if len(told) > _MAX_ROWS:
        table.add_row(f"… and {len(told) - _MAX_ROWS:,} more")
    table.add_row(", ".join(name for name in columns if name not in told), "", _MEASURED)
    return table


def _tabulate_reasons(reasons: Mapping[str, int]) -> Table:
    """Returns the number of quarantined rows by reason."""
    table = Table("quarantined, as", "rows", box=box.SIMPLE_HEAD)
    ranked = sorted(reasons.items(), key=lambda reason: (-reason[1], reason[0]))
    for reason, count in ranked[:_MAX_ROWS]:
        table.add_row(quote(reason), f"{count:,}")
    if len(ranked) > _MAX_ROWS:
        table.add_row(f"… and {len(ranked) - _MAX_ROWS:,} more")
    return table
