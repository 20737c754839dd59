"""Answers for a SavedModel as TensorFlow Serving's REST API does; stand-ins for clusters and clouds answer with it."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

SERVED = "serving_default"


@dataclass
class Servable:
    """A loaded SavedModel."""

    version: str
    module: Any  # holds the variables
    signature: Any

    def answer(self, method: str, path: str, name: str, body: Any) -> tuple[int, Any]:
        """Answers a request to ``/v1/models/<name>…``."""
        if path == f"/v1/models/{name}/metadata" and method == "GET":
            inputs = {key: {} for key in self.signature.structured_input_signature[1]}
            metadata = {"signature_def": {"signature_def": {SERVED: {"inputs": inputs}}}}
            return 200, {"model_spec": {"name": name, "version": self.version}, "metadata": metadata}
        if path not in (f"/v1/models/{name}:predict", f"/v1/models/{name}/versions/{self.version}:predict"):
            return 404, {"error": f"Servable not found for request: {path}"}
        try:
            return 200, {"predictions": self.predict(body["instances"])}
        except (KeyError, ValueError, tf.errors.OpError) as error:
            return 400, {"error": str(error)}

    def predict(self, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers instances, each an object.

        Raises:
            ValueError: if their inputs are not those that the signature takes.
        """
        specs = self.signature.structured_input_signature[1]
        columns = {}
        for key, spec in specs.items():
            values = [_decode(instance[key]) for instance in instances]
            columns[key] = tf.constant(values, spec.dtype)
        if unknown := {key for instance in instances for key in instance} - set(specs):
            raise ValueError(f"Failed to process element: 0 key: {unknown.pop()} of 'instances' list: not an input")
        outputs = {key: tensor.numpy() for key, tensor in self.signature(**columns).items()}
        return [{key: _to_json(rows[i]) for key, rows in outputs.items()} for i in range(len(instances))]


def load(folder: Path) -> Servable:
    """Loads the newest version in a folder, as TensorFlow Serving does with its base path.

    Raises:
        OSError: if there is none.
    """
    versions = sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))
    if not versions:
        raise FileNotFoundError(f"No versions of servable found under base path {folder}")
    module = tf.saved_model.load(str(versions[-1]))
    return Servable(versions[-1].name, module, module.signatures[SERVED])


def _decode(value: Any) -> Any:
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
