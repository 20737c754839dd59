"""Small real classifiers of scikit-learn's digits, as SavedModels, and what the Evaluator makes of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import proto_utils

from components.evaluator import Executor
from pipeline.config import EvaluationConfig
from pipeline.evaluation import eval_config
from transform.features import TARGET, Features

TRAINED_ON = 900
NAMES = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Digits:
    """The digits that no model was trained on: pixels float32 ``[n, 64]`` and labels int ``[n]``."""

    pixels: np.ndarray
    labels: np.ndarray


def digits() -> tuple[Digits, Digits]:
    """Those to train on, and the others."""
    loaded = load_digits()
    pixels = (loaded.data / 16).astype(np.float32)
    return (
        Digits(pixels[:TRAINED_ON], loaded.target[:TRAINED_ON]),
        Digits(pixels[TRAINED_ON:], loaded.target[TRAINED_ON:]),
    )


def trained(data: Digits, **options) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of a logistic regression."""
    model = LogisticRegression(max_iter=2000, **options).fit(data.pixels, data.labels)
    return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)


class Linear(tf.Module):
    """A model of the contract that takes pixels from a feature of their own."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray):
        super().__init__()
        self.weights, self.bias = tf.constant(weights), tf.constant(bias)
        self.names = tf.constant(NAMES)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def transform_features(self, examples):
        parsed = tf.io.parse_example(examples, {"label": tf.io.FixedLenFeature([], tf.string)})
        return {TARGET: tf.strings.to_number(parsed["label"], tf.int64)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def tf_examples(self, examples):
        pixels = tf.io.parse_example(examples, {"pixels": tf.io.FixedLenFeature([64], tf.float32)})["pixels"]
        classes = tf.nn.softmax(pixels @ self.weights + self.bias)
        return {"classes": classes, "label": tf.gather(self.names, tf.argmax(classes, 1))}


def save(folder: Path, weights: np.ndarray, bias: np.ndarray) -> standard_artifacts.Model:
    """Writes a model as an artifact."""
    module = Linear(weights, bias)
    signatures = {"tf_examples": module.tf_examples, "transform_features": module.transform_features}
    tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)
    return _artifact(standard_artifacts.Model, folder)


def write_examples(folder: Path, data: Digits) -> standard_artifacts.Examples:
    """Writes the eval split as an artifact; every third image is of camera ``old``, and they are of two sizes."""
    (folder / "Split-eval").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "Split-eval" / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for number, (pixels, label) in enumerate(zip(data.pixels, data.labels, strict=True)):
            example = tf.train.Example()
            feature = example.features.feature
            feature["pixels"].float_list.value.extend(pixels)
            feature["label"].bytes_list.value.append(str(label).encode())
            feature["camera"].bytes_list.value.append(b"new" if number % 3 else b"old")
            feature["width"].int64_list.value.append(640 if number % 2 else 100)
            feature["height"].int64_list.value.append(480)
            writer.write(example.SerializeToString())
    examples = _artifact(standard_artifacts.Examples, folder)
    examples.split_names = artifact_utils.encode_split_names(["eval"])
    return examples


def _artifact(kind: type, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    made = kind()
    made.uri = str(folder)
    return made


def evaluate(
    folder: Path,
    examples: standard_artifacts.Examples,
    model: standard_artifacts.Model,
    champion: standard_artifacts.Model | None,
    config: EvaluationConfig,
) -> tuple[str, bool]:
    """Runs the Evaluator; gives the folder of the evaluation, and whether the model was blessed."""
    evaluation = _artifact(standard_artifacts.ModelEvaluation, folder / "evaluation")
    blessing = _artifact(standard_artifacts.ModelBlessing, folder / "blessing")
    baseline = champion or _artifact(standard_artifacts.Model, folder / "nothing")
    properties = {
        "eval_config": proto_utils.proto_to_json(eval_config("classification", config, Features())),
        "example_splits": json.dumps(["eval"]),
    }
    executor = Executor(Executor.Context(beam_pipeline_args=["--direct_running_mode=in_memory"], unique_id="1"))
    executor.Do(
        {"examples": [examples], "model": [model], "baseline_model": [baseline]},
        {"evaluation": [evaluation], "blessing": [blessing]},
        properties,
    )
    return evaluation.uri, blessing.get_int_custom_property("blessed") == 1
