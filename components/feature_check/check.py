"""Looks at the data through its features: wrong labels, copies, and images that are unlike all others."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from components.data_check.config import ValidationConfig
from components.data_check.decided import list_undecided
from components.data_check.findings import MAX_EXAMPLES, Finding
from components.data_check.label_errors import describe_label_errors, find_label_errors
from components.data_check.near_duplicates import describe_near_duplicates, find_near_duplicates, group_copies
from components.data_check.split import ImageRef, Split, identify_images
from components.feature_check.neighbours import confirm_copies, find_neighbours, find_outliers, list_candidates
from trainer.feature_file import MAX_IMAGES
from trainer.linear_probe import predict_out_of_fold

REPLACED = ("near_duplicates", "label_errors")
"""Kinds of DataCheck's findings that are found better here."""

_MAX_PAIRS = 2**18  # whose thumbnails are compared
_NAMED = 3  # outliers in the message

ReadThumbnails = Callable[[Mapping[str, Collection[int]]], Callable[[ImageRef], np.ndarray | None]]


def check_features(
    splits: Mapping[str, Split],
    images: Sequence[ImageRef],
    features: np.ndarray,
    read_thumbnails: ReadThumbnails,
    task: str,
    config: ValidationConfig,
    decided: Collection[ImageRef] = (),
) -> tuple[list[Finding], dict[str, Any]]:
    """Finds near-duplicates, outliers and, in a classification, label errors.

    Args:
        splits: by name; gets the features as descriptors.
        images: those that have features.
        features: float16 ``[n, d]``.
        read_thumbnails: see ``find_near_duplicates``.
        task: classification, multilabel or regression.
        config: which findings stop the run, and how many label errors are listed.
        decided: images on whose labels a person has decided; they are not listed.

    Returns:
        The findings; and ``near_duplicates``, ``label_errors`` and ``not_listed``, as in DataCheck's findings.
    """
    copies, bits = find_near_duplicates(splits, read_thumbnails)
    total = sum(len(split.ids) for split in splits.values())
    findings = _describe_sample(len(images), total)
    if len(images) > 1:
        positions, similarities = find_neighbours(features)
        pairs = list_candidates(positions, similarities, _MAX_PAIRS)
        thumbnails = _read_thumbnails(images, pairs, read_thumbnails)
        copies = group_copies(
            splits, [*copies, *([images[one], images[other]] for one, other in confirm_copies(thumbnails, pairs))]
        )
        findings += _describe_outliers(splits, [images[position] for position in find_outliers(similarities)])
    undecided = list_undecided(copies, decided)
    not_listed = {"near_duplicates": len(copies) - len(undecided), "label_errors": 0}
    findings += describe_near_duplicates(splits, undecided, config.stop_on, bits, not_listed["near_duplicates"])
    label_errors: list[dict[str, Any]] = []
    if task == "classification" and config.label_errors:
        for (name, index), row in zip(images, features, strict=True):
            splits[name].descriptors[index] = row
        errors = find_label_errors(splits, copies, config.label_errors, predict_twice, decided)
        findings += describe_label_errors(errors, total)
        label_errors, not_listed["label_errors"] = errors.listed, errors.left_out
    identified = identify_images(splits, (image for group in undecided[:MAX_EXAMPLES] for image in group))
    listed = [[identified[image] for image in group] for group in undecided[:MAX_EXAMPLES]]
    return findings, {"near_duplicates": listed, "label_errors": label_errors, "not_listed": not_listed}


def predict_twice(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns out-of-sample probabilities of the classes by a linear model, float32 ``[n, k]``.

    A wrong label counts among the images that are learned from, too. So they are predicted twice: the second time, an
    image counts as much as the first gave its label. Of 12 wrong labels among 560 flowers, on average of 40 draws 10.70
    were then among the first 24 candidates, and 10.48 without.

    Args:
        features: floats ``[n, d]``.
        labels: index of the class, ``[n]``.
        groups: number of the group, ``[n]``.
    """
    classes = int(labels.max()) + 1
    first = predict_out_of_fold(features, labels, "classification", classes, groups)
    own = first[np.arange(len(labels)), labels]
    return predict_out_of_fold(features, labels, "classification", classes, groups, own)


def _read_thumbnails(
    images: Sequence[ImageRef], pairs: np.ndarray, read_thumbnails: ReadThumbnails
) -> dict[int, np.ndarray]:
    """Returns the thumbnails of the images of pairs, by their positions in ``images``."""
    positions = np.unique(pairs).tolist()
    wanted: dict[str, list[int]] = defaultdict(list)
    for name, index in map(images.__getitem__, positions):
        wanted[name].append(index)
    find_thumbnail = read_thumbnails(wanted)
    thumbnails = {position: find_thumbnail(images[position]) for position in positions}
    return {position: thumbnail for position, thumbnail in thumbnails.items() if thumbnail is not None}


def _describe_sample(count: int, total: int) -> list[Finding]:
    if total <= MAX_IMAGES:
        return []
    message = f"FeatureCheck looked at {count:,} of {total:,} images, a sample by hash: copies and outliers among the "
    return [Finding("warning", "sampled", "", "", f"{message}others are not listed")]


def _describe_outliers(splits: Mapping[str, Split], outliers: Sequence[ImageRef]) -> list[Finding]:
    if not outliers:
        return []
    identified = identify_images(splits, outliers[:MAX_EXAMPLES])
    ids = [identified[image]["id"] for image in outliers[:MAX_EXAMPLES]]
    are = "image is" if len(outliers) == 1 else "images are"
    message = (
        f"{len(outliers):,} {are} unlike all others, the most unlike first: {', '.join(ids[:_NAMED])}. Look whether "
        "they belong to the data"
    )
    return [Finding("warning", "outliers", "", "", message, ids)]
