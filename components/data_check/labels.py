"""Labels that are missing, several, can't name a class, are ids, that training lacks, or that few images have."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from components.data_check.findings import MAX_EXAMPLES, Finding, count_images, rate_split
from components.data_check.split import Split, take
from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.base.labels import describe_ids, find_fault, list_names

MAX_LABELS = 20
"""Maximum number of labels of a split with a finding each; one more finding counts the others."""


def check_labels(task: str, splits: Mapping[str, Split], feature: str, min_images: Mapping[str, int]) -> list[Finding]:
    """Finds images without a label or with several where the task has one, and labels that no model can learn.

    Args:
        task: of a regression, numbers that are missing, not finite or several are found.
        splits: by name.
        feature: name of the label's feature.
        min_images: minimum number of images per label, by split.
    """
    if task == "regression":
        return [*_find_missing(splits, feature, is_number), *_find_several(splits, feature, is_number)]
    counts = {
        name: {label: count for label, count in split.label_counts.items() if _is_name(label)}
        for name, split in splits.items()
    }
    if task == "multilabel":
        findings = _find_nameless(splits, feature)
    else:
        findings = [*_find_missing(splits, feature, _is_name), *_find_several(splits, feature, _is_name)]
    findings += _find_unusable(task, splits, counts, feature)
    if message := describe_ids(sum(len(split.ids) for split in splits.values()), counts.values()):
        return [*findings, Finding("error", "too_few_images", "", feature, f"'{feature}' {message}")]
    return [*findings, *_find_unseen(splits, counts, feature), *_find_rare(counts, feature, min_images)]


def _collect_ids(split: Split, labels: Collection[str]) -> dict[str, list[str]]:
    """Returns the ids of the first images of each of some labels, at most MAX_EXAMPLES."""
    indices: dict[str, list[int]] = {label: [] for label in labels}
    if indices:
        for index, own in enumerate(split.labels):
            for label in dict.fromkeys(own):
                if label in indices and len(indices[label]) < MAX_EXAMPLES:
                    indices[label].append(index)
    ids = take(split.ids, {index for some in indices.values() for index in some})
    return {label: [ids[index] for index in some] for label, some in indices.items()}


def _find_first(split: Split, is_faulty: Callable[[Sequence[str]], bool]) -> tuple[int, list[str]]:
    """Returns how many images have faulty labels, and the ids of the first of them, at most MAX_EXAMPLES."""
    count, first = 0, []
    for index, labels in enumerate(split.labels):
        if is_faulty(labels):
            count += 1
            if count <= MAX_EXAMPLES:
                first.append(index)
    return count, list(take(split.ids, first).values())


def _find_missing(splits: Mapping[str, Split], feature: str, is_label: Callable[[str], bool]) -> list[Finding]:
    findings = []
    for name, split in splits.items():
        count, ids = _find_first(split, lambda labels: not labels or not is_label(labels[0]))
        if count and any(split.labels):  # else the whole column is missing, which is reported already
            kind = "a number as label" if is_label is is_number else "a label"
            message = (
                f"{count_images(count)} in the split {name} without {kind} in '{feature}', such as "
                f"{list_names(ids, count)}. Label them, or leave them out of the TFRecords"
            )
            findings.append(_make_finding("missing_label", name, feature, message, ids))
    return findings


def _find_several(splits: Mapping[str, Split], feature: str, is_label: Callable[[str], bool]) -> list[Finding]:
    """Finds images with different labels where one is learned: Transform takes the first, whichever that is."""
    remedy = "one number" if is_label is is_number else "one of them, or set task: multilabel to learn them all"
    findings = []
    for name, split in splits.items():
        count, ids = _find_first(split, lambda labels: len(set(filter(is_label, labels))) > 1)
        if count:
            message = (
                f"{count_images(count)} in the split {name} with several labels in '{feature}', such as "
                f"{list_names(ids, count)}. Give each {remedy}"
            )
            findings.append(_make_finding("several_labels", name, feature, message, ids))
    return findings


def _find_nameless(splits: Mapping[str, Split], feature: str) -> list[Finding]:
    """Finds labels of nothing but blanks; an image of several labels may have none, but not one without a name."""
    findings = []
    for name, split in splits.items():
        count, ids = _find_first(split, lambda labels: not all(map(_is_name, labels)))
        if count:
            message = (
                f"{count_images(count)} in the split {name} with an empty label in '{feature}', such as "
                f"{list_names(ids, count)}. Correct or remove it"
            )
            findings.append(_make_finding("unusable_label", name, feature, message, ids))
    return findings


def _find_unusable(
    task: str, splits: Mapping[str, Split], counts: Mapping[str, Mapping[str, int]], feature: str
) -> list[Finding]:
    findings = []
    for name, by_label in counts.items():
        faults = {label: find_fault(label) for label in by_label}
        if task == "multilabel":  # whose answer joins labels
            faults |= {label: f"a {LABEL_SEPARATOR}" for label in by_label if LABEL_SEPARATOR in label}
        if unusable := sorted(label for label, fault in faults.items() if fault):
            listed = list_names([f"{label!r}, which holds {faults[label]}" for label in unusable])
            message = f"the split {name} has labels that can't name a class: {listed}. Correct or remove them"
            ids = _collect_ids(splits[name], unusable[:MAX_EXAMPLES])
            images = [image_id for some in ids.values() for image_id in some]
            findings.append(_make_finding("unusable_label", name, feature, message, images))
    return findings


def _find_unseen(splits: Mapping[str, Split], counts: Mapping[str, Mapping[str, int]], feature: str) -> list[Finding]:
    findings = []
    for name, by_label in counts.items():
        unseen = sorted(by_label.keys() - counts.get("train", {}).keys())
        for label, ids in _collect_ids(splits[name], unseen[:MAX_LABELS]).items():
            message = (
                f"the split {name} has {count_images(by_label[label])} of '{label}', and the training split none: "
                "no model can learn it. Add training images of it, or correct or remove the label"
            )
            findings.append(_make_finding("unseen_label", name, feature, message, ids))
        if more := unseen[MAX_LABELS:]:
            message = f"{len(more):,} more labels of the split {name} that the training split lacks: {list_names(more)}"
            findings.append(_make_finding("unseen_label", name, feature, message, []))
    return findings


def _find_rare(counts: Mapping[str, Mapping[str, int]], feature: str, min_images: Mapping[str, int]) -> list[Finding]:
    findings = []
    for name, minimum in min_images.items():
        if name not in counts:
            continue
        rare = sorted(label for label in counts.get("train", {}) if counts[name].get(label, 0) < minimum)
        for label in rare[:MAX_LABELS]:
            message = (
                f"'{label}' has {count_images(counts[name].get(label, 0))} in the split {name}, and at least {minimum} "
                f"are needed. Add images of it, remove it, or lower data.validation.min_images.{name}"
            )
            findings.append(Finding("error", "too_few_images", name, feature, message))
        if more := rare[MAX_LABELS:]:
            message = f"{len(more):,} more labels have fewer than {minimum} in the split {name}: {list_names(more)}"
            findings.append(Finding("error", "too_few_images", name, feature, message))
    return findings


def _make_finding(kind: str, split: str, feature: str, message: str, ids: list[str]) -> Finding:
    return Finding(rate_split(split), kind, split, feature, message, ids[:MAX_EXAMPLES])


def _is_name(label: str) -> bool:
    return not label.isspace() and label != ""


def is_number(label: str) -> bool:
    """Returns whether a text is a finite number."""
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
