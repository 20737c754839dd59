"""The data of a training: loads it, checks that there is something to learn, and sets a part aside to choose on."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from imagepipe.base import tfrecord
from imagepipe.base.errors import TrainingError
from imagepipe.base.features import MISSING_FLAG, TARGET, TRANSFORMED, Features, parse_features, read_group
from imagepipe.base.labels import describe_unknown, list_names
from trainer.config import FnArgs, TrainerConfig, list_thresholds
from trainer.inputs import LoadedSplit, load_split
from trainer.tasks import Task, make_task, measure_targets
from transform.examples import Transformed, load_graph, make_parser, read_output_names, read_shards

_log = logging.getLogger("trainer")

_HASH = "hash"  # a split's array beside its side features while it is loaded; theirs have prefixes
_HASH_BITS = 62
_MIN_VALIDATION = 20  # with fewer images, one of them moves the accuracy by more than five points

_LEVELS = np.arange(256)  # of uint8 pixels


@dataclass(frozen=True)
class TrainingData:
    """The task and the images, which all trainings of a search share.

    Attributes:
        task: what is learned.
        output_names: names of the task's outputs.
        image_size: (height, width) in pixels.
        side: the side features, see ``network.build_network``.
        train: the images to train on: the train split without those that are set aside.
        validation: the images to choose on: those of the train split that are set aside, or else the eval split.
        is_set_aside: whether ``validation`` is a part of the train split, so that the eval split has no part in
            training at all.
    """

    task: Task
    output_names: list[str]
    image_size: tuple[int, int]
    side: dict[str, int | None]
    train: LoadedSplit
    validation: LoadedSplit
    is_set_aside: bool


class PixelStatistics(NamedTuple):
    """Mean and variance of pixels 0 to 255, for red, green and blue."""

    mean: tuple[float, ...]
    variance: tuple[float, ...]


def load_data(fn_args: FnArgs, config: TrainerConfig, folder: Path) -> TrainingData:
    """Loads the data, checks that there is something to learn, and sets images aside for validation.

    Args:
        fn_args: see ``FnArgs``.
        config: settings that the data must fit.
        folder: an existing local folder for the pixels of this data; those that are there are used.

    Raises:
        TrainingError: if there is nothing to learn.
        ValueError: if the configuration names an unknown label.
    """
    custom = fn_args.custom_config
    features = parse_features(custom["features"])
    transform_output = tft.TFTransformOutput(fn_args.transform_graph_path)
    output_names = read_output_names(custom["task"], transform_output, features)
    task = make_task(custom["task"], len(output_names), config)
    list_thresholds(output_names, config.label_thresholds)  # refuses before training what can't be exported
    patterns = {"train": fn_args.train_files, "eval": fn_args.eval_files}
    _owner, transform = load_graph(transform_output)
    parse = make_parser(transform_output, features, with_label=True)

    def load(split: str) -> LoadedSplit:
        def transform_and_hash(serialized: tf.Tensor) -> Transformed:
            return transform(parse(serialized)) | {_HASH: hash_groups(serialized, features)}

        loaded = load_split(read_shards(patterns[split]), transform_and_hash, task, folder / f"{split}.pixels")
        return replace(loaded, groups=loaded.side.pop(_HASH))

    whole = load("train")
    spec = {features.label: transform_output.raw_feature_spec()[features.label]}
    pixel = tf.io.encode_png(tf.zeros([1, 1, 3], tf.uint8))

    def read_targets(serialized: tf.Tensor) -> tf.Tensor:
        raw = parse(serialized)
        image = raw[features.input]
        # One pixel for each image: the graph decodes them all, and only the targets are needed.
        is_sparse = isinstance(image, tf.SparseTensor)
        raw[features.input] = (
            image.with_values(tf.fill(tf.shape(image.values), pixel)) if is_sparse else tf.fill(tf.shape(image), pixel)
        )
        return task.compact(transform(raw)[TARGET])

    eval_targets = read_shards(patterns["eval"]).batch(256).map(read_targets)
    targets = {
        "train": whole.targets,
        "eval": np.concatenate([whole.targets[:0], *eval_targets.as_numpy_iterator()]),
    }
    check_targets(task, output_names, targets, lambda split: _count_raw_labels(patterns[split], features.label, spec))
    task = measure_targets(task, whole.targets)
    whole = replace(whole, task=task)
    side: dict[str, int | None] = {TRANSFORMED + name: None for name in features.numeric}
    outputs = transform_output.transformed_feature_spec()
    side |= {MISSING_FLAG + name: None for name in features.numeric if MISSING_FLAG + name in outputs}
    for name in features.categorical:
        values = transform_output.vocabulary_size_by_name(features.vocabulary(name))
        side[TRANSFORMED + name] = values + 1  # one for unseen values
    height, width = custom["image_size"]
    is_validation = choose_validation(task, whole.targets, np.asarray(whole.groups), config.validation)
    chosen = int(is_validation.sum())
    if is_set_aside := chosen >= _MIN_VALIDATION:
        train, validation = (whole.select(np.flatnonzero(part)) for part in (~is_validation, is_validation))
    else:
        why = f"only {chosen} of {whole.count} images of the train split would be set aside to choose on, and "
        why += f"{_MIN_VALIDATION} are the minimum"
        if not chosen:
            why = "no group of the train split can be set aside to choose on: a class or label, or all, would have "
            why += "none, or less than half of the images"
        _log.warning(
            "trainer.validation: %s: the eval split is used instead, so the metrics on it flatter the model a little",
            why,
        )
        if config.refit:
            _log.warning("trainer.refit has no effect: all of the train split is trained on already")
        train, validation = whole, load("eval")
    return TrainingData(task, output_names, (height, width), side, train, validation, is_set_aside)


def hash_groups(serialized: tf.Tensor, features: Features) -> tf.Tensor:
    """Returns a hash of each Example's group or, where it has none, of its image, int64 ``[n]``, 0 to 2**62 - 1."""

    def hash_record(record: bytes) -> int:
        example = tfrecord.decode_example(record)
        (value, *_) = read_group(example.get(features.group)) or example.get(features.input) or [b""]
        text = value if isinstance(value, bytes) else str(value).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> (64 - _HASH_BITS)

    def hash_records(records: np.ndarray) -> np.ndarray:
        return np.array([hash_record(record) for record in records], np.int64)

    return tf.ensure_shape(tf.numpy_function(hash_records, [serialized], tf.int64, stateful=False), [None])


def choose_validation(task: Task, targets: np.ndarray, hashes: np.ndarray, share: float) -> np.ndarray:
    """Chooses the images of the train split that are set aside for validation, by the hash of their group.

    Those with a hash below the share are, so that the choice depends on nothing but the group itself: it is the same in
    each run, and as the set grows. Of each class or label the group with the highest hash stays. Few groups may have
    none below the share, or most images: if less than half of the share or more than twice as much would be set aside,
    groups are taken by rising hash up to the share, without those that are too large. If all are, the smallest one is
    taken that leaves something of each class or label, whatever its hash, unless it has more than half of the images,
    or than twice the share.

    Args:
        task: of the targets.
        targets: compact targets of n images.
        hashes: of their groups, see ``hash_groups``.
        share: of the images.

    Returns:
        bool ``[n]``; no image if each group has all images of a class or label, or all that could be are too large.
    """
    is_free = ~np.isin(hashes, _list_last_groups(task, targets, hashes))
    groups, sizes = np.unique(hashes[is_free], return_counts=True)
    wanted = share * len(hashes)
    most = min(2 * wanted, (len(hashes) + wanted) / 2)  # at least half as many are trained on as the share leaves
    is_low = groups < share * 2**_HASH_BITS
    chosen = groups[is_low].tolist()
    if not wanted / 2 <= sizes[is_low].sum() <= most:
        chosen, taken = [], 0
        for group, size in zip(groups.tolist(), sizes.tolist(), strict=True):
            if taken < wanted and taken + size <= most:
                chosen.append(group)
                taken += size
        chosen = chosen or _find_smallest_group(task, targets, hashes, max(most, len(hashes) / 2))
    return np.isin(hashes, chosen)


def _find_smallest_group(task: Task, targets: np.ndarray, hashes: np.ndarray, most: float) -> list[int]:
    """Returns the hash of the smallest group without which each class or label has images; none if it has too many."""
    groups, sizes = np.unique(hashes, return_counts=True)
    present = _list_present(task, targets)
    for place in np.argsort(sizes, kind="stable"):
        if sizes[place] > most:
            break
        if np.array_equal(_list_present(task, targets[hashes != groups[place]]), present):
            return [int(groups[place])]
    return []


def _list_present(task: Task, targets: np.ndarray) -> np.ndarray:
    """Returns what tells which classes or labels any of the images has; of a regression the number of outputs."""
    match task.name:
        case "classification":
            return np.unique(targets)
        case "multilabel":
            return np.bitwise_or.reduce(targets, axis=0)
    return np.array(targets.shape[1:])


def _list_last_groups(task: Task, targets: np.ndarray, hashes: np.ndarray) -> list[int]:
    """Returns the highest hash of all, and of each class or label."""
    last = [hashes.max()]
    match task.name:
        case "classification":
            by_class = np.full(task.outputs, -1)
            np.maximum.at(by_class, targets, hashes)
            last += by_class.tolist()
        case "multilabel":
            for label in range(task.outputs):
                is_labelled = targets[:, label // 8] & (128 >> label % 8) > 0
                last += [hashes[is_labelled].max()] if is_labelled.any() else []
    return last


def _count_raw_labels(patterns: list[str], name: str, spec: dict[str, Any]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for batch in read_shards(patterns).batch(256):
        labels = tf.io.parse_example(batch, spec)[name]
        values = labels.values if isinstance(labels, tf.SparseTensor) else tf.reshape(labels, [-1])
        texts = values if values.dtype == tf.string else tf.strings.as_string(values)
        counts.update(text.decode(errors="replace") for text in texts.numpy())
    return counts


def check_targets(
    task: Task,
    output_names: list[str],
    targets_by_split: dict[str, np.ndarray],
    count_raw_labels: Callable[[str], Counter[str]],
) -> None:
    """Refuses splits from which nothing can be learned, or on which the network can't be evaluated.

    Args:
        task: what is to be learned.
        output_names: names of the task's outputs.
        targets_by_split: compact targets of ``train`` and ``eval``.
        count_raw_labels: counts the labels of a split as they are in the Examples; only called to name the wrong ones.

    Raises:
        TrainingError: if a split is empty, training has one class only, or examples have a class that is not in the
            train split, or no number to learn in a regression.
    """
    for name, targets in targets_by_split.items():
        if not len(targets):
            raise TrainingError(
                f"The {name} split is empty: nothing to {'train on' if name == 'train' else 'evaluate with'}. Ingest "
                "more images, or give it a larger share (imagepipe ingest --splits; data.split)."
            )
    if task.name == "classification" and len(output_names) < 2:
        raise TrainingError(
            f"The train split has one class only ('{output_names[0]}'): there is nothing to distinguish. Add images of "
            "another class, or set task to regression or multilabel."
        )
    for name, targets in targets_by_split.items():
        unusable = int(np.count_nonzero(~task.is_usable(targets)))
        if unusable and task.name == "classification":
            counts, classes = count_raw_labels(name), set(output_names)
            unseen = list_names([f"'{label}' ({counts[label]})" for label in sorted(counts.keys() - classes)])
            raise TrainingError(
                f"{unusable} of {len(targets)} images of the {name} split have "
                + (f"a class of which the train split has none: {unseen}" if unseen else "no class")
                + ". Add images of it to the train split, or remove these."
            )
        if unusable:
            raise TrainingError(
                f"{unusable} of {len(targets)} Examples of the {name} split have no finite number as their label. "
                "Correct or remove them."
            )


def compute_class_weights(
    setting: str | dict[str, float] | None, class_names: list[str], targets: np.ndarray
) -> np.ndarray | None:
    """Returns the weight of each class in the loss.

    Args:
        setting: ``balanced``: inverse to the class's share, 1 on average over the examples; or a weight by class, 1 for
            those not listed; or None.
        class_names: names of the classes.
        targets: of the train split, the indices of the classes, int32 ``[n]``.

    Returns:
        float32 ``[classes]``, or None if all count the same.

    Raises:
        TrainingError: if ``setting`` names an unknown class.
    """
    if setting is None:
        return None
    if isinstance(setting, dict):
        if message := describe_unknown(setting, class_names, "labels of the split train"):
            raise TrainingError(f"trainer.class_weights: {message}")
        return np.array([setting.get(name, 1) for name in class_names], np.float32)
    counts = np.bincount(targets, minlength=len(class_names))
    return (len(targets) / (len(class_names) * counts)).astype(np.float32)


def compute_pixel_statistics(images: Iterable[np.ndarray]) -> PixelStatistics:
    """Computes mean and variance of each channel over all pixels of all images.

    Pixels are counted by level, so nothing is rounded before the end and the order of the images does not matter.

    Args:
        images: batches of pixels, uint8 ``[n, height, width, 3]``: arrays, or a ``tf.data.Dataset`` of tensors.

    Raises:
        ValueError: if there are no pixels.
    """
    counts = np.zeros((3, len(_LEVELS)), np.int64)
    for batch in images:
        pixels = np.asarray(batch)
        for channel in range(3):
            counts[channel] += np.bincount(pixels[..., channel].ravel(), minlength=len(_LEVELS))
    n = int(counts[0].sum())
    if n == 0:
        raise ValueError("there are no images to compute the mean and the variance of")
    sums = [int(total) for total in counts @ _LEVELS]
    squares = [int(total) for total in counts @ _LEVELS**2]
    # Integers without bounds, and one division: exact to the last bit of a float.
    return PixelStatistics(
        tuple(a / n for a in sums), tuple((n * b - a * a) / (n * n) for a, b in zip(sums, squares, strict=True))
    )
