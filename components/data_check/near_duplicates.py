"""Near-duplicates: images that are copies of each other, in another size, quality or brightness.

A model's answers about images that it was trained on say nothing about how good it is.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from components.data_check.findings import MAX_EXAMPLES, Finding, choose_severity, count_images, describe_left_out
from components.data_check.split import ImageRef, Split, identify_images, take

RADIUS = 7
"""Maximum number of bits, of 64, in which the hashes of near-duplicates differ."""

MIN_CORRELATION = 0.95
"""Minimum correlation of the thumbnails of near-duplicates: hashes of plain images may be alike by chance."""

MIN_CONTRAST = 0.01
"""Plainer images are not compared: the hash of a plain surface is noise."""

SURE = 4
"""Bits in which two hashes may differ and are sure to be compared, however many there are."""

_MAX_COMPARED = 2**17  # hashes of which all pairs are compared
_BLOCKS = 8  # of a hash, each a byte
_MAX_SHARED = 4096  # images that share blocks; where more do, the blocks say little: a margin, a background
_MAX_CANDIDATES = 2**20  # at once, which bounds memory
_MAX_PAIRS = 2**18  # whose thumbnails are compared
_BATCH = 4096  # pairs of thumbnails that are compared at once


def find_near_duplicates(
    splits: Mapping[str, Split],
    read_thumbnails: Callable[[Mapping[str, Collection[int]]], Callable[[ImageRef], np.ndarray | None]],
) -> tuple[list[list[ImageRef]], int]:
    """Finds near-duplicates across splits.

    Args:
        splits: by name.
        read_thumbnails: from the indices of images by split to the function that returns the thumbnail of one, flat and
            gray, None if the image is broken.

    Returns:
        Groups of images, from at least two splits each, and the first image of each split first: a reader who sees
        only the start of a large group still sees why it is one. And within how many bits all pairs were compared, see
        ``match_hashes``.
    """
    names = list(splits)
    indices = [np.flatnonzero(~np.asarray(split.plain, bool)) for split in splits.values()]
    hashes = [np.asarray(split.hashes, np.uint64)[kept] for split, kept in zip(splits.values(), indices, strict=True)]
    numbers = np.repeat(np.arange(len(names), dtype=np.int16), [len(kept) for kept in indices])
    pairs, bits = match_hashes(np.concatenate(hashes), numbers)
    index = np.concatenate(indices)
    wanted = np.unique(pairs)
    find_thumbnail = read_thumbnails(
        {name: some for number, name in enumerate(names) if len(some := index[wanted[numbers[wanted] == number]])}
    )
    confirmed = []
    for start in range(0, len(pairs), _BATCH):
        batch, ones, others = [], [], []
        for pair in pairs[start : start + _BATCH]:
            images = [(names[numbers[position]], int(index[position])) for position in pair]
            one, other = map(find_thumbnail, images)
            if one is not None and other is not None:
                batch.append(images)
                ones.append(one)
                others.append(other)
        if batch:
            is_copied = compare_thumbnails(np.stack(ones), np.stack(others))
            confirmed += [images for images, copied in zip(batch, is_copied, strict=True) if copied]
    return group_copies(splits, confirmed), bits


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
    splits: Mapping[str, Split],
    groups: Sequence[Sequence[ImageRef]],
    stop_on: Sequence[str],
    bits: int = RADIUS,
    left_out: int = 0,
) -> list[Finding]:
    """Returns one finding about all groups of near-duplicates, if there are any; those within a split stop no run.

    Args:
        splits: by name.
        groups: from ``find_near_duplicates``.
        stop_on: kinds of findings that stop the run.
        bits: from ``find_near_duplicates``.
        left_out: number of further groups on whose images a person has decided.
    """
    if not groups:
        return []
    listed = [image for group in groups for image in group][:MAX_EXAMPLES]
    named = identify_images(splits, [*listed, *(image for group in groups[:3] for image in group[:3])])
    labels = _read_labels(splits, groups)
    # Images outside the training split that have a copy in it.
    across = sum(len({name for name, _ in group}) > 1 for group in groups)
    leaked = sum(name != "train" for group in groups if any(n == "train" for n, _ in group) for name, _ in group)
    conflicting = sum(len({labels[image] for image in group}) > 1 for group in groups)
    examples = "; ".join(" and ".join(named[image]["id"] for image in group[:3]) for group in groups[:3])
    where = {0: "within a split", len(groups): "across splits"}.get(across, f"({across:,} of them across splits)")
    message = (
        f"{len(groups):,} group{'s' if len(groups) > 1 else ''} of near-duplicates {where}, such as {examples}"
        + (f": {_describe_leaked(leaked)}" if leaked else "")
        + (f"; in {conflicting:,} of the groups the labels differ" if conflicting else "")
        + (f"; of so many images not all pairs beyond {max(bits, 0)} bits were compared" if bits < RADIUS else "")
        + ". Keep one image of each group"
        + describe_left_out(left_out, "group")
    )
    severity = choose_severity("near_duplicates", stop_on if across else ())
    return [Finding(severity, "near_duplicates", "", "", message, [named[image]["id"] for image in listed])]


def _read_labels(splits: Mapping[str, Split], groups: Iterable[Iterable[ImageRef]]) -> dict[ImageRef, tuple[str, ...]]:
    """Returns the labels of all images of groups, sorted."""
    indices: dict[str, set[int]] = defaultdict(set)
    for group in groups:
        for name, index in group:
            indices[name].add(index)
    return {
        (name, index): tuple(sorted(labels))
        for name, wanted in indices.items()
        for index, labels in take(splits[name].labels, wanted).items()
    }


def _describe_leaked(count: int) -> str:
    verbs = "has a copy in it, and says" if count == 1 else "have a copy in it, and say"
    return f"{count_images(count)} outside the training split {verbs} little about a model"


def match_hashes(hashes: np.ndarray, splits: np.ndarray) -> tuple[np.ndarray, int]:
    """Finds images of different splits whose hashes differ in at most RADIUS bits.

    Of up to 131,072 images every pair is compared. More are sorted by blocks (Manku, Jain, Das Sarma, "Detecting
    Near-Duplicates for Web Crawling", WWW 2007, section 3): of the eight bytes of two hashes that differ in at most
    four bits, four are the same. So for each of the 70 choices of four bytes only those pairs are compared in which
    they are, in time and memory that grow with the number of images. Of the pairs that differ in 5, 6 and 7 bits, in
    any places alike, that finds 76, 47 and 26 %. Bytes that more than 4,096 images share are skipped; copies among a
    crowd are found by others, unless so many share all.

    Args:
        hashes: uint64 ``[n]``, at most 2**32.
        splits: the split of each image, integers from 0, ``[n]``.

    Returns:
        int64 ``[m, 2]``, positions in ``hashes``, each pair once, the lower position first; the nearest 262,144 or
        fewer if there are more. And in how many bits hashes may differ so that no pair of them is missing; -1 if even
        equal ones are more.
    """
    if not len(hashes):
        return np.empty((0, 2), np.int64), RADIUS
    # Of two images of different splits, one at least is not in the largest.
    asked = splits != np.bincount(splits).argmax()
    is_small = len(hashes) <= _MAX_COMPARED
    bits, radius = RADIUS if is_small else SURE, RADIUS
    pairs, waiting = np.empty(0, np.uint64), 0
    parts = [pairs]
    for one, other in (_compare_all if is_small else _compare_by_blocks)(hashes, asked):
        near = (np.bitwise_count(hashes[one] ^ hashes[other]) <= radius) & (splits[one] != splits[other])
        low, high = np.minimum(one[near], other[near]), np.maximum(one[near], other[near])
        parts.append(low.astype(np.uint64) << np.uint64(32) | high.astype(np.uint64))
        waiting += len(low)
        if waiting > _MAX_PAIRS:
            pairs, radius = _keep_nearest(np.unique(np.concatenate(parts)), hashes, radius)
            parts, waiting = [pairs], 0
    pairs, radius = _keep_nearest(np.unique(np.concatenate(parts)), hashes, radius)
    low, high = pairs >> np.uint64(32), pairs & np.uint64(2**32 - 1)
    return np.stack([low, high], axis=1).astype(np.int64), min(bits, radius)


def _keep_nearest(pairs: np.ndarray, hashes: np.ndarray, radius: int) -> tuple[np.ndarray, int]:
    """Returns the pairs within the largest radius at which they are few enough, and that radius."""
    distances = np.bitwise_count(hashes[pairs >> np.uint64(32)] ^ hashes[pairs & np.uint64(2**32 - 1)])
    while np.count_nonzero(distances <= radius) > _MAX_PAIRS and radius >= 0:
        radius -= 1
    return (pairs[distances <= radius], radius) if radius >= 0 else (pairs[distances == 0][:_MAX_PAIRS], radius)


def _compare_all(hashes: np.ndarray, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields positions of pairs of near hashes, one of them among those asked for: int64 ``[m]`` each."""
    positions = np.flatnonzero(asked)
    rows = max(_MAX_CANDIDATES // len(hashes), 1)
    for start in range(0, len(positions), rows):
        some = positions[start : start + rows]
        near = np.flatnonzero(np.bitwise_count(hashes[some][:, None] ^ hashes) <= RADIUS)
        row, other = np.divmod(near, len(hashes))
        yield some[row], other


def _compare_by_blocks(hashes: np.ndarray, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields positions of pairs of hashes that have half their bytes in common, one of them among those asked for."""
    blocks = hashes.view(np.uint8).reshape(-1, _BLOCKS)
    for chosen in itertools.combinations(range(_BLOCKS), _BLOCKS // 2):
        # One number to sort by: the key in its upper half, the position in its lower half.
        keyed = np.ascontiguousarray(blocks[:, chosen]).view(np.uint32).ravel().astype(np.uint64) << np.uint64(32)
        keyed |= np.arange(len(hashes), dtype=np.uint64)
        keyed.sort()
        is_first = np.concatenate([[True], np.diff(keyed >> np.uint64(32)) != 0])
        starts = np.flatnonzero(is_first)
        sizes = np.diff(starts, append=len(keyed))
        is_shared = (sizes > 1) & (sizes <= _MAX_SHARED)
        order = (keyed & np.uint64(2**32 - 1))[np.repeat(is_shared, sizes)].astype(np.int64)
        del keyed, is_first
        sizes = sizes[is_shared]
        starts = np.cumsum(sizes) - sizes
        place = np.flatnonzero(asked[order])
        run = np.repeat(np.arange(len(sizes)), sizes)[place]
        total = np.cumsum(sizes[run])
        edges = np.searchsorted(total, np.arange(0, total[-1] if len(total) else 0, _MAX_CANDIDATES))
        for some in np.split(np.arange(len(place)), edges[1:]):
            counts = sizes[run[some]]
            one = np.repeat(order[place[some]], counts)
            within = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield one, order[np.repeat(starts[run[some]], counts) + within]


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
