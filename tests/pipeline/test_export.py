"""Exports: which forms there are, and what is said of each."""

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2
from typer.testing import CliRunner

from imagepipe.base.errors import ConfigError, ModelError
from imagepipe.base.labels import encode_names
from pipeline import export
from pipeline.cli import app
from pipeline.export_figures import compare_answers, describe_figures


def write_graph(folder: Path) -> None:
    """Writes a SavedModel's file with nothing but the inputs of its signature."""
    graph = saved_model_pb2.SavedModel()
    inputs = graph.meta_graphs.add().signature_def["serving_default"].inputs
    for name, dtype in (("input", 7), ("metadata", 7), ("weight", 1)):
        inputs[name].dtype = dtype
    (folder / "saved_model.pb").write_bytes(graph.SerializeToString())


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        (["onnx", "float16"], "x.onnx", "ONNX Runtime computes in float32 on CPUs"),
        (["saved_model", "int8"], "x", "serving.precision is what decides"),
        (["openvino", "int8"], "x.onnx", "a file of openvino ends in .xml"),
        (["tflite", "int8"], "nowhere/x.tflite", "there is no folder"),
        (["openvino"], "taken.xml", "is a folder: give a file that ends in .xml"),
        (["openvino"], "x.xml", "x.bin is there, and would be replaced: give another name than x.xml"),
        (["saved_model"], "", "exists; a SavedModel is a folder that is written new"),
    ],
)
def test_a_form_or_place_that_makes_no_sense_is_refused_before_anything_is_loaded(tmp_path, options, out, message):
    (tmp_path / "taken.xml").mkdir()
    (tmp_path / "x.bin").write_bytes(b"of somebody else")
    kind, *precision = options
    arguments = ["--format", kind, "--out", str(tmp_path / out), *(["--precision", *precision] if precision else [])]
    result = CliRunner().invoke(app, ["export", str(tmp_path / "model"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", "onnx"), ("openvino", "xml")])
def test_without_its_extra_a_format_is_refused_with_what_to_install(tmp_path, monkeypatch, kind, suffix):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = str(tmp_path / f"x.{suffix}")
    result = CliRunner().invoke(app, ["export", str(tmp_path), "--format", kind, "--out", out])
    assert result.exit_code == 2
    assert f"pip install 'imagepipe-tfx[{kind}]'" in result.stderr


def make_batches(expected: np.ndarray, actual: np.ndarray, targets: np.ndarray, **further: np.ndarray):
    """Batches as they are read, whose pixels are an export's answers."""

    def take(array: np.ndarray, rows: slice) -> dict:
        return {"classes": array[rows]} | {name: values[rows] for name, values in further.items()}

    return iter([(take(actual, rows), take(expected, rows), targets[rows]) for rows in (slice(0, 3), slice(3, 4))])


EXPECTED = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.2, 0.8]], np.float32)


ACTUAL = np.array([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1], [0.2, 0.8]], np.float32)


def compare(batches, task: str, thresholds=(0.5, 0.5), limit: float | None = None) -> dict:
    return compare_answers(lambda answers: answers, batches, task, list(thresholds), limit)


def test_the_figures_are_those_of_the_answers():
    figures = compare(make_batches(EXPECTED, ACTUAL, np.array([0, 1, 0, 0])), "classification")
    assert figures["images"] == 4
    assert (figures["same_label"], figures["accuracy"], figures["accuracy_of_the_model"]) == (3, 0.5, 0.75)
    assert figures["largest_difference"] == pytest.approx(0.3)
    assert figures["mean_difference"] == pytest.approx(0.6 / 8)
    interval = pytest.approx([0.1941, 0.9937], abs=1e-4)  # Clopper and Pearson's, of 3 in 4
    assert figures["same_label_interval"] == interval
    assert "3 have its label (95 % interval of the share: 0.194 to 0.994). Accuracy 0.5, the model's 0.75." in (
        describe_figures(figures)
    )
    json.dumps(figures)


def test_several_labels_are_compared_as_they_are_assigned():
    targets = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    figures = compare(make_batches(EXPECTED, ACTUAL, targets), "multilabel")
    assert (figures["same_labels"], figures["macro_f1_of_the_model"]) == (3, 1)
    assert figures["macro_f1"] == pytest.approx((2 * 2 / 5 + 2 * 1 / 3) / 2)
    assert "3 have the same labels" in describe_figures(figures)
    assert "Macro F1 0.7333, the model's 1." in describe_figures(figures)
    all_same = compare(make_batches(EXPECTED, ACTUAL, targets), "multilabel", thresholds=(0.25, 0.35))
    assert all_same["same_labels"] == 4
    nothing = compare(make_batches(EXPECTED, ACTUAL, np.zeros((4, 2))), "multilabel", thresholds=(1, 1))
    assert nothing["macro_f1"] is None  # no label occurs or is predicted
    json.dumps(nothing, allow_nan=False)


def test_numbers_are_compared_by_their_error_where_there_is_one_to_compare_with():
    actual, expected = ACTUAL[:, :1], EXPECTED[:, :1]
    figures = compare(make_batches(expected, actual, np.array([0.5, 0.5, np.nan, 0.2], np.float32)), "regression")
    assert figures["mean_absolute_error"] == pytest.approx((0.1 + 0.1 + 0) / 3)
    assert figures["mean_absolute_error_of_the_model"] == pytest.approx((0.1 + 0.2 + 0) / 3)
    assert "Mean absolute error 0.06667, the model's 0.1." in describe_figures(figures)
    unknown = compare(make_batches(expected, actual, np.full(4, np.nan, np.float32)), "regression")
    assert unknown["mean_absolute_error"] is None
    assert "error" not in describe_figures(unknown)


def test_novelty_is_compared_like_the_classes_and_by_the_limit_of_what_is_unknown():
    novelty = np.array([0.1, 0.5, 0.97, 0.99], np.float32)

    def compare_shifted(limit: float | None) -> dict:
        batches = make_batches(EXPECTED, EXPECTED, np.zeros(4, int), novelty=novelty)

        def ask(answers: dict) -> dict:
            return answers | {"novelty": answers["novelty"] - np.float32(0.08)}

        return compare_answers(ask, batches, "classification", [], limit)

    figures = compare_shifted(0.9)
    assert figures["novelty"]["largest_difference"] == pytest.approx(0.08)
    assert figures["novelty"]["mean_difference"] == pytest.approx(0.08)
    assert figures["novelty"]["same_unknown"] == 3
    text = str(export.Export(Path("x"), Path("x.json"), figures, "", ""))
    assert "Its novelty differs by up to 0.08, on average by 0.08. 3 are unknown, or not, as by the model." in text
    assert "same_unknown" not in compare_shifted(None)["novelty"]


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    """A run's SavedModel with its Examples, whose network and runtimes are stand-ins that answer at once."""
    import imagepipe.serving.loaded_model
    from trainer.export import portable

    def write(network, precision, images, file: Path) -> None:
        file.write_text(f"new {precision}")
        if file.suffix == ".xml":
            file.with_suffix(".bin").write_text("new weights")

    loaded = SimpleNamespace(labels=["rain", "snow"], task="classification")
    monkeypatch.setattr(imagepipe.serving.loaded_model, "LoadedModel", lambda *arguments: loaded)
    monkeypatch.setattr(portable, "load_network", lambda folder: SimpleNamespace(inputs=[IMAGES]))
    for kind in ("onnx", "openvino", "tflite"):
        monkeypatch.setattr(portable, f"write_{kind}", write)
        monkeypatch.setattr(portable, f"open_{kind}", lambda file: lambda answers: answers)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)  # of the extras
    folder = tmp_path / "trained" / "Format-Serving"
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "labels").write_bytes(encode_names(["rain", "snow"]))
    write_graph(folder)
    (tmp_path / "trained" / "training").mkdir()
    (tmp_path / "trained" / "training" / "model.keras").touch()
    source = export._Source(str(folder), "today", str(tmp_path / "examples"))
    monkeypatch.setattr(export, "_find_source", lambda path: source)
    monkeypatch.setattr(
        export, "_read_batches", lambda *arguments: make_batches(EXPECTED, EXPECTED, np.array([0, 1, 0, 0]))
    )
    return str(folder)


IMAGES = SimpleNamespace(shape=(None, 60, 80, 3))


def write_last_weeks(folder: Path, kind: str) -> tuple[Path, dict[str, str]]:
    """Writes an export as one of last week left it: its file, and the contents of all files by their names."""
    names = {"tflite": ["x.tflite"], "onnx": ["x.onnx"], "openvino": ["x.xml", "x.bin"]}[kind]
    folder.mkdir()
    for name in (*names, f"{names[0]}.json"):
        (folder / name).write_text("of last week")
    return folder / names[0], read_all(folder)


def read_all(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["tflite", "onnx", "openvino"])
def test_an_export_takes_the_place_of_the_one_before_with_all_its_files(model, tmp_path, kind):
    out, contents = write_last_weeks(tmp_path / "out", kind)
    exported = export.export_model(model, out, kind, "float32")
    after = read_all(out.parent)
    assert after.keys() == contents.keys()
    assert (exported.file, exported.card) == (out, Path(f"{out}.json"))
    assert after[out.name] == "new float32"
    assert json.loads(exported.card.read_text())["run"] == "today"
    assert after.get("x.bin", "new weights") == "new weights"


@pytest.mark.parametrize("kind", ["tflite", "onnx", "openvino"])
@pytest.mark.parametrize(
    ("step", "error", "expected"),
    [
        ("_open_written", ModelError("it can't be opened"), ModelError),
        ("_read_batches", KeyboardInterrupt(), KeyboardInterrupt),
        ("_describe", OSError("the disk is full"), OSError),
    ],
)
def test_an_export_that_fails_leaves_the_one_before_as_it_was(
    model, tmp_path, monkeypatch, kind, step, error, expected
):
    out, contents = write_last_weeks(tmp_path / "out", kind)

    def fail(*arguments):
        raise error

    monkeypatch.setattr(export, step, fail)
    with pytest.raises(expected):
        export.export_model(model, out, kind, "float32")
    assert read_all(out.parent) == contents


@pytest.mark.parametrize("name", ["x.bin", "x.xml", "x.xml.json"])
def test_files_that_can_not_all_be_put_in_place_leave_those_before(model, tmp_path, monkeypatch, name):
    out, contents = write_last_weeks(tmp_path / "out", "openvino")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if target == out.with_name(name) and self.read_text() != "of last week":
            raise PermissionError(13, "Permission denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        export.export_model(model, out, "openvino", "float32")
    assert read_all(out.parent) == contents


def test_ctrl_c_while_files_are_put_in_place_waits_until_all_are(model, tmp_path, monkeypatch):
    out, contents = write_last_weeks(tmp_path / "out", "openvino")
    rename = Path.rename

    def interrupt(self: Path, target: Path) -> Path:
        os.kill(os.getpid(), signal.SIGINT)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export.export_model(model, out, "openvino", "float32")
    after = read_all(out.parent)
    assert after.keys() == contents.keys()
    assert "of last week" not in after.values()


def test_a_savedmodel_is_there_when_all_of_it_is(model, tmp_path, monkeypatch):
    out = tmp_path / "new" / "folder"
    copy = shutil.copyfile

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export.export_model(model, out, "saved_model", None)
    assert not any(out.parent.iterdir())
    monkeypatch.setattr(shutil, "copyfile", copy)
    exported = export.export_model(model, out, "saved_model", None)
    assert exported.card == tmp_path / "new" / "folder.json"
    assert {str(file.relative_to(out.parent)) for file in out.parent.rglob("*") if file.is_file()} == {
        "folder.json",
        "folder/assets/labels",
        "folder/saved_model.pb",
    }


def test_a_savedmodel_may_go_into_the_folder_that_it_is_a_copy_of(model):
    exported = export.export_model(model, Path(model) / "copy", "saved_model", None)
    assert (exported.file / "assets" / "labels").is_file()
    assert not any(exported.file.rglob("*copy*"))


def test_a_folder_where_the_card_goes_is_refused_before_anything_is_written(model, tmp_path):
    out, contents = write_last_weeks(tmp_path / "out", "tflite")
    (out.parent / "x.tflite.json").unlink()
    (out.parent / "x.tflite.json").mkdir()
    with pytest.raises(ConfigError, match=r"x\.tflite\.json is a folder, and the file beside x\.tflite has that name"):
        export.export_model(model, out, "tflite", "float32")
    assert out.read_text() == contents["x.tflite"]


def test_what_its_own_runtime_does_not_open_is_said(tmp_path):
    pytest.importorskip("onnxruntime")
    from trainer.export.portable import open_onnx

    file = tmp_path / "x.onnx"
    file.write_bytes(b"nonsense")
    with pytest.raises(ModelError, match=r"--format onnx: .* can't be opened: .*Nothing was written; take another fo"):
        export._open_written(open_onnx, file, "onnx")


def test_the_size_of_the_images_is_the_networks_also_of_a_model_without_a_run(model, tmp_path):
    exported = export.export_model(model, tmp_path / "x.tflite", "tflite", "float32")
    assert json.loads(exported.card.read_text())["input"]["size"] == [60, 80]


@pytest.mark.parametrize("name", ["config.json", "thresholds.json", "optimized.json"])
@pytest.mark.parametrize("content", [b'{"serving": ', b"\xff{}"])
def test_facts_of_a_training_that_are_damaged_are_refused_in_words(model, tmp_path, name, content):
    (tmp_path / "trained" / "training" / "novelty.npz").touch()  # so that its limit is read
    (tmp_path / "trained" / "training" / name).write_bytes(content)
    kind, out = ("saved_model", "x") if name == "optimized.json" else ("tflite", "x.tflite")
    with pytest.raises(ModelError, match=rf"{name} is damaged: .*\. Copy it again, or run the pipeline again"):
        export.export_model(model, tmp_path / out, kind, None)


def test_examples_that_are_damaged_are_refused_in_words(tmp_path):
    (tmp_path / "examples.gz").write_bytes(b"no gzip")
    loaded = SimpleNamespace(loaded=SimpleNamespace(signatures={"transform_features": None, "tf_examples": None}))
    with pytest.raises(ModelError, match=r"The Examples in .* can't be read: .*run the pipeline again"):
        list(export._read_batches(loaded, str(tmp_path), 10))


def test_the_precision_of_a_savedmodel_is_its_own_and_not_that_of_the_form_beside_it(tmp_path):
    (tmp_path / "training").mkdir()
    facts = tmp_path / "training" / "optimized.json"
    source = export._Source(str(tmp_path / "Format-Serving"), "", "")
    assert source.read_precision() == ""
    facts.write_text(json.dumps({"engine": "openvino", "precision": "int8"}))  # of an earlier version
    assert source.read_precision() == ""
    facts.write_text(json.dumps({"engine": "openvino", "precision": "int8", "saved_precision": "bfloat16"}))
    assert source.read_precision() == "bfloat16"


def test_the_file_beside_has_what_makes_labels_of_the_answers(tmp_path):
    assets, training = tmp_path / "Format-Serving" / "assets", tmp_path / "training"
    assets.mkdir(parents=True)
    training.mkdir()
    write_graph(assets.parent)
    (assets / "labels").write_bytes(encode_names(["rain", "snow"]))
    (assets / "task").write_text("multilabel\n")
    (training / "config.json").write_text(json.dumps({"serving": {"unknown": {"novelty": 0.99}}}))
    (training / "thresholds.json").write_text(json.dumps({"rain": {"threshold": 0.3}, "snow": {"threshold": 0.5}}))
    (training / "novelty.npz").touch()
    source = export._Source(str(assets.parent), "", "")

    def describe() -> tuple[dict, str]:
        out, reason = tmp_path / "x.tflite", "the Examples are gone"
        result = export._describe(source, out, "tflite", "float32", None, reason, [60, 80])
        return json.loads(result.card.read_text()), str(result)

    card, text = describe()
    assert [output["name"] for output in card["outputs"]] == ["classes", "novelty", "embedding"]
    assert (card["unknown"]["novelty_from"], card["label_thresholds"]) == (0.99, {"rain": 0.3, "snow": 0.5})
    assert text == "It was not compared with the model: the Examples are gone."
    saved = json.loads(
        export._describe(source, tmp_path / "x", "saved_model", "float32", None, "", None).card.read_text()
    )
    assert [output["name"] for output in saved["outputs"]] == ["classes", "label", "score", "metadata", "novelty"]
    assert saved["unknown"]["novelty_from"] == 0.99
    assert saved["input"]["name"] == "input"
    assert saved["further_inputs"] == [
        {"name": "metadata", "type": "string [n]"},
        {"name": "weight", "type": "float32 [n]"},
    ]
    assert card["further_inputs"] == []
    (training / "novelty.npz").unlink()  # of an earlier version
    card, text = describe()
    assert ([output["name"] for output in card["outputs"]], card["unknown"]) == (["classes"], None)
    assert "It answers with classes alone, without novelty" in text
