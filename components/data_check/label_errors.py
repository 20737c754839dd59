"""Likely label errors, by confident learning on out-of-sample predictions.

The method is that of Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70
(2021), sections 3.1 and 3.2. It needs predictions by models that have not seen the image. The network that is trained
may have memorized the labels of its training images, wrong ones too; so each image is classified by forests that
learned from the colours and edges of the other images (cross-validation). They know less than a network, but nothing of
the label that they judge, and take seconds.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold

from components.data_check.findings import MAX_EXAMPLES, Finding, describe_left_out
from components.data_check.split import ImageRef, Split, identify_images

SIDE = 96
"""Height and width in pixels of the images that are described."""

FOLDS = 5
"""Number of parts of the images, each of which is judged by what was learned from the others."""

MIN_IMAGES = 10
"""A class with fewer images can't be learned, nor can one with fewer groups than folds; its images are neither judged
nor learned from."""

_TREES = 300
_FOREST_BYTES = 2**28
_HUES, _SATURATIONS, _VALUES = 12, 4, 4
_GRID = 4


@dataclass(frozen=True)
class Candidate:
    """An image whose label is likely to be wrong.

    Attributes:
        index: index of the image.
        suggested: index of the class that the image looks like.
        confidence: probability of the label that the image has, 0 to 1.
        suggested_confidence: probability of the suggested class.
        confident: whether confident learning counts it among the errors: its probability of another class reaches the
            average of that class's own images. The others are only unlike their class.
    """

    index: int
    suggested: int
    confidence: float
    suggested_confidence: float
    confident: bool


@dataclass(frozen=True)
class LabelErrors:
    """Images whose labels are likely to be wrong.

    Attributes:
        listed: the likeliest errors first, for JSON.
        count: number of all of them, listed or not.
        confident: how many of them confident learning counts among the errors, see ``Candidate``.
        judged: number of images that were judged.
        left_out: number of further ones on which a person has decided.
    """

    listed: list[dict[str, Any]]
    count: int
    confident: int
    judged: int
    left_out: int


def find_label_errors(
    splits: Mapping[str, Split],
    near_duplicates: Sequence[Sequence[ImageRef]],
    maximum: int,
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    decided: Collection[ImageRef] = (),
) -> LabelErrors:
    """Finds images whose label is likely to be wrong.

    Args:
        splits: by name; images with descriptors and one label are judged. Those of one group, such as a patient, are
            never on both sides of a fold: they are alike, and would confirm each other's wrong label.
        near_duplicates: sets of images that aren't either.
        maximum: maximum number of images to list.
        predict: returns out-of-sample probabilities, ``[n, k]``, of descriptors, labels and groups, as
            ``predict_out_of_sample`` does.
        decided: images that are left out, as a person has decided on their labels; others learn from them.
    """
    images = [
        (name, index)
        for name, split in splits.items()
        for index in sorted(split.descriptors)
        if len(split.labels[index]) == 1
    ]
    names = [splits[name].labels[index][0] for name, index in images]
    groups = _number_groups(splits, images, near_duplicates)
    groups_by_label = Counter(label for label, _ in set(zip(names, groups, strict=True)))
    classes = sorted(
        label for label, count in Counter(names).items() if count >= MIN_IMAGES and groups_by_label[label] >= FOLDS
    )
    if len(classes) < 2:
        return LabelErrors([], 0, 0, 0, 0)
    numbers = {label: number for number, label in enumerate(classes)}
    places = [place for place, label in enumerate(names) if label in numbers]
    judged = [(images[place], names[place]) for place in places]
    labels = np.array([numbers[label] for _, label in judged])
    probabilities = predict(
        np.stack([splits[name].descriptors[index] for (name, index), _ in judged]), labels, groups[places]
    )
    ranked = rank_candidates(probabilities, labels, len(labels))
    undecided = [candidate for candidate in ranked if judged[candidate.index][0] not in decided]
    candidates = undecided[:maximum]
    identified = identify_images(splits, (judged[candidate.index][0] for candidate in candidates))
    listed = []
    for candidate in candidates:
        image, label = judged[candidate.index]
        listed.append(
            identified[image]
            | {
                "label": label,
                "suggested": classes[candidate.suggested],
                "confidence": round(candidate.confidence, 4),
                "suggested_confidence": round(candidate.suggested_confidence, 4),
                "confident": candidate.confident,
            }
        )
    confident = sum(candidate.confident for candidate in undecided)
    return LabelErrors(listed, len(undecided), confident, len(judged), len(ranked) - len(undecided))


def _number_groups(
    splits: Mapping[str, Split], images: Sequence[ImageRef], near_duplicates: Sequence[Sequence[ImageRef]]
) -> np.ndarray:
    """Returns a number for each image, int ``[n]``: the same for those of one group, and for near-duplicates."""
    members: dict[object, list[int]] = defaultdict(list)
    copies = {image: number for number, some in enumerate(near_duplicates) for image in some}
    for place, (name, index) in enumerate(images):
        split = splits[name]
        for key in (split.groups[index] if split.groups else None, copies.get((name, index))):
            if key is not None:
                members[key].append(place)
    pairs = np.array([(some[0], place) for some in members.values() for place in some[1:]], int).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(images), len(images)))
    return np.asarray(connected_components(graph, directed=False)[1])


def describe_label_errors(errors: LabelErrors, total: int) -> list[Finding]:
    """Returns one finding about all likely label errors, if there are any.

    Args:
        errors: from ``find_label_errors``.
        total: number of all images.
    """
    listed, one = errors.listed, errors.count == 1
    if not listed:
        return []
    examples = ", ".join(f"{error['id']} ({error['label']}, or {error['suggested']}?)" for error in listed[:3])
    images = "checked images" if errors.judged >= total else f"checked images ({total:,} in all)"
    message = (
        f"{errors.count:,} of {errors.judged:,} {images} look{'s' if one else ''} more like another class than "
        f"{'its' if one else 'their'} own, {errors.confident:,} of them clearly"
        + (f"; listed: {len(listed):,} (data.validation.label_errors)" if len(listed) < errors.count else "")
        + f". The likeliest label errors: {examples}"
        + describe_left_out(errors.left_out, "image")
    )
    return [Finding("warning", "label_errors", "", "label", message, [error["id"] for error in listed[:MAX_EXAMPLES]])]


def compute_descriptors(images: np.ndarray) -> np.ndarray:
    """Computes the features of images that the forests learn from: histograms of colours, and colours by place.

    Args:
        images: uint8 ``[n, SIDE, SIDE, 3]``, RGB.

    Returns:
        float32 ``[n, 800]``: joint histograms (square roots of shares) over hue, saturation and value of the whole, of
        the middle and of the margin; mean and deviation of seven channels in each cell of a 4 x 4 grid.
    """
    rgb = images.astype(np.float32) / 255
    red, green, blue = (rgb[..., i] for i in range(3))
    value = rgb.max(axis=-1)
    chroma = value - rgb.min(axis=-1)
    divisor = np.maximum(chroma, 1e-6)
    sector = np.where(
        value == red,
        (green - blue) / divisor % 6,
        np.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue, saturation = sector / 6, chroma / np.maximum(value, 1e-6)
    colours = (_quantize(hue, _HUES) * _SATURATIONS + _quantize(saturation, _SATURATIONS)) * _VALUES + _quantize(
        value, _VALUES
    )
    quarter = SIDE // 4
    middle = np.zeros((SIDE, SIDE), bool)
    middle[quarter:-quarter, quarter:-quarter] = True
    histograms = [_build_histograms(colours[:, part]) for part in (np.ones_like(middle), middle, ~middle)]
    # Hue as an angle, as red is at both of its ends.
    angle = 2 * np.pi * hue
    channels = np.stack(
        [saturation * np.cos(angle), saturation * np.sin(angle), saturation, value, red, green, blue], axis=-1
    )
    cells = channels.reshape(len(images), _GRID, SIDE // _GRID, _GRID, SIDE // _GRID, channels.shape[-1])
    by_cell = [measure(axis=(2, 4)).reshape(len(images), -1) for measure in (cells.mean, cells.std)]
    return np.concatenate([*histograms, *by_cell], axis=1, dtype=np.float32)


def _quantize(channel: np.ndarray, levels: int) -> np.ndarray:
    return np.minimum((channel * levels).astype(np.int64), levels - 1)


def _build_histograms(colours: np.ndarray) -> np.ndarray:
    """Returns the square roots of the colours' shares, ``[n, colours]``, given each pixel's colour, ``[n, pixels]``."""
    count = _HUES * _SATURATIONS * _VALUES
    rows = np.arange(len(colours))[:, None] * count
    counts = np.bincount((rows + colours).ravel(), minlength=len(colours) * count)
    return np.sqrt(counts.reshape(len(colours), count) / colours.shape[1])


def predict_out_of_sample(
    descriptors: np.ndarray, labels: np.ndarray, groups: np.ndarray, max_bytes: int = _FOREST_BYTES
) -> np.ndarray:
    """Returns probabilities of the classes, by forests that have not seen the image.

    Args:
        descriptors: float ``[n, d]``.
        labels: index of the class, ``[n]``, each of 0..k-1 at least MIN_IMAGES times.
        groups: number of the group, ``[n]``, whose images are in one fold; each class has FOLDS of them or more.
        max_bytes: maximum size of the trees that are in memory at once.

    Returns:
        float ``[n, k]``.
    """
    classes = labels.max() + 1
    probabilities = np.zeros((len(labels), classes))
    # A tree has up to two nodes per image, a node a number for each class: 40 MB with 5,000 images of 500 classes.
    trees = int(np.clip(max_bytes // (2 * len(labels) * classes * 8), 1, _TREES))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for learned, judged in folds.split(descriptors, labels, groups):
        for start in range(0, _TREES, trees):
            count = min(trees, _TREES - start)
            forest = ExtraTreesClassifier(count, max_features=0.1, random_state=start, n_jobs=-1)
            forest.fit(descriptors[learned], labels[learned])
            share = forest.predict_proba(descriptors[judged]) * (count / _TREES)
            probabilities[np.ix_(judged, forest.classes_)] += share
            del forest  # before the next one grows
    return probabilities


def rank_candidates(probabilities: np.ndarray, labels: np.ndarray, maximum: int) -> list[Candidate]:
    """Returns the images whose labels are most likely to be wrong, the likeliest first.

    They are ranked by the probability of the label that an image has, its self-confidence in the paper's words. Of 12
    wrong labels among 560 photos of flowers, on average of ten draws 8.0 were among the first 40; ranked by the
    distance to the most probable class, 7.3.

    Args:
        probabilities: out-of-sample, ``[n, k]``.
        labels: index of the class, ``[n]``, each of 0..k-1 at least once.
        maximum: maximum number of images; only those that look more like another class are returned.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    # A class's threshold is the mean probability that its own images have of it (equation 2).
    thresholds = np.bincount(labels, own) / np.bincount(labels)
    reached = np.where(probabilities >= thresholds, probabilities, -1)
    confident = (reached.max(axis=1) >= 0) & (reached.argmax(axis=1) != labels)
    others = probabilities.copy()
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    unlike = np.flatnonzero(own < others.max(axis=1))
    return [
        Candidate(int(i), int(suggested[i]), float(own[i]), float(others[i].max()), bool(confident[i]))
        for i in unlike[np.argsort(own[unlike], kind="stable")][:maximum]
    ]
