"""The phases of a training that starts from pretrained weights: the head on the frozen base, then the upper blocks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from imagepipe.base.features import IMAGE
from imagepipe.base.full_disk import measure_full_disk
from trainer.config import TrainerConfig
from trainer.inputs import ArrayFile, LoadedSplit, make_batches
from trainer.network import Network, get_last_frozen_layer, unfreeze_after
from trainer.phase import Phase

_PREFETCHED = 2  # batches


def list_transfer_phases(
    network: Network, train: LoadedSplit, validation: LoadedSplit, config: TrainerConfig, folder: Path
) -> list[Callable[[], Phase]]:
    """Returns functions that start each phase: they freeze the layers that the phase doesn't train."""
    augmented = config.augmentation.is_on

    def start_head() -> Phase:
        network.base.trainable = False
        epochs, rate = config.head_epochs, config.learning_rate
        if augmented:
            return Phase("head", network.model, network.head.variables, train, validation, True, epochs, rate)
        # Without augmentation the frozen base computes the same features in each epoch: once is enough.
        cached = [
            cache_backbone_features(network, split, config.batch_size, folder / name)
            for name, split in (("train.features", train), ("validation.features", validation))
        ]
        return Phase("head", network.head, network.head.variables, cached[0], cached[1], False, epochs, rate)

    def start_upper_blocks() -> Phase:
        unfreeze_after(network.base, get_last_frozen_layer(config))
        model, rate = network.model, config.fine_tune_learning_rate
        return Phase("upper blocks", model, model.variables, train, validation, augmented, config.epochs, rate)

    return [start_head, start_upper_blocks]


def cache_backbone_features(network: Network, split: LoadedSplit, batch_size: int, path: Path) -> LoadedSplit:
    """Returns a split with cached backbone features in place of its images; writes them to ``path``."""
    forward = tf.function(lambda images: network.pooled(images, training=False), reduce_retracing=True)
    features = ArrayFile(path, network.pooled.output_shape[1:], np.dtype(np.float32))
    with (
        measure_full_disk(path, "the cached backbone features", lambda: split.count * features.row_bytes),
        path.open("wb") as file,
    ):
        # Not in the dataset's map, which runs on CPUs only.
        for batch, _ in make_batches(split, batch_size).prefetch(_PREFETCHED):
            file.write(forward(batch[IMAGE]).numpy().data)
    return LoadedSplit(features, split.side, split.targets, split.task)
