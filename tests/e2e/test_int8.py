"""A run whose model is served in int8 by OpenVINO: who evaluates, checks and asks it gets the same answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import openvino
import pyarrow.parquet as pq
import pytest
from openvino import opset13 as ops
from tfx.types import artifact_utils, standard_artifacts
from typer.testing import CliRunner

from components.evaluator.evaluation_reader import read_evaluation
from imagepipe.deploy.openvino_form import NETWORK, find_form, read_form, write_form
from pipeline.cli import app
from pipeline.config import EvaluationConfig
from tests.conftest import list_summaries
from tests.evaluated import evaluate, make_artifact
from tests.small_backbone import BACKBONE

pytestmark = pytest.mark.slow

RUN = [
    "image.size=[32, 32]",
    f"trainer.backbone={BACKBONE}",
    "trainer.weights=none",
    "trainer.epochs=30",
    "trainer.batch_size=16",
    "trainer.learning_rate=0.002",
    "trainer.augmentation.horizontal_flip=false",
    "serving.engine=openvino",
    "serving.precision=int8",
    "serving.min_agreement=0",  # what hardly learned anything is unsure of everything
    "serving.max_loss=1",
    "evaluation.thresholds.accuracy=0.5",
    "evaluation.intervals=none",
]


def command(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def spoil_scales(form: Path) -> None:
    """Makes the ranges of a form's quantized activations a hundredth of what they have to be."""
    network = openvino.Core().read_model(form / NETWORK)
    for limits in network.get_ordered_ops():
        if limits.get_type_name() == "FakeQuantize":
            for port in range(1, 5):
                limit = limits.input_value(port).get_node().data / 100
                limits.input(port).replace_source_output(ops.constant(limit).output(0))
    openvino.save_model(network, form / "spoiled.xml", compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        (form / f"spoiled{suffix}").replace((form / NETWORK).with_suffix(suffix))
    write_form(form, read_form(form))  # what is damaged only is not even loaded


def test_evaluator_serving_check_and_predict_agree_on_an_int8_model_and_bad_scales_are_refused(digits_folder, tmp_path):
    root = tmp_path / "digits"
    assert command("ingest", str(digits_folder), "--out", str(root / "dataset")).exit_code == 0
    assert command("init", str(root / "dataset")).exit_code == 0
    sets = [argument for override in RUN for argument in ("--set", override)]
    result = command("run", str(root / "pipeline.yaml"), *sets)
    (summary,) = list_summaries(root / "runs")
    assert (result.exit_code, summary.blessed) == (0, True), summary.not_blessed_because
    assert (summary.served.engine, summary.served.precision) == ("openvino", "int8")
    version = Path(summary.serving_dir) / str(summary.pushed_version)
    assert read_form(find_form(version))["precision"] == "int8"

    (folder,) = (root / "artifacts" / "Predictions" / "predictions").iterdir()
    rows = pq.read_table(folder / "predictions.parquet").to_pylist()
    labels = {path.name: path.parent.name for path in digits_folder.glob("*/*.png")}
    images = [next(digits_folder.glob(f"*/{Path(row['id']).name}")) for row in rows]
    asked = command("predict", summary.serving_dir, *map(str, images), "--json").stdout
    answers = [json.loads(line)["label"] for line in asked.splitlines()]
    assert answers == [row["candidate_label"] for row in rows]
    accuracy = np.mean([label == labels[image.name] for label, image in zip(answers, images, strict=True)])
    assert round(float(accuracy), 4) == round(summary.metrics["accuracy"], 4)
    assert summary.serving.problems == []  # of labels that the graph doesn't give, among others
    assert summary.serving.images > 0

    spoiled = Path(shutil.copytree(Path(str(summary.model_dir)).parent, tmp_path / "spoiled"))
    spoil_scales(find_form(spoiled / Path(str(summary.model_dir)).name))
    (folder,) = (root / "artifacts" / "ImportExampleGen" / "examples").iterdir()
    examples = make_artifact(standard_artifacts.Examples, folder)
    examples.split_names = artifact_utils.encode_split_names(["eval"])
    demands = EvaluationConfig(thresholds={"accuracy": 0.5}, intervals="none")
    model = make_artifact(standard_artifacts.Model, spoiled)
    folder, blessed = evaluate(tmp_path / "evaluation", examples, model, None, demands)
    assert not blessed
    (refusal,) = read_evaluation(folder).refusals  # not of the SavedModel
    assert "below the threshold of 0.5" in refusal
