"""Outputs of frozen layers: computed once for each view of an image, and kept in files in 16 bits.

Layers that are not trained give the same for the same pixels in each epoch. So a number of augmented views of each
image is drawn once, in place of a new one in each epoch, and an epoch runs the other layers only.
"""

import logging
import math
import operator
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.features import IMAGE
from imagepipe.base.full_disk import is_full_disk, measure_full_disk
from trainer.augmentation import augment_batches
from trainer.checkpoint import read_kept
from trainer.config import MAX_VIEWS, TrainerConfig
from trainer.inputs import ArrayFile, LoadedSplit, make_batches
from trainer.steps import format_duration

_log = logging.getLogger("trainer")

_SUFFIX = ".kept"
_HALF = np.dtype(np.float16)
_PREFETCHED = 2  # batches
_LOG_SECONDS = 5.0


def count_views(config: TrainerConfig) -> int:
    """Returns of how many views of each image outputs are kept, the image itself among them; 0 if none can be."""
    augmentation = config.augmentation
    if augmentation.mixup or augmentation.cutmix:
        _log.info("MixUp and CutMix mix pixels of different images: all layers run in each epoch")
        return 0
    if not augmentation.is_on:
        return 1 if config.views is None else min(1, config.views)
    return min(config.epochs, MAX_VIEWS) if config.views is None else config.views


def choose_kept(
    outputs: dict[str, tuple[keras.KerasTensor, int]], folder: Path, identity: Mapping[str, Any]
) -> list[str]:
    """Chooses those outputs that fit into half of the room on a disk, and tells how much they take.

    A training that has a state keeps what it has kept so far, whatever room there is by now: the weights depend on it.

    Args:
        outputs: by name, those that matter most first, each with the number of views of all images.
        folder: where they will be kept, with the state; those that are there already count as room, also those of a
            refit below, and are kept if they are whole.
        identity: of the training, see ``checkpoint.read_kept``.
    """
    if (names := read_kept(folder, identity)) is not None:
        return [name for name in outputs if name in names]
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.rglob(f"*{_SUFFIX}"))
    room, kept, total = free // 2, dict[str, int](), 0
    for name, (output, rows) in outputs.items():
        size = rows * _HALF.itemsize * math.prod(output.shape[1:])
        stored = sum(path.stat().st_size for path in folder.glob(f"*.{name}{_SUFFIX}"))
        if total + size > room and stored < size:
            _log.warning(
                "%s %.0f MB, and half of the room in %s is %.0f MB: they are computed in each epoch. Make room, or set "
                "trainer.views to less",
                *(f"the outputs of {name} for {rows} views would take", size / 1e6, folder, room / 1e6),
            )
            continue
        kept[name] = rows
        total += size
    if kept:
        listed = " and ".join(f"{name} for {rows} views" for name, rows in kept.items())
        _log.info("keeping the outputs of %s: %.1f MB in %s", listed, total / 1e6, folder)
    return list(kept)


def keep_what_fits(
    images: keras.KerasTensor,
    outputs: dict[str, keras.KerasTensor],
    views: int,
    train: LoadedSplit,
    validation: LoadedSplit,
    config: TrainerConfig,
    folder: Path,
) -> dict[str, tuple[LoadedSplit, LoadedSplit]]:
    """Keeps those outputs of which views fit on a disk; what turns out not to is removed, and the log says so.

    Args:
        images: from which the outputs are computed.
        outputs: by name, those that matter most first.
        views: how many are kept of each image of ``train``.
        train: the images to train on.
        validation: the images of which one view is kept.
        config: see ``keep_outputs``.
        folder: for the files.

    Returns:
        Of each output that is kept, what ``keep_outputs`` returns for ``train`` and ``validation``.
    """
    names = list(outputs)
    while names:
        model = keras.Model(images, {name: outputs[name] for name in names})
        try:
            kept = keep_outputs(model, train, views, config, folder / "train")
            kept_validation = keep_outputs(model, validation, 1, config, folder / "validation")
        except OSError as error:
            if not is_full_disk(error):
                raise
            dropped = names.pop()
            for path in folder.glob(f"*.{dropped}{_SUFFIX}"):
                path.unlink()
            _log.warning("the outputs of %s are not kept, and are computed in each epoch: %s", dropped, error)
        else:
            return {name: (kept[name], kept_validation[name]) for name in names}
    return {}


def remove_kept(folder: Path) -> None:
    """Removes the outputs that a training has kept, which has ended."""
    for path in folder.glob(f"*{_SUFFIX}"):
        path.unlink()


def keep_outputs(
    model: keras.Model, split: LoadedSplit, views: int, config: TrainerConfig, prefix: Path
) -> dict[str, LoadedSplit]:
    """Computes a model's outputs for views of each image; the first is the image itself, the others are augmented.

    Args:
        model: from images, uint8 ``[n, height, width, 3]``, to outputs by name, floats ``[n, …]``.
        split: the images.
        views: 1 or more.
        config: augmentation, seed and the size of a batch.
        prefix: of the files' paths. The views that are there of each output are used, and the others added.

    Returns:
        For each output a split with it, float16, in place of the images: one view of all images after the other.

    Raises:
        OSError: if the disk is full.
    """
    files = {
        name: ArrayFile(prefix.with_name(f"{prefix.name}.{name}{_SUFFIX}"), tuple(output.shape[1:]), _HALF)
        for name, output in model.output.items()
    }
    sizes = {name: split.count * file.row_bytes for name, file in files.items()}  # of one view
    done = min(file.path.stat().st_size // sizes[name] if file.path.exists() else 0 for name, file in files.items())
    if done < views:
        with ExitStack() as stack:
            writers = {}
            for name, file in files.items():
                whole = partial(operator.mul, sizes[name], views)
                stack.enter_context(measure_full_disk(file.path, f"the outputs of {name}", whole))
                writers[name] = stack.enter_context(file.path.open("ab"))
                writers[name].truncate(sizes[name] * done)  # a view that a kill left unfinished
            for outputs in compute_outputs(model, split, range(done, views), config):
                for name, output in outputs.items():
                    writers[name].write(output.numpy().data)
    side = {name: np.tile(values, views) for name, values in split.side.items()}
    targets = np.tile(split.targets, (views, *[1] * (split.targets.ndim - 1)))
    return {name: LoadedSplit(file, side, targets, split.task) for name, file in files.items()}


def compute_outputs(
    model: keras.Model, split: LoadedSplit, views: range, config: TrainerConfig
) -> Iterator[dict[str, tf.Tensor]]:
    """Yields a model's outputs, batch by batch and view by view, in 16 bits; see ``keep_outputs``."""
    forward = tf.function(
        lambda images: {name: tf.saturate_cast(x, tf.float16) for name, x in model(images, training=False).items()},
        reduce_retracing=True,
    )
    steps = math.ceil(split.count / config.batch_size)
    start = logged = time.perf_counter()
    for done, view in enumerate(views):
        batches = make_batches(split, config.batch_size)
        if view:
            batches = augment_batches(batches, config.augmentation, config.seed, view * steps)
        # Not in the dataset's map, which runs on CPUs only.
        for step, (inputs, _) in enumerate(batches.prefetch(_PREFETCHED), done * steps + 1):
            yield forward(inputs[IMAGE])
            now = time.perf_counter()
            if now - logged >= _LOG_SECONDS:
                logged = now
                left = format_duration((now - start) / step * (len(views) * steps - step))
                _log.info("computing what is kept: step %d of %d, %s left", step, len(views) * steps, left)
