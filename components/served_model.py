"""Models as our server computes them, asked about Examples: with OpenVINO where a version has a form for it.

So the Evaluator, Predictions and ServingCheck judge what serves.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from absl import logging

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError, put_on_one_line
from imagepipe.deploy.openvino_form import FOLDER, FORM, OpenVinoNetwork, find_form
from imagepipe.deploy.storage import fetch_folder
from imagepipe.serving.loaded_model import LoadedModel

_FORM_ERRORS = ModelError, RuntimeError  # the second is what OpenVINO raises


class OpenVinoSignatures:
    """The form for OpenVINO in the place of the object that TensorFlow loads of a SavedModel.

    Attributes:
        signatures: ``tf_examples`` and ``transform_features``, see ``trainer.export.signatures``.
    """

    def __init__(self, folder: Path):
        """Loads it.

        Args:
            folder: the form's folder, see ``imagepipe.deploy.openvino_form``.

        Raises:
            ModelError: if it can't be loaded, or OpenVINO isn't installed.
        """
        self._network = OpenVinoNetwork(folder)
        self._around = tf.saved_model.load(str(folder))  # it owns what its functions use
        examples = tf.TensorSpec([None], tf.string, name="examples")
        self.signatures: dict[str, Any] = {
            "tf_examples": tf.function(self._answer, autograph=False).get_concrete_function(examples=examples),
            "transform_features": self._around.signatures["transform_features"],
        }

    def _answer(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs, answers = self._around.preprocess_examples(examples), self._around.answers
        names, specs = sorted(inputs), answers.structured_input_signature[1]

        def compute(*arrays: np.ndarray) -> list[np.ndarray]:
            outputs = self._network(dict(zip(names, arrays, strict=True)))
            return [outputs[name] for name in specs]

        computed = tf.numpy_function(compute, [inputs[name] for name in names], [spec.dtype for spec in specs.values()])
        tensors = zip(specs, computed, strict=True)
        return dict(answers(**{name: tf.ensure_shape(tensor, specs[name].shape) for name, tensor in tensors}))


def load_as_served(
    folder: Path, signature: Literal["serving_default", "tf_examples"] = "serving_default"
) -> LoadedModel:
    """Loads a version, of which ``predict_examples`` answers as a server of ours does; see ``LoadedModel``."""
    model = LoadedModel(folder, signature)
    if form := find_form(folder):
        model.loaded = OpenVinoSignatures(form)
    return model


def load_champion(folder: Path, signature: Literal["serving_default", "tf_examples"]) -> LoadedModel:
    """Loads the live version as ``load_as_served`` does, or without its form where that can't be used on this machine.

    The candidate has no such choice: what nobody could ask must not pass the gate.
    """
    model = LoadedModel(folder, signature)
    if form := find_form(folder):
        try:
            model.loaded = OpenVinoSignatures(form)
        except _FORM_ERRORS as error:
            _explain(error)
    return model


def find_form_problem(model: str) -> str:
    """Returns why a version's form for OpenVINO can't be used on this machine, where a server of ours does without it.

    Args:
        model: the SavedModel's folder, a path or URI.

    Returns:
        The reason, which is logged too; '' if the form can be used, or there is none.
    """
    if not has_form(model):
        return ""
    try:
        OpenVinoNetwork(fetch_folder(f"{model}/{FOLDER}"))
    except _FORM_ERRORS as error:
        return _explain(error)
    return ""


def _explain(error: Exception) -> str:
    problem = (
        f"{put_on_one_line(error).removesuffix('.')}. It is judged by its SavedModel, which a server here would serve."
    )
    logging.warning(problem)
    return problem


def has_form(model: str) -> bool:
    """Returns whether a SavedModel's folder, a path or URI, has a form for OpenVINO."""
    return filesystem.exists(f"{model}/{FOLDER}/{FORM}")
