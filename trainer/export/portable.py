"""Converts a trained network for other programs: TensorFlow Lite, ONNX, OpenVINO. Pixels go in, answers come out.

Each file has one input, ``image``, uint8 ``[n, height, width, 3]`` in RGB, decoded and resized by the caller, and these
outputs, float32, named as in the SavedModel and in its order:

- ``classes`` ``[n, k]``: calibrated probabilities, or the value of a regression;
- ``novelty`` ``[n]`` and ``embedding`` ``[n, d]``: as ``trainer.export.signatures`` has them. Networks of earlier
  versions have no file that novelty is computed by: of these there is ``classes`` alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.errors import TrainingError, put_on_one_line
from imagepipe.base.features import IMAGE, MISSING_FLAG, TRANSFORMED
from imagepipe.base.names import NOVELTY
from imagepipe.deploy.openvino_form import get_core
from trainer.export.novelty import LAYER, Novelty, is_of_novelty, load_novelty
from trainer.trained import load_trained

CLASSES, EMBEDDING, LOGITS = "classes", "embedding", "logits"

Answers = Mapping[str, np.ndarray]
Ask = Callable[[np.ndarray], Answers]
"""From pixels, uint8 ``[n, height, width, 3]``, to the outputs by their names."""


def load_network(folder: Path) -> keras.Model:
    """Loads ``model.keras``, which a training writes beside the SavedModel, with one named input and named outputs.

    Args:
        folder: of the training.

    Raises:
        TrainingError: if the network needs side features: only the SavedModel has their scaling and vocabularies; or
            a file is damaged.
    """
    file = folder / "model.keras"
    model = load_trained(file)
    inputs = [x.name for x in model.inputs if x.name != IMAGE and not x.name.startswith(MISSING_FLAG)]
    side = sorted(name.removeprefix(TRANSFORMED) for name in inputs)
    if side:
        raise TrainingError(
            f"{file} needs side features next to an image: {', '.join(side)}. Their scaling is in the SavedModel only, "
            "which --format saved_model copies."
        )
    (pixels,) = model.inputs
    if not (folder / NOVELTY).is_file():
        return keras.Model({IMAGE: pixels}, {CLASSES: model.outputs[0]})
    novelty, calibration = load_novelty(folder / NOVELTY)
    embedding, head = model.get_layer("pool").output, model.get_layer("head")
    calibrated = keras.Model(head.input, head.get_layer("logits").output)({IMAGE: embedding})
    logits = (calibrated - np.array(calibration.offsets, np.float32)) / np.array(calibration.factors, np.float32)
    outputs = {CLASSES: head.get_layer("outputs")(calibrated), EMBEDDING: embedding, LOGITS: logits}
    return add_novelty(keras.Model({IMAGE: pixels}, outputs), novelty)


def add_novelty(model: keras.Model, novelty: Novelty) -> keras.Model:
    """Returns a network that answers with novelty, of one with ``classes``, ``embedding`` and ``logits``."""
    outputs = model.output
    layer = keras.layers.Lambda(novelty, output_shape=(), name=LAYER)
    how_novel = layer({name: outputs[name] for name in (EMBEDDING, LOGITS)})
    return keras.Model(
        model.input, {CLASSES: outputs[CLASSES], LAYER: how_novel, EMBEDDING: outputs[EMBEDDING]}, name="portable"
    )


def write_onnx(model: keras.Model, precision: str, images: np.ndarray, file: Path) -> None:
    """Writes a network as ONNX, in float32 or, by ONNX Runtime's static quantization, with its layers in int8.

    Args:
        model: see ``load_network``.
        precision: ``float32`` or ``int8``.
        images: pixels that the ranges of activations are measured on; unused in float32.
        file: the file to write.
    """
    import onnx
    import tf2onnx

    from trainer.export.optimize import freeze_network

    with _inline_functions():
        frozen = freeze_network(model, bfloat16=False)
    names = {tensor: name for ports in (frozen.inputs, frozen.outputs) for name, tensor in ports.items()}
    converted, _ = tf2onnx.convert.from_graph_def(
        frozen.graph, input_names=[*frozen.inputs.values()], output_names=[*frozen.outputs.values()], opset=18
    )
    for tensors in (tensors for node in converted.graph.node for tensors in (node.input, node.output)):
        tensors[:] = [names.get(name, name) for name in tensors]
    for value in (*converted.graph.input, *converted.graph.output):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    if precision != "int8":
        onnx.save(converted, file)
        return
    from onnxruntime import quantization

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            pixels = next(self._rest, None)
            return None if pixels is None else {IMAGE: pixels[None]}

    # Not the softmax, whose probabilities would have 256 values.
    quantization.quantize_static(
        converted,
        file,
        Images(),
        op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        per_channel=True,
        nodes_to_exclude=[node.name for node in converted.graph.node if is_of_novelty(node.name)],
    )


@contextmanager
def _inline_functions() -> Iterator[None]:
    """Has what is traced call no functions, which tf2onnx doesn't follow: Keras has one for grouped convolutions."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def write_openvino(model: keras.Model, precision: str, images: np.ndarray, file: Path) -> None:
    """Writes a network as OpenVINO's IR, its weights in a file beside it.

    Args:
        model: see ``load_network``.
        precision: ``float32``; ``float16``, of the weights; or ``int8``, by NNCF's post-training quantization.
        images: pixels that the ranges of activations are measured on; used for int8 only.
        file: the file to write, ``.xml``.
    """
    import openvino

    from trainer.export.openvino import convert_network

    network = convert_network(model)
    if precision == "int8":
        from trainer.export.quantize import quantize_network

        network = quantize_network(network, [{IMAGE: pixels[None]} for pixels in images])
    try:
        openvino.save_model(network, file, compress_to_fp16=precision == "float16")
    except RuntimeError as error:
        file.with_suffix(".bin").unlink(missing_ok=True)  # it comes first
        raise TrainingError(f"{file} can't be written by OpenVINO: {put_on_one_line(error)}") from error


def write_tflite(model: keras.Model, precision: str, images: np.ndarray, file: Path) -> None:
    """Writes a network as TensorFlow Lite; it takes one image at a time. See ``trainer.export.lite``."""
    from trainer.export.lite import convert_to_tflite

    file.write_bytes(convert_to_tflite(model, precision, images))


def open_onnx(file: Path) -> Ask:
    """Opens a file with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(names, {IMAGE: pixels}), strict=True))


def open_openvino(file: Path) -> Ask:
    """Opens a file with OpenVINO; what isn't quantized is computed in float32."""
    network = get_core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: {port.any_name: array for port, array in network({IMAGE: pixels}).items()}


def open_tflite(file: Path) -> Ask:
    """Opens a file with TensorFlow Lite's interpreter."""
    ask_one = tf.lite.Interpreter(str(file)).get_signature_runner()

    def ask(pixels: np.ndarray) -> Answers:
        rows = [ask_one(image=one[None]) for one in pixels]
        return {name: np.concatenate([row[name] for row in rows]) for name in ask_one.get_output_details()}

    return ask
