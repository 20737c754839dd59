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
from trainer.frozen import choose_kept, count_views, keep_what_fits
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
    all_views, is_linear = count_views(config), is_linear_head(network.head)
    # A linear head starts from the best weights for the images themselves: features of augmented views would take
    # longer than all that comes before, and the upper blocks learn from these views anyhow.
    views = {"features": min(1, all_views) if is_linear else all_views, "boundary": all_views}
    rows = {name: (output, views[name] * train.count + validation.count) for name, output in outputs.items()}
    chosen = choose_kept(rows, folder) if all_views else []

    def keep(names: list[str], count: int) -> dict[str, tuple[LoadedSplit, LoadedSplit]]:
        model_outputs = {name: outputs[name] for name in names}
        return keep_what_fits(network.scaling.input, model_outputs, count, train, validation, config, folder)

    def start_head() -> Phase:
        network.base.trainable = False
        rate = config.learning_rate
        kept = keep(chosen, views["features"])
        if "features" not in kept:
            augmented, variables = config.augmentation.is_on, network.head.variables
            return Phase("head", network.model, variables, train, validation, augmented, config.head_epochs, rate)
        features, judged = kept["features"]
        if is_linear:
            start_from_probe(network.head, features, class_weights)
            rate = config.fine_tune_learning_rate  # one made for random weights would undo that
        model = network.head
        return Phase(
            "head", model, model.variables, features, judged, False, config.head_epochs, rate, views["features"]
        )

    def start_upper_blocks() -> Phase:
        unfreeze_after(network.base, last_frozen)
        name, rate, model = "upper blocks", config.fine_tune_learning_rate, network.model
        kept = keep([name for name in chosen if name == "boundary"], all_views)
        if not kept:
            augmented = config.augmentation.is_on
            return Phase(name, model, model.variables, train, validation, augmented, config.epochs, rate)
        trained, judged = kept["boundary"]
        model = _build_upper(network, upper)
        return Phase(name, model, model.variables, trained, judged, False, config.epochs, rate, all_views)

    return [start_head, start_upper_blocks], chosen


def _build_upper(network: Network, upper: keras.Model) -> keras.Model:
    """Returns the network from its boundary on: like ``network.model``, but its ``image`` is what ``upper`` takes."""
    boundary = keras.Input(upper.input.shape[1:], dtype=upper.input.dtype, name=IMAGE)
    inputs = network.model.input | {IMAGE: boundary}
    return keras.Model(inputs, network.head(inputs | {IMAGE: network.pool(upper(boundary))}), name="upper_blocks")


def is_linear_head(head: keras.Model) -> bool:
    """Returns whether a head takes features alone, and has no hidden layer."""
    return list(head.input) == [IMAGE] and all(layer.name != "hidden" for layer in head.layers)


def start_from_probe(head: keras.Model, features: LoadedSplit, class_weights: np.ndarray | None) -> None:
    """Gives a linear head the weights of a linear probe.

    Args:
        head: see ``network.Network``.
        features: of the images to train on.
        class_weights: see ``steps.make_train_step``.
    """
    task = features.task
    rows = np.arange(min(features.count, MAX_ROWS))
    if features.count > MAX_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(features.count, MAX_ROWS, replace=False))
    targets = features.targets[rows]
    importance = None if class_weights is None else task.encode(targets).numpy() @ class_weights
    probe = fit_probe(features.images.read(rows), targets, task.name, task.outputs, importance)
    head.get_layer("logits").set_weights([probe.weights, probe.bias])
