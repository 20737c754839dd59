"""The phases of a training that starts from pretrained weights: the head on the frozen base, then the upper blocks.

Neither runs the layers that it doesn't train: their outputs are kept, see ``trainer.frozen``.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from imagepipe.base.features import IMAGE
from trainer.config import TrainerConfig
from trainer.frozen import keep_what_fits
from trainer.inputs import LoadedSplit
from trainer.linear_probe import MAX_ROWS, fit_probe
from trainer.network import Network, get_last_frozen_layer, split_base, unfreeze_after
from trainer.phase import Phase

_log = logging.getLogger("trainer")


def list_transfer_phases(
    network: Network,
    train: LoadedSplit,
    validation: LoadedSplit,
    config: TrainerConfig,
    folder: Path,
    class_weights: np.ndarray | None,
) -> tuple[list[Callable[[], Phase]], list[str]]:
    """Lists the phases; see ``schedule.run_schedule`` for the arguments.

    Returns:
        Functions that start each phase: they freeze the layers that the phase doesn't train. And the names of the
        outputs that are kept.
    """
    last_frozen = get_last_frozen_layer(config)
    lower, upper = split_base(network.base, last_frozen)
    below = lower(network.scaling.output)
    outputs = {"features": network.pool(upper(below)), "boundary": below}
    if (boundary := lower.layers[-1].name) != last_frozen:
        _log.info("connections lead round %s: the outputs of %s can be kept", last_frozen, boundary)
    kept = keep_what_fits(network.scaling.input, outputs, train, validation, config, folder)

    def define_phase(name: str, model: keras.Model, output: str, epochs: int, rate: float) -> Phase:
        kept_train, kept_validation = kept[output]
        views = kept_train.count // train.count
        return Phase(name, model, model.variables, kept_train, kept_validation, False, epochs, rate, views)

    def start_head() -> Phase:
        network.base.trainable = False
        rate = config.learning_rate
        if "features" not in kept:
            augmented, variables = config.augmentation.is_on, network.head.variables
            return Phase("head", network.model, variables, train, validation, augmented, config.head_epochs, rate)
        if start_from_probe(network.head, kept["features"][0], train.count, class_weights):
            rate = config.fine_tune_learning_rate  # one made for random weights would undo that
        return define_phase("head", network.head, "features", config.head_epochs, rate)

    def start_upper_blocks() -> Phase:
        unfreeze_after(network.base, last_frozen)
        rate = config.fine_tune_learning_rate
        if "boundary" not in kept:
            model, augmented = network.model, config.augmentation.is_on
            return Phase("upper blocks", model, model.variables, train, validation, augmented, config.epochs, rate)
        return define_phase("upper blocks", _build_upper(network, upper), "boundary", config.epochs, rate)

    return [start_head, start_upper_blocks], list(kept)


def _build_upper(network: Network, upper: keras.Model) -> keras.Model:
    """Returns the network from its boundary on: like ``network.model``, but its ``image`` is what ``upper`` takes."""
    boundary = keras.Input(upper.input.shape[1:], dtype=upper.input.dtype, name=IMAGE)
    inputs = network.model.input | {IMAGE: boundary}
    return keras.Model(inputs, network.head(inputs | {IMAGE: network.pool(upper(boundary))}), name="upper_blocks")


def start_from_probe(head: keras.Model, features: LoadedSplit, count: int, class_weights: np.ndarray | None) -> bool:
    """Gives a linear head the weights of a linear probe.

    Args:
        head: see ``network.Network``.
        features: of views of the images to train on, the images themselves first.
        count: number of these images.
        class_weights: see ``steps.make_train_step``.

    Returns:
        Whether it has: a head with a hidden layer or side features is left as it is.
    """
    logits, task = head.get_layer("logits"), features.task
    if features.side or any(layer.name == "hidden" for layer in head.layers):
        return False
    rows = np.arange(min(features.count, MAX_ROWS))
    if features.count > MAX_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(features.count, MAX_ROWS, replace=False))
    targets = features.targets[rows]
    importance = None if class_weights is None else task.encode(targets).numpy() @ class_weights
    originals = int(np.searchsorted(rows, count))
    probe = fit_probe(features.images.read(rows), targets, task.name, task.outputs, importance, originals)
    logits.set_weights([probe.weights, probe.bias])
    return True
