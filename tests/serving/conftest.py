"""A model small enough for thousands of requests."""

import os
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import tensorflow as tf
import trustme

from imagepipe.deploy import openvino_form
from imagepipe.serving import server
from imagepipe.serving.connections import PortHolder
from imagepipe.serving.engine import ServedModel
from imagepipe.serving.loaded_model import LoadedModel
from tests.stores import memory, s3, s3_server, store  # noqa: F401 (fixtures)


class Brightness(tf.Module):
    """A real SavedModel of the contract: tells dark images from light ones; gray ones are novel."""

    def __init__(self, assets: Path, names: tuple[str, str], rounds: int):
        super().__init__()
        self.rounds = rounds
        assets.mkdir(exist_ok=True)
        (assets / "labels").write_text("\n".join(names) + "\n")
        self.labels = tf.saved_model.Asset(str(assets / "labels"))
        self.names = names
        strings = tf.TensorSpec([None], tf.string)
        self.preprocess = tf.function(self._preprocess).get_concrete_function(input=strings)
        image = self.preprocess.structured_outputs["image"]
        self.answer = tf.function(self._answer).get_concrete_function(image=tf.TensorSpec(image.shape, image.dtype))
        self.serve = tf.function(self._serve).get_concrete_function(input=strings, metadata=strings)
        self.serve_examples = tf.function(self._serve_examples).get_concrete_function(examples=strings)

    def _preprocess(self, input):
        def decode(encoded):
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            pixels.set_shape([None, None, 3])
            return tf.cast(tf.image.resize(pixels, (8, 8), antialias=True), tf.uint8)

        return {"image": tf.map_fn(decode, input, fn_output_signature=tf.TensorSpec([8, 8, 3], tf.uint8))}

    def _answer(self, image):
        light = tf.reduce_mean(tf.cast(image, tf.float32), axis=(1, 2, 3)) / 255
        busy = tf.ones((500, 500)) * tf.reduce_mean(light)
        for _ in tf.range(self.rounds):
            busy = busy @ busy * 1e-3
        light += 0 * tf.clip_by_value(busy[0, 0], 0, 1)
        classes = tf.stack([1 - light, light], axis=1)
        label = tf.gather(tf.constant(self.names), tf.argmax(classes, 1))
        novelty = 1 - tf.abs(2 * light - 1)
        return {"classes": classes, "label": label, "score": tf.reduce_max(classes, 1), "novelty": novelty}

    def _serve(self, input, metadata):
        return self._answer(**self._preprocess(input)) | {"metadata": tf.identity(metadata)}

    def _serve_examples(self, examples):
        features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("input", "metadata")}
        return self._serve(**tf.io.parse_example(examples, features))


def save_brightness(folder: Path, assets: Path, names: tuple[str, str] = ("dark", "light"), rounds: int = 0) -> Path:
    """Writes a SavedModel, which takes longer to answer the more rounds it makes."""
    module = Brightness(assets, names, rounds)
    signatures = {"serving_default": module.serve, "tf_examples": module.serve_examples}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


class BrightnessAround(Brightness):
    """The graph around the same network where OpenVINO computes it; all images are of the same novelty."""

    def __init__(self, assets: Path, names: tuple[str, str]):
        super().__init__(assets, names, rounds=0)
        specs = {"logits": tf.TensorSpec([None, 2]), "embedding": tf.TensorSpec([None, 1])}
        self.answers = tf.function(self._answers).get_concrete_function(**specs)
        del self.answer, self.serve, self.serve_examples  # they have the network

    def _answers(self, logits, embedding):
        label = tf.gather(tf.constant(self.names), tf.argmax(logits, 1))
        novelty = FORM_NOVELTY + 0 * embedding[:, 0]
        return {"classes": logits, "label": label, "score": tf.reduce_max(logits, 1), "novelty": novelty}


FORM_NOVELTY = 0.75


def add_form(folder: Path, assets: Path, names: tuple[str, str] = ("dark", "light")) -> Path:
    """Adds the form for OpenVINO to a SavedModel of ``save_brightness``; its answers show by their novelty."""
    import openvino
    from openvino import opset13 as ops

    image = ops.parameter([-1, 8, 8, 3], np.uint8, name="image")
    pixels = ops.divide(ops.convert(image, "f32"), np.float32(255))
    light = ops.reduce_mean(ops.reduce_mean(pixels, [1, 2]), [1], keep_dims=True)
    logits = ops.concat([ops.subtract(np.float32(1), light), light], 1)
    network = openvino.Model([logits.output(0), light.output(0)], [image])
    for port, name in zip([*network.inputs, *network.outputs], ["image", "logits", "embedding"], strict=True):
        port.get_tensor().set_names({name})
    form = folder / openvino_form.FOLDER
    tf.saved_model.save(BrightnessAround(assets, names), str(form))
    openvino.save_model(network, form / openvino_form.NETWORK, compress_to_fp16=False)
    description = {"precision": "int8", "inputs": ["image"], "outputs": ["logits", "embedding"]}
    openvino_form.write_form(form, description)
    return folder


def look_twice(served_model: ServedModel) -> None:
    """Looks for versions until those whose files don't change are taken."""
    served_model.refresh()
    served_model.refresh()


@pytest.fixture(scope="session")
def two_forms(model, tmp_path_factory) -> Path:
    """The model with both forms."""
    folder = tmp_path_factory.mktemp("two_forms") / "brightness" / "7"
    shutil.copytree(model, folder)
    return add_form(folder, folder.parent.parent / "assets")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "brightness" / "7"
    return save_brightness(folder, tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    """``own.pem`` and ``own.key``, of the authority ``ca.pem``; ``both.pem`` has both; ``other.key`` is another's."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    own, other = ca.issue_cert("127.0.0.1"), ca.issue_cert("127.0.0.1")
    own.cert_chain_pems[0].write_to_path(folder / "own.pem")
    own.private_key_pem.write_to_path(folder / "own.key")
    own.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    other.private_key_pem.write_to_path(folder / "other.key")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for key in folder.iterdir():
        key.chmod(0o600)
    return folder


@pytest.fixture(scope="session")
def served(model, tmp_path_factory):
    """The server of this process, which can have one only; as Vertex AI's environment would have it."""
    folder = tmp_path_factory.mktemp("served") / "brightness"
    folder.mkdir()
    (folder / "7").symlink_to(model)
    os.environ |= {"AIP_HEALTH_ROUTE": "/alive", "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict"}
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    grpc = PortHolder("127.0.0.1", 0)
    options = {"grpc_address": grpc.address}
    serving = (folder, "brightness", listening, "127.1")
    threading.Thread(target=server.serve, args=serving, kwargs=options, daemon=True).start()
    with httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/v2/health/ready").json() == {"ready": True}
        yield SimpleNamespace(http=http, url=url, grpc=grpc.address, folder=folder, model=LoadedModel(model))
    for name in ("AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"):
        del os.environ[name]
