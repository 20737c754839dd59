"""The network: InceptionV3 on pixels, a head on its features and on side features."""

from collections.abc import Mapping

import keras

from trainer.config import IMAGENET, NO_WEIGHTS, TrainerConfig
from trainer.weights import WeightsError
from transform.features import IMAGE

_SIDE_UNITS = 20
_HEAD_UNITS = 1024
_DEFAULT_MOMENTUM = 0.99  # Keras's


def build(
    image_size: tuple[int, int],
    classes: int,
    side: Mapping[str, int | None],
    config: TrainerConfig,
    activation: str = "softmax",
) -> tuple[keras.Model, keras.Model]:
    """Builds the classifier.

    Args:
        image_size: (height, width) in pixels, 75 or more each (InceptionV3's least).
        classes: number of classes.
        side: the side features by name: None for a numeric one, for a categorical one its number of values.
        config: says where the base's weights come from.
        activation: of the output layer.

    Returns:
        The model, from a dict of ``image`` uint8 ``[n, height, width, 3]`` and side features ``[n]`` (float32 or int64)
        to probabilities float32 ``[n, classes]``; and its base, from which fine-tuning unfreezes layers.

    Raises:
        WeightsError: if the weights can't be had or don't fit.
    """
    image = keras.Input((*image_size, 3), dtype="uint8", name=IMAGE)
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1, name="scale")(image)  # to [-1, 1], as InceptionV3 was trained
    base = _base(image_size, config.weights)
    # With given weights BatchNormalization stays in inference mode also while its layers are fine-tuned: statistics of
    # small batches would undo what the weights know (Keras's transfer learning guide).
    features = base(scaled) if config.weights == NO_WEIGHTS else base(scaled, training=False)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(features)

    side_inputs: dict[str, keras.KerasTensor] = {}
    encoded = []
    for i, (name, values) in enumerate(side.items()):
        if values is None:
            side_inputs[name] = keras.Input((), dtype="float32", name=name)
            encoded.append(keras.layers.Reshape((1,), name=f"numeric_{i}")(side_inputs[name]))
        else:
            side_inputs[name] = keras.Input((), dtype="int64", name=name)
            one_hot = keras.layers.CategoryEncoding(values, output_mode="one_hot", name=f"categorical_{i}")
            encoded.append(one_hot(side_inputs[name]))
    if encoded:
        joined = encoded[0] if len(encoded) == 1 else keras.layers.Concatenate(name="side")(encoded)
        reduced = keras.layers.Dense(_SIDE_UNITS, activation="relu", name="side_dense")(joined)
        pooled = keras.layers.Concatenate(name="image_and_side")([pooled, reduced])

    hidden = keras.layers.Dense(_HEAD_UNITS, activation="relu", name="head")(pooled)
    probabilities = keras.layers.Dense(classes, activation=activation, name="probabilities")(hidden)
    return keras.Model({IMAGE: image, **side_inputs}, probabilities, name="classifier"), base


def _base(image_size: tuple[int, int], weights: str) -> keras.Model:
    source = None if weights == NO_WEIGHTS else weights
    try:
        return keras.applications.InceptionV3(include_top=False, input_shape=(*image_size, 3), weights=source)
    except (ValueError, OSError) as error:
        if weights == IMAGENET:
            raise WeightsError(
                f"Keras could not download the ImageNet weights ({error}). Give a file of them (trainer.weights: "
                "FILE), or train from scratch (trainer.weights: none)."
            ) from error
        raise WeightsError(
            f"trainer.weights: {weights} does not hold weights of InceptionV3 without its top: {error}"
        ) from error


def set_batch_norm_momentum(base: keras.Model, steps_per_epoch: int) -> None:
    """Lets BatchNormalization's moving averages follow training from scratch, however few its steps.

    Keras's momentum of 0.99 averages over some 100 steps. On a small set that is several epochs: 45 steps an epoch left
    the validation accuracy at 0.09 to 0.19 for five epochs while training's was at 0.96. Here they average over about a
    fifth of an epoch, and over 100 steps at most.

    Args:
        base: the network; its BatchNormalization layers are changed. Call it before the model is first trained.
        steps_per_epoch: number of batches in an epoch, 1 or more.
    """
    momentum = min(_DEFAULT_MOMENTUM, max(0.5, 1 - 5 / steps_per_epoch))
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def unfreeze_after(base: keras.Model, layer_name: str) -> None:
    """Makes the layers of ``base`` above the one named trainable, and all up to it not.

    Raises:
        ValueError: if there is no such layer.
    """
    names = [layer.name for layer in base.layers]
    if layer_name not in names:
        blocks = ", ".join(name for name in names if name.startswith("mixed"))
        raise ValueError(f"trainer.unfreeze_after: InceptionV3 has no layer '{layer_name}'. Its blocks are {blocks}.")
    base.trainable = True
    for layer in base.layers[: names.index(layer_name) + 1]:
        layer.trainable = False
