"""Converts a trained network to TensorFlow Lite, for devices."""

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import mlir_quantize

from imagepipe.base.features import IMAGE
from trainer.export.novelty import LAYER, is_of_novelty
from trainer.export.optimize import optimize_network


def convert_to_tflite(model: keras.Model, precision: str, images: np.ndarray) -> bytes:
    """Converts a network to TensorFlow Lite.

    Args:
        model: see ``trainer.export.portable.load_network``.
        precision: ``float32``; ``float16``, of the weights; or ``int8``, of weights and activations, novelty left out.
        images: pixels, uint8 ``[m, height, width, 3]``, that the ranges of activations are measured on; used for int8
            only.

    Returns:
        The content of a ``.tflite`` file. Its signature ``serving_default`` takes ``image``, uint8 pixels
        ``[1, height, width, 3]`` in RGB, decoded and resized by the caller, and returns the network's outputs by their
        names, float32 ``[1, ...]``.
    """
    (pixels,) = model.inputs
    network = tf.Module()
    function = optimize_network(model, bfloat16=False)
    network.ask = tf.function(lambda image: function({IMAGE: image}))
    spec = tf.TensorSpec([1, *pixels.shape[1:]], pixels.dtype, name=IMAGE)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([network.ask.get_concrete_function(spec)], network)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision != "int8":
        return converter.convert()
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    # By hand what the converter does by itself, as it can't leave operations out.
    converter._experimental_calibrate_only = True
    measured = converter.convert()
    interpreter = tf.lite.Interpreter(model_content=measured)
    kept = [tensor["name"] for tensor in interpreter.get_tensor_details() if is_of_novelty(tensor["name"])]
    outputs = interpreter.get_signature_runner().get_output_details()
    kept += [outputs[LAYER]["name"]] if LAYER in outputs else []  # an output has a name of its own
    return mlir_quantize(measured, denylisted_nodes=kept)
