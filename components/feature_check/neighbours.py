"""Images that are alike in the features of a network: their nearest neighbours, copies among them, and outliers.

Copies that are cropped have other difference hashes, but nearly the same features. So the neighbours are candidates,
and thumbnails decide: of those, one is cropped as the other may have been, until they are the same.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from components.data_check.near_duplicates import compare_thumbnails

NEIGHBOURS = 10
"""Number of nearest neighbours of an image that are looked at."""

MIN_SIMILARITY = 0.6
"""Minimum similarity of candidates. Of 700 flowers, cropped by 3 % at each side, that to the original was 0.70 or more
with MobileNetV2; of the pairs of different photos, one in 2,000 reached 0.6."""

MIN_CORRELATION = 0.92
"""Minimum correlation of the thumbnails of candidates, one cropped as the other may have been. That of the flowers with
their cropped copies was 0.92 or more for 99.6 %; of two photos of one flower, taken one after the other, 0.90."""

_CROPS = np.linspace(0, 0.1, 11)  # shares of the sides that may be cut off at each
_SIDE = 16  # of the thumbnails that are compared
_DENSE = 2**14  # images; of more, similarities are computed of projections to fewer dimensions
_DIMENSIONS = 256
_ROWS, _COLUMNS = 1024, 2**14  # of the similarities in memory at once
_OUTLIER_NEIGHBOURS = 5
_FENCE = 1.5


def find_neighbours(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest neighbours of each image among all others.

    The similarity is the cosine of the features less their mean. With very many images it is one of random projections
    (Johnson, Lindenstrauss 1984), whose error is about 0.06.

    Args:
        features: floats ``[n, d]``.

    Returns:
        For each image the positions of its neighbours, int64 ``[n, k]``, and their similarities, float32 ``[n, k]``,
        -1 to 1, the nearest first; k is NEIGHBOURS, or all others if they are fewer.
    """
    count, width = features.shape
    vectors = features.astype(np.float32) - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    if count > _DENSE and width > _DIMENSIONS:
        vectors = vectors @ np.random.default_rng(0).standard_normal((width, _DIMENSIONS), np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    kept = min(NEIGHBOURS, count - 1)
    positions, similarities = np.empty((count, kept), np.int64), np.empty((count, kept), np.float32)
    for start in range(0, count, _ROWS):
        rows = vectors[start : start + _ROWS]
        best, where = np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64)
        for left in range(0, count, _COLUMNS):
            block = rows @ vectors[left : left + _COLUMNS].T
            own = np.arange(start, start + len(rows)) - left
            inside = (own >= 0) & (own < block.shape[1])
            block[inside, own[inside]] = -2  # no image is its own neighbour
            best = np.concatenate([best, block], axis=1)
            columns = np.broadcast_to(np.arange(left, left + block.shape[1]), block.shape)
            where = np.concatenate([where, columns], axis=1)
            top = _take_top(best, min(kept, best.shape[1]))
            best, where = np.take_along_axis(best, top, 1), np.take_along_axis(where, top, 1)
        positions[start : start + len(rows)], similarities[start : start + len(rows)] = where, best
    return positions, similarities


def _take_top(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the columns of the largest values of each row, the largest first."""
    top = np.argpartition(-values, count - 1, axis=1)[:, :count]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(values, top, 1), axis=1), 1)


def list_candidates(positions: np.ndarray, similarities: np.ndarray, maximum: int) -> np.ndarray:
    """Returns the pairs of neighbours that are alike, each once, the most alike first: int64 ``[m, 2]``."""
    rows, places = np.nonzero(similarities >= MIN_SIMILARITY)
    pairs = np.sort(np.stack([rows, positions[rows, places]], axis=1), axis=1)
    pairs, first = np.unique(pairs, axis=0, return_index=True)
    return pairs[np.argsort(-similarities[rows, places][first], kind="stable")][:maximum]


def find_outliers(similarities: np.ndarray) -> np.ndarray:
    """Returns the positions of images that are unlike all others, the most unlike first.

    Their mean distance to their nearest neighbours lies above the upper fence of Tukey's box plot (Tukey, "Exploratory
    Data Analysis", 1977, chapter 2).
    """
    if similarities.shape[1] < _OUTLIER_NEIGHBOURS:
        return np.empty(0, np.int64)
    distances = 1 - similarities[:, :_OUTLIER_NEIGHBOURS].mean(axis=1)
    low, high = np.percentile(distances, [25, 75])
    beyond = np.flatnonzero(distances > high + _FENCE * (high - low))
    return beyond[np.argsort(-distances[beyond], kind="stable")]


def confirm_copies(thumbnails: dict[int, np.ndarray], pairs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the pairs of which one is the other, or a part of it from its middle.

    Args:
        thumbnails: gray, square and flat, uint8 ``[pixels]``, by position; those of broken images are missing.
        pairs: positions, int ``[m, 2]``.
    """
    crops = {position: _crop(thumbnail) for position, thumbnail in thumbnails.items()}
    for one, other in pairs.tolist():
        if one in crops and other in crops:
            cropped = np.concatenate([crops[one], crops[other]])
            whole = np.repeat([crops[other][0], crops[one][0]], len(_CROPS), axis=0)
            if compare_thumbnails(cropped, whole, MIN_CORRELATION).any():
                yield one, other


def _crop(thumbnail: np.ndarray) -> np.ndarray:
    """Returns the thumbnail and its middles, each in the same small size, uint8 ``[crops, pixels]``."""
    side = round(len(thumbnail) ** 0.5)
    image = Image.fromarray(thumbnail.reshape(side, side))
    boxes = [(side * share, side * share, side * (1 - share), side * (1 - share)) for share in _CROPS]
    return np.stack([np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX, box=box)).ravel() for box in boxes])
