"""Near-duplicates: images of different splits that are copies of each other, in another size, quality or brightness.

What a model has been trained on says nothing about it when it is asked again.
"""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

RADIUS = 7
"""Bits of 64 in which the hashes of near-duplicates may differ."""

LEAST_CORRELATION = 0.95
"""Of the thumbnails of near-duplicates: hashes of plain images may be alike by chance."""

LEAST_CONTRAST = 0.01
"""Plainer images are not compared: the hash of a plain surface is noise."""

_BANDS, _BITS = 4, 16
_CROWDED = 4096  # images that share a band, which then says little: a white margin, a black background
_AT_ONCE = 2**22  # candidates, which bounds memory
_MOST_PAIRS = 2**20


def pairs(hashes: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Images of different splits whose hashes differ in at most RADIUS bits.

    By multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012,
    section 2): of four bands of 16 bits one differs in at most 7 // 4 = 1, so that only those are compared that agree
    in a band, or but for one bit of it. Bands that more than 4096 images share are passed over; copies in a crowd of
    plain images are found by another band, unless all are shared by so many.

    Args:
        hashes: uint64 ``[n]``.
        splits: of each image, any integers ``[n]``.

    Returns:
        int64 ``[m, 2]``, places in ``hashes``, each pair once, the lower place first; the first million where there
        are more.
    """
    found = [np.empty((0, 2), np.int64)]
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(band * _BITS)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for change in [0, *(1 << bit for bit in range(_BITS))]:
            wanted = keys ^ np.uint16(change)
            first = np.searchsorted(ordered, wanted, "left")
            counts = np.searchsorted(ordered, wanted, "right") - first
            counts[counts > _CROWDED] = 0
            total = np.cumsum(counts)
            start = 0
            while start < len(counts):
                before = total[start - 1] if start else 0
                end = max(int(np.searchsorted(total, before + _AT_ONCE, "right")), start + 1)
                some = counts[start:end]
                one = np.repeat(np.arange(start, end), some)
                within = np.arange(len(one)) - np.repeat(np.cumsum(some) - some, some)
                other = order[np.repeat(first[start:end], some) + within]
                near = (one < other) & (splits[one] != splits[other])
                one, other = one[near], other[near]
                near = np.bitwise_count(hashes[one] ^ hashes[other]) <= RADIUS
                found.append(np.stack([one[near], other[near]], axis=1))
                start = end
        found = [np.unique(np.concatenate(found), axis=0)[:_MOST_PAIRS]]
    return found[0]


def alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether thumbnails, ``[m, pixels]`` each, show the same: bool ``[m]``, by their correlation."""
    a, b = (x.astype(np.float32) - x.mean(axis=1, keepdims=True, dtype=np.float32) for x in (one, other))
    length = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return (a * b).sum(axis=1) >= LEAST_CORRELATION * np.maximum(length, 1e-6)


def groups(linked: np.ndarray, count: int) -> list[list[int]]:
    """The sets of images that pairs link, in order of their first image.

    Args:
        linked: int ``[m, 2]``.
        count: number of all images.
    """
    graph = coo_matrix((np.ones(len(linked)), (linked[:, 0], linked[:, 1])), shape=(count, count))
    _, names = connected_components(graph, directed=False)
    found: dict[int, list[int]] = {}
    for place in np.unique(linked):
        found.setdefault(int(names[place]), []).append(int(place))
    return list(found.values())
