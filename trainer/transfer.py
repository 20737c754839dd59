"""The phases of a training that starts from pretrained weights: the head on the frozen base, then the upper blocks.

Neither runs the layers that it doesn't train: their outputs are kept, see ``trainer.frozen``.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.features import IMAGE
from trainer.config import TrainerConfig
from trainer.frozen import choose_kept, compute_outputs, count_views, keep_what_fits
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
    identity: Mapping[str, Any],
) -> tuple[list[Callable[[], Phase]], list[str]]:
    """Lists the phases; see ``schedule.run_schedule`` for the arguments, and ``checkpoint.read_kept`` for the identity.

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
    chosen = choose_kept(rows, folder, identity) if all_views else []

    def keep(names: list[str], count: int) -> dict[str, tuple[LoadedSplit, LoadedSplit]]:
        model_outputs = {name: outputs[name] for name in names}
        return keep_what_fits(network.scaling.input, model_outputs, count, train, validation, config, folder)

    image = network.model.input[IMAGE]

    def read_features(rows: np.ndarray) -> np.ndarray:
        """Computes those of some images to train on, in memory: where none are kept."""
        model = keras.Model(network.scaling.input, {"features": outputs["features"]})
        batches = compute_outputs(model, train.select(rows), range(1), config)
        return np.concatenate([batch["features"].numpy() for batch in batches])

    def start_head() -> Phase:
        network.base.trainable = False
        kept = keep(chosen, views["features"]).get("features")
        rate = config.learning_rate
        if is_linear:
            start_from_probe(network.head, train, kept[0].images.read if kept else read_features, class_weights)
            rate = config.fine_tune_learning_rate  # one made for random weights would undo that
        if not kept:
            model = _build_rest(network, image, _InferenceMode(network.pooled)(image))
            variables, augmented = network.head.variables, config.augmentation.is_on
            return Phase("head", model, variables, train, validation, augmented, config.head_epochs, rate)
        (features, judged), model = kept, network.head
        return Phase(
            "head", model, model.variables, features, judged, False, config.head_epochs, rate, views["features"]
        )

    def start_upper_blocks() -> Phase:
        unfreeze_after(network.base, last_frozen)
        name, rate = "upper blocks", config.fine_tune_learning_rate
        kept = keep([name for name in chosen if name == "boundary"], all_views)
        if not kept:
            boundary = _InferenceMode(keras.Model(network.scaling.input, below))(image)
            model = _build_rest(network, image, network.pool(upper(boundary)))
            augmented = config.augmentation.is_on
            return Phase(name, model, model.variables, train, validation, augmented, config.epochs, rate)
        trained, judged = kept["boundary"]
        boundary = keras.Input(upper.input.shape[1:], dtype=upper.input.dtype, name=IMAGE)
        model = _build_rest(network, boundary, network.pool(upper(boundary)))
        return Phase(name, model, model.variables, trained, judged, False, config.epochs, rate, all_views)

    return [start_head, start_upper_blocks], chosen


class _InferenceMode(keras.layers.Layer):
    """Frozen layers, in inference mode also within a model that is trained: what dropout made of them would differ."""

    def __init__(self, frozen: keras.Model):
        super().__init__(autocast=False)
        self._frozen = frozen

    def call(self, image: tf.Tensor) -> tf.Tensor:
        """Returns what the frozen layers make of an image."""
        return self._frozen(image, training=False)


def _build_rest(network: Network, image: keras.KerasTensor, pooled: keras.KerasTensor) -> keras.Model:
    """Returns the network with ``image`` in place of its own one, of which something else made the pooled features."""
    inputs = network.model.input | {IMAGE: image}
    model = keras.Model(inputs, network.head(inputs | {IMAGE: pooled}))
    model.dtype_policy = network.model.dtype_policy  # by which the optimizer knows whether losses have to be scaled
    return model


def is_linear_head(head: keras.Model) -> bool:
    """Returns whether a head takes features alone, and has no hidden layer."""
    return list(head.input) == [IMAGE] and all(layer.name != "hidden" for layer in head.layers)


def start_from_probe(
    head: keras.Model,
    train: LoadedSplit,
    read_features: Callable[[np.ndarray], np.ndarray],
    class_weights: np.ndarray | None,
) -> None:
    """Gives a linear head the weights of a linear probe.

    Args:
        head: see ``network.Network``.
        train: the images to train on.
        read_features: returns the features of some of them, floats ``[n, d]``, by their indices.
        class_weights: see ``steps.make_train_step``.
    """
    task = train.task
    rows = np.arange(min(train.count, MAX_ROWS))
    if train.count > MAX_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(train.count, MAX_ROWS, replace=False))
    targets = train.targets[rows]
    importance = None if class_weights is None else task.encode(targets).numpy() @ class_weights
    groups = None if train.groups is None else train.groups[rows]
    if task.name == "regression":
        targets = task.standardize(targets.astype(np.float64))
    probe = fit_probe(read_features(rows), targets, task.name, task.outputs, groups, importance)
    head.get_layer("logits").set_weights([probe.weights, probe.bias])
