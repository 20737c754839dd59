"""Which backbone: for each whose weights are at hand, the accuracy of a linear model on its features, and its cost.

The features are computed once for each backbone, of images of the train split, and each image is judged by a model that
has not seen it: neither the eval nor the test split is looked at.
"""

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.errors import TrainingError, WeightsError, describe_error
from imagepipe.base.features import read_group
from imagepipe.base.names import TaskName
from trainer.backbones import BACKBONES
from trainer.config import IMAGENET, TrainerConfig
from trainer.features import load_backbone, round_to_half
from trainer.linear_probe import FOLDS, predict_out_of_fold
from trainer.pretrained import can_download, is_cached
from trainer.weights.check import check_readable
from trainer.weights.checkpoint import is_saved_model
from trainer.weights.contents import open_weights
from trainer.weights.identify import describe_contents
from trainer.weights.layers import Size
from transform.examples import CORES, disable_tuner, make_sampler
from transform.images import decode_and_resize

MAX_IMAGES = 2000
"""Maximum number of images; of more, a sample by hash."""

DOWNLOADED = ("mobilenet_v2", "efficientnet_v2_b0", "inception_v3", "resnet50v2", "convnext_tiny")
"""Backbones whose weights are downloaded where they can be: from small to large, 400 MB together."""

METRICS: dict[TaskName, str] = {
    "classification": "accuracy",
    "multilabel": "binary_accuracy",
    "regression": "mean_absolute_error",
}

_BATCH = 32
_MAX_SIDE = 1024  # in pixels; what a file says above is not believed, as such images fill the memory
_RESAMPLES = 2000
_SUFFIXES = (".h5", ".hdf5", ".keras", ".weights.json")

_log = logging.getLogger("trainer")


class Candidate(NamedTuple):
    """A backbone whose weights are at hand.

    Attributes:
        backbone: its name.
        weights: ``imagenet``, or the path of a file.
        size: (height, width) in pixels of the images that it was trained on.
    """

    backbone: str
    weights: str
    size: Size


class Images(NamedTuple):
    """The images to judge by.

    Attributes:
        serialized: their Examples.
        targets: compact, see ``trainer.tasks.Task.compact``.
        groups: number of each image's group, int ``[n]``.
        task: what is learned.
        outputs: number of classes or labels; 1 for regression.
        total: number of images of the split, of which these are a sample.
    """

    serialized: tf.data.Dataset
    targets: np.ndarray
    groups: np.ndarray
    task: TaskName
    outputs: int
    total: int


class Probed(NamedTuple):
    """The result for one backbone.

    Attributes:
        candidate: the backbone.
        value: the metric on images that the linear model has not seen.
        interval: its 95 % interval.
        milliseconds: of the backbone alone, per image, in batches of 32, on this machine.
        numbers: number of its weights.
        values: of each image, ``[n]``: whether it is right, the share of its labels that are, or the error.
    """

    candidate: Candidate
    value: float
    interval: tuple[float, float]
    milliseconds: float
    numbers: int
    values: np.ndarray


def list_candidates(folder: Path | None) -> tuple[list[Candidate], list[str]]:
    """Returns the backbones whose weights are in a folder, in Keras's cache, or can be downloaded.

    Args:
        folder: files of weights; None for Keras's weights only.

    Returns:
        The candidates; and for each file that is none the reason.
    """
    candidates, passed_over = [], []
    for path in sorted(folder.iterdir()) if folder else ():
        if not path.name.lower().endswith(_SUFFIXES) and not is_saved_model(str(path)):
            continue
        try:
            check_readable(str(path))
            with open_weights(str(path)) as (contents, _):
                description = describe_contents(contents)
        except WeightsError as error:
            passed_over.append(str(error))
            continue
        if not description.backbone:
            passed_over.append(f"{path} is of no backbone that comes with imagepipe")
        elif not description.is_single:
            passed_over.append(f"{path} holds {description.backbone} more than once: which one is meant can't be told")
        else:
            size = _choose_size(description.backbone, description.size)
            candidates.append(Candidate(description.backbone, filesystem.absolute(str(path)), size))
    from_keras = [name for name in BACKBONES if is_cached(name)]
    from_keras += [name for name in DOWNLOADED if name not in from_keras] if can_download() else []
    candidates += [Candidate(name, IMAGENET, BACKBONES[name].size) for name in from_keras]
    return candidates, passed_over


def _choose_size(backbone: str, size: Size | None) -> Size:
    """Returns the size at which a backbone sees images: the file's, unless it says none that the backbone takes."""
    row = BACKBONES[backbone]
    return size if size and row.min_side <= min(size) <= max(size) <= _MAX_SIDE else row.size


def read_images(patterns: Sequence[str], task: TaskName, total: int, compression: str) -> Images:
    """Reads labels and groups of the train split of a dataset; of many images, of a sample by hash.

    Args:
        patterns: its TFRecord files.
        task: what is learned.
        total: number of its images.
        compression: of the files, GZIP or ''.

    Raises:
        TrainingError: if there is too little to learn from.
    """
    serialized = disable_tuner(tf.data.TFRecordDataset(sorted(patterns), compression))
    sample = serialized.filter(make_sampler(MAX_IMAGES, total))
    examples = map(tfrecord.decode_example, sample.as_numpy_iterator())
    rows = [(example.get("label", []), read_group(example.get("group"))) for example in examples]
    groups = _number([group[0] if group else f"image {i}" for i, (_, group) in enumerate(rows)])
    if len(set(groups.tolist())) < FOLDS:
        raise TrainingError(
            f"The train split has {len(set(groups.tolist()))} images or groups: at least {FOLDS} needed"
        )
    if task == "regression":
        return Images(sample, np.array([label for label, _ in rows], np.float32), groups, task, 1, total)
    names = sorted({value for labels, _ in rows for value in labels})
    numbers = {name: number for number, name in enumerate(names)}
    if not names:
        raise TrainingError("No image of the train split has a label: there is nothing to learn")
    if task == "classification":
        if len(names) < 2:
            raise TrainingError("The train split has one class only: there is nothing to distinguish")
        return Images(sample, np.array([numbers[label] for (label,), _ in rows]), groups, task, len(names), total)
    targets = np.zeros((len(rows), len(names)), np.uint8)
    for row, (labels, _) in zip(targets, rows, strict=True):
        row[[numbers[label] for label in labels]] = 1
    return Images(sample, np.packbits(targets, axis=1), groups, task, len(names), total)


def _number(keys: Sequence[Any]) -> np.ndarray:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def probe_candidate(candidate: Candidate, images: Images) -> Probed:
    """Returns the result of a backbone.

    Raises:
        WeightsError: if its weights can't be loaded, or don't give features of the images.
    """
    _log.info("%s at %d pixels, %d images", candidate.backbone, candidate.size[0], len(images.targets))
    keras.utils.clear_session()
    try:
        backbone = load_backbone(TrainerConfig(backbone=candidate.backbone, weights=candidate.weights), candidate.size)
        features, milliseconds = _compute_features(images.serialized, backbone, candidate.size)
    except WeightsError:
        raise
    except (ValueError, tf.errors.OpError) as error:  # a size that Keras refuses, too little memory
        height, width = candidate.size
        raise WeightsError(
            f"{candidate.backbone} from {candidate.weights} can't be used at {width} by {height} pixels: "
            f"{shorten(describe_error(error), 300)}"
        ) from error
    if not np.isfinite(features).all():
        raise WeightsError(f"{candidate.backbone} from {candidate.weights} gives features that are no numbers")
    predicted = predict_out_of_fold(features, images.targets, images.task, images.outputs, images.groups)
    values = _judge(predicted, images.targets, images.task)
    low, high = np.percentile(_resample(values, images.groups), [2.5, 97.5])
    interval = float(low), float(high)
    return Probed(candidate, float(values.mean()), interval, milliseconds, backbone.count_params(), values)


def _compute_features(serialized: tf.data.Dataset, backbone: Any, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Returns the features, float16 ``[n, d]``, and the milliseconds per image that the backbone took."""
    forward = tf.function(lambda images: backbone(images, training=False), reduce_retracing=True)
    spec = {"input": tf.io.FixedLenFeature([], tf.string)}
    batches = serialized.batch(_BATCH).map(
        lambda records: decode_and_resize(tf.io.parse_example(records, spec)["input"], size), num_parallel_calls=CORES
    )
    features, times = [], []
    for images in batches:  # not prefetched: decoding would take the backbone's time
        start = time.perf_counter()
        features.append(round_to_half(forward(images).numpy()))
        times.append(1000 * (time.perf_counter() - start) / len(images))
    return np.concatenate(features), statistics.median(times[1:] or times)  # the first one builds the graph


def _judge(predicted: np.ndarray, targets: np.ndarray, task: TaskName) -> np.ndarray:
    match task:
        case "classification":
            return (predicted.argmax(axis=1) == targets).astype(float)
        case "multilabel":
            labels = np.unpackbits(targets, axis=1, count=predicted.shape[1])
            return ((predicted > 0.5) == (labels > 0)).mean(axis=1)
        case "regression":
            return np.abs(predicted - targets)[:, 0].astype(float)


def _resample(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the means of samples of the groups with replacement (the bootstrap, Efron 1979), always the same ones."""
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    random = np.random.default_rng(0)
    drawn = (random.integers(0, len(sums), len(sums)) for _ in range(_RESAMPLES))
    return np.array([sums[chosen].sum() / counts[chosen].sum() for chosen in drawn])


def choose_cheapest(results: Sequence[Probed], images: Images) -> Probed:
    """Returns the fastest backbone that is no worse than the best beyond chance.

    That is, the 95 % interval of the difference, image by image, holds zero.
    """
    sign = -1 if images.task == "regression" else 1
    best = max(results, key=lambda result: sign * result.value)
    within = [
        result
        for result in results
        if np.percentile(_resample(sign * (best.values - result.values), images.groups), 2.5) <= 0
    ]
    return min(within, key=lambda result: result.milliseconds)
