"""Small real models of scikit-learn's digits and diabetes as SavedModels, and the Evaluator run on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputClassifier
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import proto_utils

from components.evaluator.executor import Executor
from imagepipe.base.features import LABEL_SEPARATOR, TARGET, Features
from imagepipe.base.names import TaskName
from pipeline.config import BeamConfig, EvaluationConfig
from pipeline.eval_config import build_eval_config

THIS_PROCESS = BeamConfig()
TRAIN_SIZE = 900
NAMES = [str(digit) for digit in range(10)]
TRAITS = {"even": (0, 2, 4, 6, 8), "loop": (0, 6, 8, 9), "prime": (2, 3, 5, 7)}
"""Labels that an image of a digit can have, and the digits that have them."""


@dataclass(frozen=True)
class Digits:
    """Images: pixels float32 ``[n, p]``; labels int ``[n]``, bool ``[n, k]`` for several, or float32 ``[n]``.

    For diabetes, pixels are the patients' measurements.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def select(self, places: slice) -> "Digits":
        return Digits(self.pixels[places], self.labels[places])

    def repeat(self, times: int) -> "Digits":
        return Digits(self.pixels.repeat(times, axis=0), self.labels.repeat(times, axis=0))


def split_digits() -> tuple[Digits, Digits]:
    """Returns digits to train on, and the others."""
    loaded = load_digits()
    pixels = (loaded.data / 16).astype(np.float32)
    return (
        Digits(pixels[:TRAIN_SIZE], loaded.target[:TRAIN_SIZE]),
        Digits(pixels[TRAIN_SIZE:], loaded.target[TRAIN_SIZE:]),
    )


def label_traits(data: Digits) -> Digits:
    """Returns the same digits with the labels ``TRAITS``."""
    return Digits(data.pixels, np.stack([np.isin(data.labels, numbers) for numbers in TRAITS.values()], axis=1))


def split_diabetes() -> tuple[Digits, Digits]:
    """Returns patients to train on, and the others; labels: progress of the disease a year later, 25 to 346."""
    loaded = load_diabetes()
    patients = Digits(loaded.data.astype(np.float32), loaded.target.astype(np.float32))
    return patients.select(slice(200)), patients.select(slice(200, None))


def train_on_traits(data: Digits) -> tuple[np.ndarray, np.ndarray]:
    """Trains a logistic regression for each trait; returns weights and biases."""
    models = MultiOutputClassifier(LogisticRegression(max_iter=2000)).fit(data.pixels, data.labels).estimators_
    weights, bias = (np.concatenate([getattr(model, name) for model in models]) for name in ("coef_", "intercept_"))
    return weights.T.astype(np.float32), bias.astype(np.float32)


def train_ridge(data: Digits, alpha: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Trains a ridge regression; returns weights and bias."""
    model = Ridge(alpha).fit(data.pixels, data.labels)
    return model.coef_[:, None].astype(np.float32), np.array([model.intercept_], np.float32)


def train_logistic(data: Digits, **options) -> tuple[np.ndarray, np.ndarray]:
    """Trains a logistic regression; returns weights and bias."""
    model = LogisticRegression(max_iter=2000, **options).fit(data.pixels, data.labels)
    return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)


class Linear(tf.Module):
    """A model with the pipeline's signatures that takes pixels from a feature of their own."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray, task: TaskName):
        super().__init__()
        self.weights, self.bias, self.task = tf.constant(weights), tf.constant(bias), task
        self.names = tf.constant(NAMES if task == "classification" else list(TRAITS))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def transform_features(self, examples):
        if self.task == "regression":
            return {TARGET: tf.io.parse_example(examples, {"label": tf.io.FixedLenFeature([], tf.float32)})["label"]}
        if self.task == "multilabel":
            given = tf.io.parse_example(examples, {"label": tf.io.RaggedFeature(tf.string)})["label"]
            there = given.to_tensor("")[:, :, None] == self.names
            return {TARGET: tf.cast(tf.reduce_any(there, axis=1), tf.float32)}
        parsed = tf.io.parse_example(examples, {"label": tf.io.FixedLenFeature([], tf.string)})
        return {TARGET: tf.strings.to_number(parsed["label"], tf.int64)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def tf_examples(self, examples):
        pixels = tf.io.FixedLenFeature([self.weights.shape[0]], tf.float32)
        scores = tf.io.parse_example(examples, {"pixels": pixels})["pixels"] @ self.weights + self.bias
        if self.task == "regression":
            return {"classes": scores, "label": tf.strings.as_string(scores[:, 0])}
        if self.task == "multilabel":
            predicted = tf.ragged.boolean_mask(tf.broadcast_to(self.names, tf.shape(scores)), scores > 0)
            return {
                "classes": tf.sigmoid(scores),
                "label": tf.strings.reduce_join(predicted, axis=1, separator=LABEL_SEPARATOR),
            }
        return {"classes": tf.nn.softmax(scores), "label": tf.gather(self.names, tf.argmax(scores, 1))}


def save_model(
    folder: Path, weights: np.ndarray, bias: np.ndarray, task: TaskName = "classification"
) -> standard_artifacts.Model:
    """Writes a model as an artifact."""
    module = Linear(weights, bias, task)
    signatures = {"tf_examples": module.tf_examples, "transform_features": module.transform_features}
    tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)
    names = {"classification": NAMES, "multilabel": list(TRAITS), "regression": ["label"]}[task]
    (folder / "Format-Serving" / "assets" / "labels").write_text("".join(f"{name}\n" for name in names))
    return make_artifact(standard_artifacts.Model, folder)


def predict(model, data: Digits) -> np.ndarray:
    """Returns a model's outputs for pixels, ``[n, k]``, from the signature that the Evaluator uses."""
    module = tf.saved_model.load(f"{model.uri}/Format-Serving")
    records = []
    for pixels in data.pixels:
        example = tf.train.Example()
        example.features.feature["pixels"].float_list.value.extend(pixels)
        records.append(example.SerializeToString())
    return module.signatures["tf_examples"](examples=tf.constant(records))["classes"].numpy()


def write_examples(folder: Path, data: Digits, groups: Sequence[str] = ()) -> standard_artifacts.Examples:
    """Writes the eval split as an artifact; every third image is from camera ``old``, and there are two sizes."""
    (folder / "Split-eval").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "Split-eval" / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for number, (pixels, label) in enumerate(zip(data.pixels, data.labels, strict=True)):
            example = tf.train.Example()
            feature = example.features.feature
            feature["metadata"].bytes_list.value.append(str(number).encode())
            feature["pixels"].float_list.value.extend(pixels)
            if np.ndim(label):
                names = (name.encode() for name, there in zip(TRAITS, label, strict=True) if there)
                feature["label"].bytes_list.value.extend(names)
            elif data.labels.dtype.kind == "f":
                feature["label"].float_list.value.append(label)
            else:
                feature["label"].bytes_list.value.append(str(label).encode())
            feature["camera"].bytes_list.value.append(b"new" if number % 3 else b"old")
            feature["width"].int64_list.value.append(640 if number % 2 else 100)
            feature["height"].int64_list.value.append(480)
            if groups:
                feature["group"].bytes_list.value.append(groups[number].encode())
            # By its bytes an image without a group is told from others; their order must not be another each time.
            writer.write(example.SerializeToString(deterministic=True))
    examples = make_artifact(standard_artifacts.Examples, folder)
    examples.split_names = artifact_utils.encode_split_names(["eval"])
    return examples


def make_artifact(kind: type, folder: Path):
    """Makes an artifact in a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    artifact = kind()
    artifact.uri = str(folder)
    return artifact


def evaluate(
    folder: Path,
    examples: standard_artifacts.Examples,
    model: standard_artifacts.Model,
    champion: standard_artifacts.Model | None,
    config: EvaluationConfig,
    task: TaskName = "classification",
    beam: BeamConfig = THIS_PROCESS,
) -> tuple[str, bool]:
    """Runs the Evaluator; returns the folder of the evaluation, and whether the model was blessed."""
    evaluation = make_artifact(standard_artifacts.ModelEvaluation, folder / "evaluation")
    blessing = make_artifact(standard_artifacts.ModelBlessing, folder / "blessing")
    baseline = champion or make_artifact(standard_artifacts.Model, folder / "nothing")
    properties = {
        "eval_config": proto_utils.proto_to_json(build_eval_config(task, config, Features())),
        "example_splits": json.dumps(["eval"]),
    }
    executor = Executor(Executor.Context(beam_pipeline_args=beam.make_arguments(), unique_id="1"))
    executor.Do(
        {"examples": [examples], "model": [model], "baseline_model": [baseline]},
        {"evaluation": [evaluation], "blessing": [blessing]},
        properties,
    )
    return evaluation.uri, blessing.get_int_custom_property("blessed") == 1
