"""Outputs of frozen layers: computed once for each view of an image, and kept in files in 16 bits.

Layers that are not trained give the same for the same pixels in each epoch. So a number of augmented views of each
image is drawn once, in place of a new one in each epoch, and an epoch runs the other layers only.
"""

import logging
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.features import IMAGE
from imagepipe.base.full_disk import is_full_disk, measure_full_disk
from trainer.augmentation import augment_batches
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


def choose_kept(outputs: dict[str, keras.KerasTensor], rows: int, folder: Path) -> list[str]:
    """Chooses those outputs that fit into half of the room on a disk, and tells how much they take.

    Args:
        outputs: by name, those that matter most first.
        rows: number of views of all images.
        folder: where they will be kept; those that are there already count as room.
    """
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.glob(f"*{_SUFFIX}"))
    room, kept, total = free // 2, list[str](), 0
    for name, output in outputs.items():
        size = rows * _HALF.itemsize * math.prod(output.shape[1:])
        if total + size > room:
            _log.warning(
                "%s %.0f MB, and half of the room in %s is %.0f MB: they are computed in each epoch. Make room, or set "
                "trainer.views to less",
                *(f"the outputs of {name} for {rows} views would take", size / 1e6, folder, room / 1e6),
            )
            continue
        kept.append(name)
        total += size
    if kept:
        _log.info(
            "keeping the outputs of %s for %d views: %.1f MB in %s", " and ".join(kept), rows, total / 1e6, folder
        )
    return kept


def keep_what_fits(
    images: keras.KerasTensor,
    outputs: dict[str, keras.KerasTensor],
    train: LoadedSplit,
    validation: LoadedSplit,
    config: TrainerConfig,
    folder: Path,
) -> dict[str, tuple[LoadedSplit, LoadedSplit]]:
    """Keeps those outputs of which views fit on a disk; what turns out not to is removed, and the log says so.

    Args:
        images: from which the outputs are computed.
        outputs: see ``choose_kept``.
        train: the images of which ``count_views`` views are kept.
        validation: the images of which one view is kept.
        config: see ``keep_outputs``.
        folder: for the files.

    Returns:
        Of each output that is kept, what ``keep_outputs`` returns for ``train`` and ``validation``.
    """
    views = count_views(config)
    names = choose_kept(outputs, views * train.count + validation.count, folder) if views else []
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


def keep_outputs(
    model: keras.Model, split: LoadedSplit, views: int, config: TrainerConfig, prefix: Path
) -> dict[str, LoadedSplit]:
    """Computes a model's outputs for views of each image; the first is the image itself, the others are augmented.

    Args:
        model: from images, uint8 ``[n, height, width, 3]``, to outputs by name, floats ``[n, …]``.
        split: the images.
        views: 1 or more.
        config: augmentation, seed and the size of a batch.
        prefix: of the files' paths. Those that are there and whole are used.

    Returns:
        For each output a split with it, float16, in place of the images: one view of all images after the other.

    Raises:
        OSError: if the disk is full.
    """
    files = {
        name: ArrayFile(prefix.with_name(f"{prefix.name}.{name}{_SUFFIX}"), tuple(output.shape[1:]), _HALF)
        for name, output in model.output.items()
    }
    rows = views * split.count
    sizes = {name: rows * file.row_bytes for name, file in files.items()}
    if not all(file.path.is_file() and file.path.stat().st_size == sizes[name] for name, file in files.items()):
        unfinished = {name: file.path.with_suffix(".partial") for name, file in files.items()}
        with ExitStack() as stack:
            for name, path in unfinished.items():
                stack.enter_context(measure_full_disk(path, f"the outputs of {name}", partial(sizes.__getitem__, name)))
            writers = {name: stack.enter_context(path.open("wb")) for name, path in unfinished.items()}
            for outputs in _compute_outputs(model, split, views, config):
                for name, output in outputs.items():
                    writers[name].write(output.numpy().data)
        for name, path in unfinished.items():
            path.replace(files[name].path)
    side = {name: np.tile(values, views) for name, values in split.side.items()}
    targets = np.tile(split.targets, (views, *[1] * (split.targets.ndim - 1)))
    return {name: LoadedSplit(file, side, targets, split.task) for name, file in files.items()}


def _compute_outputs(
    model: keras.Model, split: LoadedSplit, views: int, config: TrainerConfig
) -> Iterator[dict[str, tf.Tensor]]:
    forward = tf.function(
        lambda images: {name: tf.saturate_cast(x, tf.float16) for name, x in model(images, training=False).items()},
        reduce_retracing=True,
    )
    steps = math.ceil(split.count / config.batch_size)
    start = logged = time.perf_counter()
    for view in range(views):
        batches = make_batches(split, config.batch_size)
        if view:
            batches = augment_batches(batches, config.augmentation, config.seed, view * steps)
        # Not in the dataset's map, which runs on CPUs only.
        for step, (inputs, _) in enumerate(batches.prefetch(_PREFETCHED), view * steps + 1):
            yield forward(inputs[IMAGE])
            now = time.perf_counter()
            if now - logged >= _LOG_SECONDS:
                logged = now
                left = format_duration((now - start) / step * (views * steps - step))
                _log.info("computing what is kept: step %d of %d, %s left", step, views * steps, left)
