"""Columns that give the label away: a model would learn them in place of the image."""

from collections.abc import Mapping, Sequence

import numpy as np

from components.data_check.findings import Finding, choose_severity, count_images
from components.data_check.labels import is_number
from components.data_check.split import ColumnValue

MAX_ROWS = 5000
"""Maximum number of images that are looked at, evenly spread over the split."""

_BINS = 40  # of a column of numbers: a multiple of the following
_TARGET_BINS = 10  # of a regression's label
_MAX_LABELS = 100  # of a multilabel task, the most frequent
_MIN_IMAGES = 10  # of a label, and without it
_PERMUTATIONS = 20
_MIN_DEVIATIONS = 5  # above chance, in its standard deviations


def find_leaks(
    columns: Mapping[str, Sequence[ColumnValue]],
    labels: Sequence[Sequence[str]],
    task: str,
    feature: str,
    maximum: float,
    stop_on: Sequence[str],
) -> list[Finding]:
    """Finds columns that by themselves tell most of what there is to know about the label.

    Args:
        columns: by name, a value for each of some images of the training split.
        labels: of these images.
        task: classification, multilabel, in which a column may give away a single label, or regression.
        feature: name of the label's feature.
        maximum: share of the label's entropy that a column may tell.
        stop_on: kinds of findings that stop the run.
    """
    is_label = is_number if task == "regression" else bool
    labelled = [i for i, values in enumerate(labels) if task == "multilabel" or (values and is_label(values[0]))]
    targets = _make_targets([labels[i] for i in labelled], task)
    findings = []
    for name, values in columns.items():
        codes = _encode([values[i] for i in labelled])
        shares = {target: measure_share(codes, one, maximum) for target, one in targets.items()}
        target, share = max(shares.items(), key=lambda item: item[1], default=("", 0.0))
        if share > maximum:
            told = f"whether an image has '{target}' as '{feature}'" if task == "multilabel" else f"'{feature}'"
            message = (
                f"'{name}' gives the label away: by itself it tells {share:.0%} of what there is to know about {told} "
                f"(mutual information beyond chance, in {count_images(len(labelled))} of the split train; "
                f"data.validation.leak is {maximum:.0%}). Remove it from data.features, unless it is known when the "
                "model is asked"
            )
            findings.append(Finding(choose_severity("leak", stop_on), "leak", "train", name, message))
    return findings


def measure_share(values: np.ndarray, targets: np.ndarray, minimum: float = 0) -> float:
    """Returns which share of the targets' entropy the values tell, beyond what as many values tell by chance.

    That is (I - E) / (H - E) of the mutual information I, its mean E over random permutations and the entropy H of the
    targets: the correction for chance of Vinh, Epps and Bailey, "Information Theoretic Measures for Clusterings
    Comparison", Journal of Machine Learning Research 11, 2010, of Theil's uncertainty coefficient I / H.

    Args:
        values: codes from 0, int ``[n]``.
        targets: codes from 0, int ``[n]``.
        minimum: share below which it does not matter how large it is.

    Returns:
        At most 1; 0 if it is not clearly more than chance, or below the minimum.
    """
    entropy = _measure_information(targets, targets)
    information = _measure_information(values, targets)
    if information <= minimum * entropy:  # which the correction only makes smaller
        return 0.0
    random = np.random.default_rng(0)
    by_chance = [_measure_information(values, random.permutation(targets)) for _ in range(_PERMUTATIONS)]
    expected, deviation = float(np.mean(by_chance)), float(np.std(by_chance))
    if information - expected <= max(_MIN_DEVIATIONS * deviation, 1e-9):  # each image has a value of its own, or none
        return 0.0
    return (information - expected) / (entropy - expected)


def _measure_information(values: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mutual information of two columns of codes, in nats."""
    _, counts = np.unique(values.astype(np.int64) * (targets.max(initial=0) + 1) + targets, return_counts=True)
    return _measure_entropy(np.bincount(values)) + _measure_entropy(np.bincount(targets)) - _measure_entropy(counts)


def _measure_entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _make_targets(labels: Sequence[Sequence[str]], task: str) -> dict[str, np.ndarray]:
    """Returns what could be given away, as codes by name."""
    if not labels:
        return {}
    if task == "regression":
        return {"": _bin(np.array([float(label) for (label, *_) in labels]), _TARGET_BINS)}
    if task == "classification":
        return {"": np.unique([label for (label, *_) in labels], return_inverse=True)[1]}
    names, counts = np.unique([label for some in labels for label in set(some)], return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_MAX_LABELS]
    return {
        str(names[i]): np.array([names[i] in some for some in labels], np.int64)
        for i in frequent
        if _MIN_IMAGES <= counts[i] <= len(labels) - _MIN_IMAGES
    }


def _encode(values: Sequence[ColumnValue]) -> np.ndarray:
    """Returns codes of a column's values from 0: equal text is equal, numbers are in bins, what is missing is alike."""
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(set(numbers)) > _BINS:
        codes = np.zeros(len(values), np.int64)
        codes[[isinstance(value, int | float) for value in values]] = 1 + _bin(np.array(numbers, float), _BINS)
        return codes
    return np.unique(["" if value is None else f"={value}" for value in values], return_inverse=True)[1]


def _bin(numbers: np.ndarray, count: int) -> np.ndarray:
    """Returns the quantile, of ``count``, that each number is in, from 0."""
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, numbers, side="right")
