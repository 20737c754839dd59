"""The gate on versions that have a form for OpenVINO: what serves is what is evaluated, and so is the SavedModel."""

import importlib.util
from pathlib import Path

import numpy as np
import openvino
import pytest
import tensorflow as tf
from openvino import opset13 as ops

from components.evaluator.evaluation_reader import read_evaluation
from imagepipe.deploy.openvino_form import FOLDER, NETWORK, write_form
from pipeline.config import EvaluationConfig
from tests.evaluated import Linear, evaluate, save_model, split_digits, train_logistic, write_examples

pytestmark = pytest.mark.slow

DEMANDS = EvaluationConfig(thresholds={"accuracy": 0.85}, intervals="none")


def add_form(model, weights: np.ndarray, bias: np.ndarray) -> None:
    """Writes a form for OpenVINO into a version's folder; to decode is to parse here, and logits are scores."""
    folder = Path(model.uri) / "Format-Serving" / FOLDER
    pixels, strings = tf.io.FixedLenFeature([len(weights)], tf.float32), tf.TensorSpec([None], tf.string, "examples")
    around, linear = tf.Module(), Linear(weights, bias, "classification")
    around.preprocess = tf.function(lambda **request: {"pixels": tf.io.decode_raw(request["input"], tf.float32)})
    around.preprocess = around.preprocess.get_concrete_function(input=tf.TensorSpec([None], tf.string, "input"))
    around.preprocess_examples = tf.function(
        lambda examples: {"pixels": tf.io.parse_example(examples, {"pixels": pixels})["pixels"]}
    ).get_concrete_function(strings)
    around.answers = tf.function(
        lambda **outputs: {
            "classes": tf.nn.softmax(outputs["logits"]),
            "label": tf.gather(linear.names, tf.argmax(outputs["logits"], 1)),
        }
    ).get_concrete_function(
        **{name: tf.TensorSpec([None, k], tf.float32, name) for name, k in (("logits", 10), ("embedding", 64))}
    )
    around.linear = linear
    tf.saved_model.save(around, str(folder), signatures={"transform_features": linear.transform_features})
    inputs = ops.parameter([-1, len(weights)], np.float32)
    scores = ops.add(ops.matmul(inputs, ops.constant(weights), False, False), ops.constant(bias))
    network = openvino.Model([scores, ops.relu(inputs)], [inputs], "digits")
    for port, name in zip([*network.inputs, *network.outputs], ("pixels", "logits", "embedding"), strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(network, folder / NETWORK, compress_to_fp16=False)
    form = {"precision": "float32", "inputs": ["pixels"], "outputs": ["logits", "embedding"]}
    write_form(folder, form)


def test_both_forms_have_to_pass_and_the_evaluation_is_of_the_one_that_serves(tmp_path):
    train, digits = split_digits()
    weights, bias = train_logistic(train)
    examples = write_examples(tmp_path / "examples", digits)
    spoiled = np.roll(weights, 1, axis=1)  # scales of the wrong channels
    for name, saved, served, is_blessed in (
        ("both", weights, weights, True),
        ("served", weights, spoiled, False),
        ("saved", spoiled, weights, False),
    ):
        model = save_model(tmp_path / name, saved, bias)
        add_form(model, served, bias)
        folder, blessed = evaluate(tmp_path / f"evaluation-{name}", examples, model, None, DEMANDS)
        evaluation = read_evaluation(folder)
        assert blessed is is_blessed, name
        accuracy = evaluation.whole.metrics["accuracy"].value
        assert (accuracy > 0.85) is (served is weights), name
        through_tensorflow = [reason.startswith("as TensorFlow serves it: ") for reason in evaluation.refusals]
        assert through_tensorflow == {"both": [], "served": [False], "saved": [True]}[name]


def test_without_openvino_the_champion_is_judged_by_its_saved_model_and_that_is_said(tmp_path, monkeypatch):
    train, digits = split_digits()
    weights, bias = train_logistic(train)
    examples = write_examples(tmp_path / "examples", digits)
    champion = save_model(tmp_path / "champion", weights, bias)
    add_form(champion, np.roll(weights, 1, axis=1), bias)  # which shows where it answers
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    folder, blessed = evaluate(
        tmp_path / "out", examples, save_model(tmp_path / "new", weights, bias), champion, DEMANDS
    )
    evaluation = read_evaluation(folder)
    assert (blessed, evaluation.whole.differences["accuracy"].value) == (True, 0)
    assert "is not installed" in evaluation.champion_note
    assert "judged by its SavedModel" in evaluation.champion_note
