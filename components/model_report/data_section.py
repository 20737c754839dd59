"""Section of the report about the data: DataCheck's findings with pictures, labels and columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from components.model_report import pictures
from imagepipe.base.features import Features

_MAX_SUSPECTS, _MAX_GROUPS = 24, 12  # label-error candidates and groups of near-duplicates with pictures
_MAX_IN_GROUP = 4  # images of such a group
_MAX_FINDINGS, _MAX_LABELS = 100, 200
_MAX_EXAMPLES = 50_000  # of a split, to look through for pictures
_MAX_BARS = 24
_SIDE = 96  # pixels of the longer side of a picture


def describe_data(
    findings: Mapping[str, Any], statistics: Mapping[str, Any], splits: Mapping[str, str], features: Features
) -> dict[str, Any]:
    """Returns the section as data for the template.

    Args:
        findings: content of DataCheck's findings.json.
        statistics: content of its statistics.json.
        splits: folders of the splits of the Examples, by name.
        features: names of an Example's features.
    """
    suspects = findings.get("label_errors", [])[:_MAX_SUSPECTS]
    groups = findings.get("near_duplicates", [])[:_MAX_GROUPS]
    shown = [*suspects, *(image for group in groups for image in group[:_MAX_IN_GROUP])]
    urls = _load_pictures(shown, splits, features)
    labels = _count_labels(statistics)

    def add_picture(image: dict[str, Any]) -> dict[str, Any]:
        return image | {"image": urls.get((image["split"], image["id"]))}

    return {
        "findings": findings.get("findings", [])[:_MAX_FINDINGS],
        "findings_left": max(0, len(findings.get("findings", [])) - _MAX_FINDINGS),
        "suspects": [add_picture(image) for image in suspects],
        "suspects_all": len(findings.get("label_errors", [])),
        "groups": [
            {
                "images": [add_picture(image) for image in group[:_MAX_IN_GROUP]],
                "left": max(0, len(group) - _MAX_IN_GROUP),
            }
            for group in groups
        ],
        "groups_all": len(findings.get("near_duplicates", [])),
        "not_listed": _describe_not_listed(findings.get("not_listed", {})),
        "splits": {name: split["count"] for name, split in statistics.items()},
        "labels": labels[:_MAX_LABELS],
        "labels_left": max(0, len(labels) - _MAX_LABELS),
        "columns": _list_columns(statistics),
    }


def _describe_not_listed(counts: Mapping[str, int]) -> str:
    """Returns how many images and groups are not among the findings, as a sentence; "" if all are."""
    images, groups = counts.get("label_errors", 0), counts.get("near_duplicates", 0)
    parts = [f"{images:,} that look more like another class"] if images else []
    parts += [f"{groups:,} groups of near-duplicates"] if groups else []
    return f"Not listed, as a person has decided on the images: {' and '.join(parts)}." if parts else ""


def _load_pictures(
    shown: Sequence[Mapping[str, Any]], splits: Mapping[str, str], features: Features
) -> dict[tuple[str, str], str]:
    """Returns the URLs of pictures by (split, identifier)."""
    ids: dict[str, set[str]] = {}
    for image in shown:
        ids.setdefault(image["split"], set()).add(image["id"])
    urls = {}
    for split in ids.keys() & splits.keys():
        for key, data in pictures.find_images(splits[split], features, ids[split], _MAX_EXAMPLES).items():
            if picture := pictures.decode_picture(data, _SIDE):
                urls[split, key] = pictures.format_data_url(picture)
    return urls


def _count_labels(statistics: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    """Returns (label, number of images in each split)."""
    names = sorted({label for split in statistics.values() for label in split["labels"]})
    return [(name, [split["labels"].get(name, 0) for split in statistics.values()]) for name in names]


def _list_columns(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = []
    for split, split_statistics in statistics.items():
        for name, column in split_statistics["columns"].items():
            bars = _draw_bars(column.get("histogram") or [])
            columns.append({"split": split, "name": name, "statistics": column, "bars": bars})
    return sorted(columns, key=lambda column: column["name"])


def _draw_bars(histogram: Sequence[Any]) -> list[tuple[float, float]]:
    """Returns (x, height) of the bars of a histogram, heights 0 to 20."""
    counts = [count for _, _, count in histogram[:_MAX_BARS]]
    highest = max(counts, default=0)
    return [(i * 5.0, round(20 * count / highest, 1)) for i, count in enumerate(counts)] if highest else []
