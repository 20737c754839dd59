"""Converts a trained network for devices: TensorFlow Lite, weights in float16."""

from pathlib import Path

import keras
import tensorflow as tf

from imagepipe.base.errors import TrainingError
from imagepipe.base.features import IMAGE, MISSING_FLAG, TRANSFORMED
from trainer.export.optimize import optimize_network
from trainer.own_backbone import import_classes


def convert_to_tflite(file: Path) -> bytes:
    """Converts a trained network to TensorFlow Lite.

    Args:
        file: ``model.keras``, which a training writes beside the SavedModel.

    Returns:
        The content of a ``.tflite`` file. Its signature ``serving_default`` takes ``image``, uint8 pixels
        ``[1, height, width, 3]`` in RGB, decoded and resized by the caller, and returns ``classes``, float32
        ``[1, k]``.

    Raises:
        TrainingError: if the network needs side features: only the SavedModel has their scaling and vocabularies.
    """
    import_classes(file)
    model = keras.models.load_model(file, compile=False)
    inputs = [x.name for x in model.inputs if x.name != IMAGE and not x.name.startswith(MISSING_FLAG)]
    side = sorted(name.removeprefix(TRANSFORMED) for name in inputs)
    if side:
        raise TrainingError(f"{file} needs side features next to an image: {', '.join(side)}. It can't be converted.")
    (pixels,) = model.inputs
    network = tf.Module()
    function = optimize_network(model, bfloat16=False)
    network.ask = tf.function(lambda image: {"classes": function({IMAGE: image})})
    spec = tf.TensorSpec([1, *pixels.shape[1:]], pixels.dtype, name=IMAGE)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.ask.get_concrete_function(spec)], network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return converter.convert()
