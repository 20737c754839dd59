"""Labels that training lacks, and classes with too few images."""

from collections import Counter
from collections.abc import Mapping

from components.data_check.findings import MAX_EXAMPLES, Finding, Severity, count_images
from components.data_check.split import Split


def check_labels(task: str, splits: Mapping[str, Split], feature: str, min_images: Mapping[str, int]) -> list[Finding]:
    """Finds labels that the training split lacks, and labels with fewer images than a split needs.

    Args:
        task: a regression has no labels to check.
        splits: by name.
        feature: name of the label's feature.
        min_images: minimum number of images per label, by split.
    """
    if task == "regression":
        return []
    counts = {name: _count_labels(split) for name, split in splits.items()}
    trained = counts.get("train", Counter())
    findings = []
    for name, split in splits.items():
        for label in sorted(set(counts[name]) - set(trained)):
            ids = [image_id for image_id, labels in zip(split.ids, split.labels, strict=True) if label in labels]
            message = (
                f"the split {name} has {count_images(counts[name][label])} of '{label}', and the training split none: "
                "no model can learn it. Add training images of it, or correct or remove the label"
            )
            severity: Severity = "error" if name == "eval" else "warning"
            findings.append(Finding(severity, "unseen_label", name, feature, message, ids[:MAX_EXAMPLES]))
    for name, minimum in min_images.items():
        if name not in splits:
            continue
        for label in sorted(trained):
            count = counts[name][label]
            if count < minimum:
                message = (
                    f"'{label}' has {count_images(count)} in the split {name}, and at least {minimum} are needed. Add "
                    f"images of it, remove it, or lower data.validation.min_images.{name}"
                )
                findings.append(Finding("error", "too_few_images", name, feature, message))
    return findings


def _count_labels(split: Split) -> Counter[str]:
    """Counts the images of each label; a label that an image has twice counts once."""
    return Counter(label for labels in split.labels for label in dict.fromkeys(labels))
