"""Groups, such as patients, whose images lie in several splits: a model is then judged by those that it has seen.

``ingest`` refuses them; TFRecords made elsewhere come with splits of their own.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from components.data_check.findings import MAX_EXAMPLES, Finding, choose_severity, count_images
from components.data_check.split import ImageRef, Split, identify_images
from imagepipe.base.labels import list_names


def find_torn_groups(splits: Mapping[str, Split], feature: str, stop_on: Sequence[str]) -> list[Finding]:
    """Returns one finding about all groups with images in several splits, if there are any.

    Args:
        splits: by name, the training split first.
        feature: name of the group's feature.
        stop_on: kinds of findings that stop the run.
    """
    torn = _find_torn(splits)
    if not torn:
        return []
    splits_by_group: dict[str, list[str]] = {}
    leaked = 0
    images: list[ImageRef] = []  # the first ones outside the training split
    for name, split in splits.items():
        for index, group in enumerate(split.groups):
            if group is None or hash(group) not in torn:
                continue
            names = splits_by_group.setdefault(group, [])
            if name not in names:
                names.append(name)
            if name != "train":
                leaked += "train" in names
                if len(images) < MAX_EXAMPLES:
                    images.append((name, index))
    named = list_names([f"{group} ({', '.join(names)})" for group, names in sorted(splits_by_group.items())])
    verb = "is of a group that it has, and says" if leaked == 1 else "are of groups that it has, and say"
    message = (
        f"{f'1 value of {feature!r} has' if len(torn) == 1 else f'{len(torn):,} values of {feature!r} have'} images in "
        f"several splits: {named}"
        + (f"; {count_images(leaked)} outside the training split {verb} little about a model" if leaked else "")
        + ". Give all images of a group one split; of TFRecords in one set, data.features.group does so"
    )
    identified = identify_images(splits, images)
    ids = [identified[image]["id"] for image in images]
    return [Finding(choose_severity("groups", stop_on), "groups", "", feature, message, ids)]


def _find_torn(splits: Mapping[str, Split]) -> set[int]:
    """Returns the hashes of the groups that are in several splits; memory has no room for the names of all groups."""
    hashes = [
        np.unique(np.fromiter((hash(group) for group in split.groups if group is not None), np.int64))
        for split in splits.values()
    ]
    groups, counts = np.unique(np.concatenate(hashes), return_counts=True)
    return set(groups[counts > 1].tolist())
