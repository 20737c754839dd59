"""Near-duplicates: images that are copies of each other, in another size, quality or brightness.

A model's answers about images that it was trained on say nothing about how good it is.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from components.data_check.findings import MAX_EXAMPLES, Finding, choose_severity, count_images
from components.data_check.split import ImageRef, Split

RADIUS = 7
"""Maximum number of bits, of 64, in which the hashes of near-duplicates differ."""

MIN_CORRELATION = 0.95
"""Minimum correlation of the thumbnails of near-duplicates: hashes of plain images may be alike by chance."""

MIN_CONTRAST = 0.01
"""Plainer images are not compared: the hash of a plain surface is noise."""

_BANDS, _BITS = 4, 16
_MAX_BAND = 4096  # images that share a band; one with more says little: a white margin, a black background
_MAX_CANDIDATES = 2**22  # at once, which bounds memory
_MAX_PAIRS = 2**20
_BATCH = 4096  # pairs of thumbnails that are compared at once


def find_near_duplicates(
    splits: Mapping[str, Split], read_thumbnails: Callable[[str, set[int]], dict[int, np.ndarray]]
) -> list[list[ImageRef]]:
    """Finds near-duplicates across splits.

    Args:
        splits: by name.
        read_thumbnails: returns flat gray thumbnails of the images of a split, given its name and their indices; broken
            images are missing.

    Returns:
        Groups of images, from at least two splits each, and the first image of each split first: a reader who sees
        only the start of a large group still sees why it is one.
    """
    images = [(name, index) for name, split in splits.items() for index, plain in enumerate(split.plain) if not plain]
    hashes = np.array([splits[name].hashes[index] for name, index in images], np.uint64)
    numbers = {name: number for number, name in enumerate(splits)}
    pairs = match_hashes(hashes, np.array([numbers[name] for name, _ in images], np.int64))
    indices: dict[str, set[int]] = defaultdict(set)
    for position in np.unique(pairs):
        name, index = images[position]
        indices[name].add(index)
    thumbnails = {
        (name, index): thumbnail
        for name, wanted in indices.items()
        for index, thumbnail in read_thumbnails(name, wanted).items()
    }
    confirmed = []
    for start in range(0, len(pairs), _BATCH):
        batch = [pair for pair in pairs[start : start + _BATCH] if all(images[i] in thumbnails for i in pair)]
        if batch:
            one, other = (np.stack([thumbnails[images[pair[side]]] for pair in batch]) for side in (0, 1))
            confirmed += [pair for pair, alike in zip(batch, compare_thumbnails(one, other), strict=True) if alike]
    return group_copies(splits, [[images[position] for position in pair] for pair in confirmed])


def group_copies(splits: Iterable[str], sets: Sequence[Sequence[ImageRef]]) -> list[list[ImageRef]]:
    """Joins sets of copies that have an image in common.

    Returns:
        Groups of images, in order of their first image, and the first image of each split first in its group.
    """
    ranks = {name: rank for rank, name in enumerate(splits)}
    images = sorted({image for some in sets for image in some}, key=lambda image: (ranks[image[0]], image[1]))
    numbers = {image: number for number, image in enumerate(images)}
    pairs = [(numbers[some[0]], numbers[image]) for some in sets for image in some[1:]]
    groups = _group_pairs(np.array(pairs, int).reshape(-1, 2), len(images))
    return [_sort_group([images[position] for position in group]) for group in groups]


def describe_near_duplicates(
    splits: Mapping[str, Split], groups: Sequence[Sequence[ImageRef]], stop_on: Sequence[str]
) -> list[Finding]:
    """Returns one finding about all groups of near-duplicates, if there are any; those within a split stop no run."""
    if not groups:
        return []
    ids = [splits[name].ids[index] for group in groups for name, index in group]
    # Images outside the training split that have a copy in it.
    across = sum(len({name for name, _ in group}) > 1 for group in groups)
    leaked = sum(name != "train" for group in groups if any(n == "train" for n, _ in group) for name, _ in group)
    conflicting = sum(len({tuple(sorted(splits[n].labels[i])) for n, i in group}) > 1 for group in groups)
    examples = "; ".join(" and ".join(splits[n].ids[i] for n, i in group[:3]) for group in groups[:3])
    where = {0: "within a split", len(groups): "across splits"}.get(across, f"({across:,} of them across splits)")
    message = (
        f"{len(groups):,} group{'s' if len(groups) > 1 else ''} of near-duplicates {where}, such as {examples}"
        + (f": {_describe_leaked(leaked)}" if across else "")
        + (f"; in {conflicting:,} of the groups the labels differ" if conflicting else "")
        + ". Keep one image of each group"
    )
    severity = choose_severity("near_duplicates", stop_on if across else ())
    return [Finding(severity, "near_duplicates", "", "", message, ids[:MAX_EXAMPLES])]


def _describe_leaked(count: int) -> str:
    return f"{count_images(count)} outside the training split have a copy in it, and say little about a model"


def match_hashes(hashes: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Finds images of different splits whose hashes differ in at most RADIUS bits.

    By multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012,
    section 2): if two hashes differ in at most 7 bits, then one of their four bands of 16 bits differs in at most
    7 // 4 = 1. So only those pairs are compared in which a band is the same but for one bit. Bands that more than 4096
    images share are skipped; copies among a crowd of plain images are found by another band, unless so many share all.

    Args:
        hashes: uint64 ``[n]``.
        splits: the split of each image, any integers ``[n]``.

    Returns:
        int64 ``[m, 2]``, positions in ``hashes``, each pair once, the lower position first; the first million if there
        are more.
    """
    pairs = np.empty((0, 2), np.int64)
    for band in range(_BANDS):
        matches = [pairs]
        keys = (hashes >> np.uint64(band * _BITS)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for change in [0, *(1 << bit for bit in range(_BITS))]:
            wanted = keys ^ np.uint16(change)
            first = np.searchsorted(ordered, wanted, "left")
            counts = np.searchsorted(ordered, wanted, "right") - first
            counts[counts > _MAX_BAND] = 0
            total = np.cumsum(counts)
            start = 0
            while start < len(counts):
                compared = total[start - 1] if start else 0
                end = max(int(np.searchsorted(total, compared + _MAX_CANDIDATES, "right")), start + 1)
                some = counts[start:end]
                one = np.repeat(np.arange(start, end), some)
                within = np.arange(len(one)) - np.repeat(np.cumsum(some) - some, some)
                other = order[np.repeat(first[start:end], some) + within]
                near = (one < other) & (splits[one] != splits[other])
                one, other = one[near], other[near]
                near = np.bitwise_count(hashes[one] ^ hashes[other]) <= RADIUS
                matches.append(np.stack([one[near], other[near]], axis=1))
                start = end
        pairs = np.unique(np.concatenate(matches), axis=0)[:_MAX_PAIRS]
    return pairs


def compare_thumbnails(one: np.ndarray, other: np.ndarray, minimum: float = MIN_CORRELATION) -> np.ndarray:
    """Returns whether pairs of thumbnails, ``[m, pixels]`` each, show the same, by their correlation: bool ``[m]``."""
    a, b = (x.astype(np.float32) - x.mean(axis=1, keepdims=True, dtype=np.float32) for x in (one, other))
    length = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return (a * b).sum(axis=1) >= minimum * np.maximum(length, 1e-6)


def _group_pairs(pairs: np.ndarray, count: int) -> list[list[int]]:
    """Returns the sets of images that pairs, int ``[m, 2]``, link, in order of their first image.

    Args:
        pairs: positions of images.
        count: number of all images.
    """
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, components = connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for position in np.unique(pairs):
        groups.setdefault(int(components[position]), []).append(int(position))
    return list(groups.values())


def _sort_group(group: list[ImageRef]) -> list[ImageRef]:
    """Returns the group with the first image of each split at its start."""
    first = {name: (name, index) for name, index in reversed(group)}.values()
    return sorted(group, key=lambda image: image not in first)
