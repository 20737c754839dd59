"""Predictions of real SavedModels on Examples as an ExampleGen writes them."""

import importlib.util
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tfx.types import artifact_utils, standard_artifacts

from components.predictions import row_writer
from components.predictions.component import Predictions
from imagepipe.base.errors import ModelError
from imagepipe.base.features import Features
from imagepipe.base.names import NAMES, REFERENCE_FILE, ROWS
from imagepipe.monitoring.reference import read_reference
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.types import Request
from tests.components.test_serving_check import gray
from tests.conftest import encode_image
from tests.serving.conftest import add_form, save_brightness


def make_example(**values) -> tf.train.Example:
    example = tf.train.Example()
    for name, value in values.items():
        feature = example.features.feature[name]
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                feature.int64_list.value.append(one)
            elif isinstance(one, float):
                feature.float_list.value.append(one)
            else:
                feature.bytes_list.value.append(one)
    return example


def write_split(folder: Path, shards: list[list[tf.train.Example]], split: str = "eval") -> Path:
    (folder / f"Split-{split}").mkdir(parents=True)
    for number, shard in enumerate(shards):
        path = str(folder / f"Split-{split}" / f"data-{number:05}.gz")
        with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions("GZIP")) as writer:
            for example in shard:
                writer.write(example.SerializeToString())
    return folder / f"Split-{split}"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return (
        save_brightness(root / "candidate" / "Format-Serving", root / "assets"),
        save_brightness(root / "champion" / "Format-Serving", root / "other", names=("black", "white")),
    )


LIGHT, DARK = encode_image(gray(240)), encode_image(gray(20))


def test_each_example_has_its_row_in_the_order_of_the_files(models, tmp_path, monkeypatch):
    monkeypatch.setattr(row_writer, "_BATCH_SIZE", 3)
    monkeypatch.setattr(row_writer, "_BATCHES_PER_GROUP", 2)
    shades = [encode_image(gray(value)) for value in range(0, 250, 25)]
    examples = [make_example(input=shade, label=b"dark", metadata=f"id-{i}".encode()) for i, shade in enumerate(shades)]
    split = write_split(tmp_path / "examples", [examples[:4], examples[4:]])
    row_writer.write_predictions(str(split), *models, Features(), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / ROWS).to_pylist()
    assert [(row["index"], row["id"]) for row in rows] == [(i, f"id-{i}") for i in range(len(shades))]
    # The rows have the answers that the models give to the images by their other signature.
    for name, folder in zip(("candidate", "champion"), models, strict=True):
        model = LoadedModel(folder)
        for row, prediction in zip(rows, model.predict([Request("", shade) for shade in shades]), strict=True):
            assert dict(zip(model.labels, row[name], strict=True)) == prediction.classes
            assert row[f"{name}_label"] == prediction.label
    names = {"task": "classification", "candidate": ["dark", "light"], "champion": ["black", "white"]}
    assert json.loads((tmp_path / "out" / NAMES).read_text()) == names
    assert pq.ParquetFile(tmp_path / "out" / ROWS).num_row_groups == 2


def test_columns_of_one_value_are_kept_and_missing_values_are_null(models, tmp_path):
    rest = {"metadata": b"\xff<b>", "sha256": b"abc", "width": 20, "height": 10, "camera": b"new", "weight": 0.5}
    examples = [
        make_example(input=LIGHT, label=b"light", **rest, serial=7, mixed=1, several=[1.0, 2.0]),
        make_example(input=DARK, metadata=b"", serial=8, mixed=b"one", width=b"no number"),
    ]
    split = write_split(tmp_path / "examples", [examples])
    row_writer.write_predictions(str(split), models[0], None, Features(), tmp_path / "out")
    first, second = pq.read_table(tmp_path / "out" / ROWS).to_pylist()
    assert {name: value for name, value in first.items() if not name.startswith("candidate")} == {
        "index": 0,
        "id": "\ufffd<b>",
        "sha256": "abc",
        "labels": ["light"],
        "target": None,
        "champion": None,
        "champion_label": None,
        "champion_novelty": None,
        "width": 20,
        "height": 10,
        "x_camera": "new",
        "x_mixed": "1",
        "x_serial": 7.0,
        "x_weight": 0.5,
    }
    assert (second["id"], second["labels"], second["x_mixed"], second["x_serial"]) == ("eval/1", [], "one", 8.0)
    assert [second[name] for name in ("sha256", "width", "height", "x_camera", "x_weight")] == [None] * 5
    assert json.loads((tmp_path / "out" / NAMES).read_text())["champion"] is None


@pytest.mark.parametrize(
    ("task", "label", "labels", "target"),
    [
        ("classification", 7, ["7"], None),
        ("multilabel", [b"a", b"b"], ["a", "b"], None),
        ("multilabel", [], [], None),
        ("regression", 2.5, [], 2.5),
        ("regression", 3, [], 3.0),
        ("regression", [], [], None),
    ],
)
def test_labels_and_target_follow_the_task(models, tmp_path, monkeypatch, task, label, labels, target):
    monkeypatch.setattr(row_writer, "read_task", lambda folder: task)
    split = write_split(tmp_path / "examples", [[make_example(input=LIGHT, metadata=b"x", tags=label)]])
    row_writer.write_predictions(str(split), models[0], None, Features(label="tags"), tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out" / ROWS).to_pylist()
    assert (row["labels"], row["target"]) == (labels, target)
    assert "x_tags" not in row


def make_artifact(kind: type, folder: Path):
    artifact = kind()
    artifact.uri = str(folder)
    return artifact


def test_without_a_champion_the_component_asks_the_candidate_only(models, tmp_path):
    write_split(tmp_path / "examples", [[make_example(input=LIGHT, metadata=b"x", brightness=0.9)], []])
    train = [make_example(input=DARK, width=20, brightness=b"no number"), make_example(input=DARK, brightness=0.1)]
    write_split(tmp_path / "examples", [train], "train")
    examples = make_artifact(standard_artifacts.Examples, tmp_path / "examples")
    examples.split_names = artifact_utils.encode_split_names(["train", "eval"])
    (tmp_path / "empty").mkdir()
    inputs = {
        "examples": [examples],
        "model": [make_artifact(standard_artifacts.Model, models[0].parent)],
        "champion": [make_artifact(standard_artifacts.Model, tmp_path / "empty")],
    }
    folders = {"predictions": tmp_path / "out", "reference": tmp_path / "reference"}
    outputs = {key: [make_artifact(standard_artifacts.InferenceResult, folder)] for key, folder in folders.items()}
    Predictions.EXECUTOR_SPEC.executor_class().Do(inputs, outputs, {"features": json.dumps(asdict(Features()))})
    (row,) = pq.read_table(tmp_path / "out" / ROWS).to_pylist()
    assert (row["candidate_label"], row["champion_label"]) == ("light", None)
    assert 0 < row["candidate_novelty"] < 0.2
    reference = read_reference(str(tmp_path / "reference" / REFERENCE_FILE))
    assert (reference.task, reference.version, reference.evaluated.labels) == ("classification", "", [["light"]])
    assert reference.evaluated.numbers["score"] == pytest.approx(max(row["candidate"]))
    assert reference.evaluated.numbers["brightness"] == pytest.approx(0.9)
    assert reference.trained.numbers["brightness"] == pytest.approx([np.nan, 0.1], nan_ok=True)
    assert reference.trained.numbers["width"] == pytest.approx([20, np.nan], nan_ok=True)


def test_a_champion_whose_form_cannot_be_used_here_answers_by_its_saved_model(models, tmp_path, monkeypatch):
    champion = tmp_path / "1"
    shutil.copytree(models[1], champion)
    add_form(champion, tmp_path / "assets")
    split = write_split(tmp_path / "examples", [[make_example(input=LIGHT, metadata=b"x")]])

    def predict(folder: str, candidate: Path, champion: Path | None) -> list[dict]:
        row_writer.write_predictions(str(split), candidate, champion, Features(), tmp_path / folder)
        return pq.read_table(tmp_path / folder / ROWS).to_pylist()

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    (row,) = predict("champion", models[0], champion)
    assert row["champion_novelty"] == row["candidate_novelty"]
    with pytest.raises(ModelError, match="not installed"):  # what nobody could ask must not pass the gate
        predict("candidate", champion, None)


def test_a_champion_without_the_names_of_its_outputs_is_refused_with_a_message(models, tmp_path):
    nameless = tmp_path / "nameless"
    tf.saved_model.save(tf.Module(), str(nameless))
    split = write_split(tmp_path / "examples", [[make_example(input=LIGHT, metadata=b"x")]])
    with pytest.raises(ModelError, match="nameless can't be loaded as a model of this pipeline"):
        row_writer.write_predictions(str(split), models[0], nameless, Features(), tmp_path / "out")
