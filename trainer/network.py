"""The network: a backbone on pixels, and a head on its features and on the side features."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras

from imagepipe.base.errors import TrainingError, WeightsError, describe_error
from imagepipe.base.features import IMAGE
from trainer.backbones import BACKBONES, Backbone
from trainer.config import IMAGENET, NO_WEIGHTS, TrainerConfig, find_backbone
from trainer.data import PixelStatistics
from trainer.own_backbone import load_function
from trainer.pretrained import check_file, load_weights
from trainer.tasks import Task
from trainer.unfreezing import find_layer

_POOLING = {4: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling1D, 2: keras.layers.Identity}
_SIDE_UNITS = 20
_HIDDEN_UNITS = 1024
_DROPOUT = 0.2
_DEFAULT_MOMENTUM = 0.99  # Keras's
_MIN_VARIANCE = 1.0  # in levels squared: an almost constant channel is not amplified


class Network(NamedTuple):
    """The classifier and its parts, which share their layers and so their weights.

    Attributes:
        model: from a dict of ``image`` uint8 ``[n, height, width, 3]`` and side features ``[n]`` (float32 or int64) to
            outputs float32 ``[n, task.outputs]``.
        base: from scaled images, floats ``[n, height, width, 3]``, to the backbone's features: floats ``[n, h, w, d]``;
            of some of one's own ``[n, tokens, d]`` or ``[n, d]``. Fine-tuning unfreezes its layers.
        pooled: from images, uint8 ``[n, height, width, 3]``, to their averaged features, float32 ``[n, d]``.
        head: like ``model``, but its ``image`` is the output of ``pooled``: with a frozen base it can be trained alone.
        served: like ``model``, but to ``logits``, its outputs before their activation, and ``embedding``, the output of
            ``pooled``.
        scaling: from images, uint8 ``[n, height, width, 3]``, to what ``base`` takes.
        pool: from what ``base`` gives to averaged features, float32 ``[n, d]``.
    """

    model: keras.Model
    base: keras.Model
    pooled: keras.Model
    head: keras.Model
    served: keras.Model
    scaling: keras.Model
    pool: keras.layers.Layer


def build_network(
    image_size: tuple[int, int],
    task: Task,
    side: Mapping[str, int | None],
    config: TrainerConfig,
    statistics: PixelStatistics | None = None,
) -> Network:
    """Builds the classifier.

    Args:
        image_size: (height, width) in pixels; the backbone has a minimum, see ``trainer.backbones``.
        task: gives the number of outputs and their activation.
        side: the side features by their names in the transform graph: None for a numeric one, for a categorical one its
            number of values.
        config: the backbone, its weights, its scaling and the head.
        statistics: of the train split's pixels, for ``normalization: featurewise``.

    Returns:
        The model and its parts. Without pretrained weights it is initialized at random.

    Raises:
        WeightsError: if the weights are not available or don't fit.
        TrainingError: if a backbone of the user's own fails, or is none; or there is no layer
            ``config.unfreeze_after``.
        ValueError: if featurewise ``statistics`` are missing.
    """
    base = _build_base(image_size, config)
    if config.weights != NO_WEIGHTS:
        _find_layer(base, get_last_frozen_layer(config))  # fails now rather than after the head's epochs
    image = keras.Input((*image_size, 3), dtype="uint8", name=IMAGE)
    scaling = keras.Model(image, _scale(image, config, statistics), name="scaling")
    head = _build_head(base.outputs[0].shape[-1], task, side, config)
    return join_parts(scaling, base, _POOLING[len(base.output_shape)](dtype="float32", name="pool"), head)


def join_parts(scaling: keras.Model, base: keras.Model, pool: keras.layers.Layer, head: keras.Model) -> Network:
    """Returns the network of these parts, see ``Network``; ``head`` has a layer ``logits``."""
    image = scaling.input
    average = pool(base(scaling.output))
    side_inputs = {
        name: keras.Input(x.shape[1:], dtype=x.dtype, name=name) for name, x in head.input.items() if name != IMAGE
    }
    model = keras.Model({IMAGE: image, **side_inputs}, head({IMAGE: average, **side_inputs}), name="classifier")
    logits = keras.Model(head.input, head.get_layer("logits").output)({IMAGE: average, **side_inputs})
    served = keras.Model(model.input, {"logits": logits, "embedding": average}, name="served")
    return Network(model, base, keras.Model(image, average, name="pooled"), head, served, scaling, pool)


def _build_base(image_size: tuple[int, int], config: TrainerConfig) -> keras.Model:
    backbone = BACKBONES.get(config.backbone)
    base = _build_application(image_size, config, backbone) if backbone else _build_own(image_size, config.backbone)
    if config.weights not in (IMAGENET, NO_WEIGHTS):
        check_file(config.weights)
        load_weights(base, config.weights, config.backbone)
    return base


def _build_application(image_size: tuple[int, int], config: TrainerConfig, backbone: Backbone) -> keras.Model:
    application = getattr(keras.applications, backbone.application)
    raw = {"include_preprocessing": False} if backbone.scaling is None and config.normalization == "featurewise" else {}
    imagenet = config.weights == IMAGENET
    try:
        return application(
            include_top=False, input_shape=(*image_size, 3), weights=IMAGENET if imagenet else None, **raw
        )
    except Exception as error:  # Keras's download raises many kinds, and Exception itself
        if not imagenet:
            raise
        raise WeightsError(
            f"trainer.weights: imagenet: Keras could not download the weights of {config.backbone} ({error}). Give a "
            "file of them (trainer.weights: FILE), or train from scratch (trainer.weights: none)."
        ) from error


def _build_own(image_size: tuple[int, int], name: str) -> keras.Model:
    """Builds a backbone of the user's own, and checks that it is one."""
    try:
        base = load_function(name)(image_size)
    except Exception as error:
        raise TrainingError(f"trainer.backbone: {name} failed: {describe_error(error)}") from error
    if not isinstance(base, keras.Model) or len(getattr(base, "inputs", None) or ()) != 1:
        fault = f"{type(base).__name__}, and no model of one image, keras.Model(image, features)"
    elif tuple(base.inputs[0].shape[1:]) not in ((*image_size, 3), (None, None, 3)):
        fault = f"a model of images {base.inputs[0].shape[1:]}, and they are {(*image_size, 3)}"
    elif len(base.outputs) != 1 or len(base.output_shape) not in _POOLING or None in base.output_shape[1:]:
        fault = f"features {base.output_shape}: give (n, h, w, d), (n, tokens, d) or (n, d), of known sizes"
    else:
        return keras.Model(base.inputs[0], base.outputs[0], name=base.name)  # a sequential one can't be split
    raise TrainingError(f"trainer.backbone: {name} returned {fault}")


def _scale(image: keras.KerasTensor, config: TrainerConfig, statistics: PixelStatistics | None) -> keras.KerasTensor:
    """Scales pixels as the base expects them, float32; unchanged if the base scales by itself."""
    scaling = find_backbone(config.backbone).scaling
    if config.normalization == "featurewise":
        if statistics is None:
            raise ValueError("trainer.normalization: featurewise needs the statistics of the training split")
        variance = [max(value, _MIN_VARIANCE) for value in statistics.variance]
        layer = keras.layers.Normalization(mean=statistics.mean, variance=variance, dtype="float32", name="scale")
    elif scaling is None:
        layer = keras.layers.Rescaling(1.0, dtype="float32", name="scale")
    else:
        layer = keras.layers.Rescaling(scaling.scale, scaling.offset, dtype="float32", name="scale")
    scaled = layer(image)
    return keras.ops.flip(scaled, axis=-1) if scaling and scaling.bgr else scaled


def _make_side_inputs(side: Mapping[str, int | None]) -> dict[str, keras.KerasTensor]:
    return {
        name: keras.Input((), dtype="float32" if values is None else "int64", name=name)
        for name, values in side.items()
    }


def _build_head(features: int, task: Task, side: Mapping[str, int | None], config: TrainerConfig) -> keras.Model:
    image = keras.Input((features,), dtype="float32", name=IMAGE)
    side_inputs = _make_side_inputs(side)
    encoded = []
    for i, (name, values) in enumerate(side.items()):
        if values is None:
            encoded.append(keras.layers.Reshape((1,), name=f"numeric_{i}")(side_inputs[name]))
        else:
            one_hot = keras.layers.CategoryEncoding(values, output_mode="one_hot", name=f"categorical_{i}")
            encoded.append(one_hot(side_inputs[name]))
    joined = image
    if encoded:
        all_side = encoded[0] if len(encoded) == 1 else keras.layers.Concatenate(name="side")(encoded)
        reduced = keras.layers.Dense(_SIDE_UNITS, activation="relu", name="side_dense")(all_side)
        joined = keras.layers.Concatenate(name="image_and_side")([image, reduced])
    hidden = joined
    if units := get_head_units(config, bool(side)):
        hidden = keras.layers.Dense(units, activation="relu", name="hidden")(joined)
    dropped = keras.layers.Dropout(_get_dropout(task, config), name="dropout")(hidden)
    # float32 even if the rest computes in 16 bits: a softmax loses too much there.
    logits = keras.layers.Dense(task.outputs, dtype="float32", name="logits")(dropped)
    outputs = keras.layers.Activation(task.activation, dtype="float32", name="outputs")(logits)
    return keras.Model({IMAGE: image, **side_inputs}, outputs, name="head")


def _get_dropout(task: Task, config: TrainerConfig) -> float:
    """Returns the share that is dropped.

    What is dropped adds variance. The order of probabilities bears that, numbers don't, least of all a head that starts
    from a regression: Ozgur, A., Nar, F. (2020), Effect of Dropout layer on Classical Regression Problems, SIU.
    """
    if config.dropout is None:
        return 0.0 if task.name == "regression" else _DROPOUT
    return config.dropout


def get_head_units(config: TrainerConfig, has_side: bool) -> int:
    """Returns the number of units in the head's hidden layer, 0 if there is none.

    By default there is none on pretrained features, so that training starts from what a regression on them gives; but
    side features need one to have a say in what the image means.
    """
    if config.head_units is None:
        return _HIDDEN_UNITS if has_side or config.weights == NO_WEIGHTS else 0
    return config.head_units


def scale_outputs(layer: keras.layers.Dense, factors: Sequence[float], offsets: Sequence[float]) -> None:
    """Changes the weights of a layer so that its outputs are multiplied by factors, and offsets are added to them."""
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * factors, bias * factors + offsets])


def set_batch_norm_momentum(base: keras.Model, steps_per_epoch: int) -> None:
    """Lets BatchNormalization's moving averages keep up with training from scratch, however few its steps.

    Keras's momentum of 0.99 averages over some 100 steps. On a small set that is several epochs: with 45 steps per
    epoch the validation accuracy stayed at 0.09 to 0.19 for five epochs while the training accuracy was 0.96. Here
    they average over about a fifth of an epoch, and over 100 steps at most.

    Args:
        base: the network; its BatchNormalization layers are changed. Call this before the model is first trained.
        steps_per_epoch: number of batches per epoch, 1 or more.
    """
    momentum = min(_DEFAULT_MOMENTUM, max(0.5, 1 - 5 / steps_per_epoch))
    for layer in _list_batch_norms(base):
        layer.momentum = momentum


def get_last_frozen_layer(config: TrainerConfig) -> str:
    """Returns the layer of the base above which fine-tuning starts: the configured one, or else the backbone's own."""
    return config.unfreeze_after or find_backbone(config.backbone).unfreeze_after


def unfreeze_after(base: keras.Model, layer_name: str) -> None:
    """Makes the layers of ``base`` above the named one trainable, and all others not.

    BatchNormalization stays frozen everywhere, also in models within the base, and so in inference mode: statistics of
    small batches would undo what the weights have learned. Calling the base with ``training=False``, as Keras's
    transfer learning guide does, is not enough: in Keras 3, calling the whole model with ``training=True`` overrides
    it.

    Raises:
        TrainingError: if there is no such layer.
    """
    index = _find_layer(base, layer_name)
    base.trainable = True
    for layer in (*base.layers[: index + 1], *_list_batch_norms(base)):
        layer.trainable = False


def split_base(base: keras.Model, layer_name: str) -> tuple[keras.Model, keras.Model]:
    """Splits a base behind a layer, or behind the nearest one before it whose output is all that the others take.

    Args:
        base: the base.
        layer_name: of one of its layers.

    Returns:
        The model up to that layer, and the one from its output on; they share their layers with ``base``. If none but
        the input will do, the first has no layer that computes.
    """
    for layer in reversed(base.layers[: _find_layer(base, layer_name) + 1]):
        try:
            return keras.Model(base.inputs, layer.output), keras.Model(layer.output, base.outputs[0])
        except (ValueError, AttributeError):  # a connection leads round the layer, or it is used several times
            continue
    raise AssertionError("the base's input is not its first layer")


def _find_layer(base: keras.Model, layer_name: str) -> int:
    return find_layer("trainer.unfreeze_after", layer_name, [layer.name for layer in base.layers], base.name)


def _list_batch_norms(base: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Returns these layers of a network, also those in models and layers within it."""
    return [layer for layer in base._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
