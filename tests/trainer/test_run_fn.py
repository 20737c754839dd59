"""``run_fn`` on a small backbone: the files that it writes, and resuming after a kill."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import imagepipe
from components.model_report.grad_cam import compute_heat_maps
from imagepipe.base.errors import TrainingError
from tests.conftest import SIZE
from tests.trainer.conftest import SMALL
from trainer.own_backbone import load_function
from trainer.run_fn import run_fn

pytestmark = pytest.mark.slow

EPOCHS = SMALL["epochs"]
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def start(arguments: dict, folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "arguments.json").write_text(json.dumps(arguments))
    command = [sys.executable, "-m", "tests.trainer.run_training", str(folder / "arguments.json")]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)  # noqa: S603


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    process = start(arguments(folder), folder)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-3000:]
    return folder, log


def history_of(folder: Path) -> list[dict]:
    return json.loads((folder / "model" / "training" / "history.json").read_text())


def test_the_results_for_people_are_beside_the_model(trained):
    folder, _ = trained
    training = folder / "model" / "training"
    assert {file.name for file in training.iterdir()} == {
        "augmentation.png",
        "base.weights.h5",
        "calibration.json",
        "config.json",
        "curves.png",
        "history.json",
        "model.keras",
        "novelty.npz",
        "optimized.json",
        "summary.txt",
    }
    assert "hidden" in (training / "summary.txt").read_text()
    settings = json.loads((training / "config.json").read_text())
    assert (settings["trainer"]["head_units"], settings["novelty_doubt"]) == (8, "")
    assert list((folder / "model_run").glob("events.out.tfevents.*"))
    assert not list((folder / "state").iterdir())


def test_the_log_tells_how_far_it_is_and_how_fast(trained):
    _, log = trained
    assert "48 images to train on, and 48 to choose on" in log
    assert "of 48 images of the train split would be set aside to choose on, and 20 are the minimum" in log
    for epoch in range(1, EPOCHS + 1):
        assert f"all, epoch {epoch} of {EPOCHS}: step 6 of 6" in log
    assert "images/s" in log
    assert "waiting for input" in log


def test_what_is_exported_is_what_was_trained(trained, analyzed):
    folder, _ = trained
    best = [row for row in history_of(folder) if row["kept"]][-1]
    served = tf.saved_model.load(str(folder / "model" / "Format-Serving"))
    labels = [tf.train.Example.FromString(s).features.feature["label"].bytes_list.value[0] for s in analyzed[2]]
    answers = served.signatures["tf_examples"](examples=tf.constant(analyzed[2]))
    assert np.mean(answers["label"].numpy() == np.array(labels)) == pytest.approx(best["val_accuracy"], abs=1e-6)
    # It can be trained on: without an optimizer, in float32.
    assert keras.models.load_model(folder / "model" / "training" / "model.keras").dtype_policy.name == "float32"


@pytest.mark.long  # tests/trainer/test_schedule.py has a training without TFX among the quick tests
def test_a_run_killed_in_its_third_epoch_trains_only_the_rest_and_ends_with_the_same_weights(
    trained, arguments, tmp_path
):
    process = start(arguments(tmp_path), tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if f"epoch 2 of {EPOCHS}: loss" in line:  # and so in the third
            process.kill()
            break
    process.wait(timeout=60)
    assert not (tmp_path / "model").exists()

    process = start(arguments(tmp_path), tmp_path)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-3000:]
    assert "resuming after 2 epochs" in log
    assert f"epoch 2 of {EPOCHS}" not in log
    assert f"epoch 3 of {EPOCHS}" in log
    assert len(history_of(tmp_path)) == EPOCHS
    expected, resumed = (
        keras.models.load_model(folder / "model" / "training" / "model.keras").get_weights()
        for folder in (trained[0], tmp_path)
    )
    assert all(np.array_equal(a, b) for a, b in zip(expected, resumed, strict=True))


def test_what_was_trained_in_bfloat16_and_once_more_on_all_images_is_exported_in_float32(arguments, tmp_path, caplog):
    options = {"precision": "mixed_bfloat16", "epochs": 1, "validation": 0.5, "refit": True}
    run_fn(SimpleNamespace(**arguments(tmp_path, **options)))
    assert "once more, on all 48 images of the train split, for as many steps in as many epochs: all 1" in caplog.text
    assert len(history_of(tmp_path)) == 1
    model = keras.models.load_model(tmp_path / "model" / "training" / "model.keras")
    assert {weight.dtype for weight in model.weights} <= {"float32", "uint32"}
    assert model.dtype_policy.name == keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("refit", [False, True])
def test_after_an_export_that_was_refused_only_the_export_is_done_again(
    arguments, tmp_path, monkeypatch, caplog, refit
):
    def refuse(*_):
        raise TrainingError("serving.precision: bfloat16 is refused. Try auto")

    options = {"epochs": 2, "validation": 0.5, "refit": refit}
    given = arguments(tmp_path, **options)
    given["custom_config"]["serving"] = {"engine": "auto", "precision": "bfloat16"}
    monkeypatch.setattr("trainer.run_fn.choose_forms", refuse)
    with pytest.raises(TrainingError, match="bfloat16 is refused"):
        run_fn(SimpleNamespace(**given))
    monkeypatch.undo()
    caplog.clear()
    run_fn(SimpleNamespace(**arguments(tmp_path, **options, calibration="none")))
    assert caplog.text.count("the training had ended, after 2 epochs") == 1 + refit
    assert "epoch 1 of" not in caplog.text
    assert len(history_of(tmp_path)) == 2
    config = json.loads((tmp_path / "model" / "training" / "config.json").read_text())
    assert (config["serving"]["precision"], config["trainer"]["calibration"]) == ("auto", "none")
    assert not list((tmp_path / "state").iterdir())


def test_a_limit_that_too_few_images_could_show_is_not_applied_which_the_log_and_the_settings_say(
    arguments, analyzed, tmp_path, caplog
):
    given = arguments(tmp_path, epochs=1)
    with tf.io.TFRecordWriter(str(tmp_path / "few.tfrecord")) as writer:
        for record in analyzed[2][:5]:
            writer.write(record)
    given["eval_files"] = [str(tmp_path / "few.tfrecord")]
    given["custom_config"]["serving"] = {"optimize": "off", "unknown": {"novelty": 0.01}}
    run_fn(SimpleNamespace(**given))
    settings = json.loads((tmp_path / "model" / "training" / "config.json").read_text())
    doubt = "Novelty is fitted to 5 held-out images, and 20 are the minimum"
    assert doubt in caplog.text
    assert doubt in settings["novelty_doubt"]
    assert "serving.unknown is not applied" in settings["novelty_doubt"]
    assert settings["serving"]["unknown"] is None
    served = tf.saved_model.load(str(tmp_path / "model" / "Format-Serving"))
    answers = served.signatures["tf_examples"](examples=tf.constant(analyzed[2]))
    assert (answers["novelty"].numpy() > 0.01).any()
    assert all(answers["label"].numpy())


def test_a_backbone_of_ones_own_is_fine_tuned_exported_and_served(arguments, analyzed, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    options = {"backbone": "vision_transformer:build", "weights": str(tmp_path / "base.weights.h5")}
    load_function(options["backbone"])(SIZE).save_weights(options["weights"])
    run_fn(SimpleNamespace(**arguments(tmp_path, **options, head_epochs=1, epochs=1)))
    assert [row["phase"] for row in history_of(tmp_path)] == ["head", "upper blocks"]
    model = tmp_path / "model" / "Format-Serving"
    records = analyzed[2]
    answers = tf.saved_model.load(str(model)).signatures["tf_examples"](examples=tf.constant(records))
    pngs = [
        tf.train.Example.FromString(record).features.feature["input"].bytes_list.value[0] for record in records[1:3]
    ]
    sides = [{"weight": float(number), "camera": "new" if number % 2 else "old"} for number in (1, 2)]
    predictions = imagepipe.load(model).predict(pngs, sides)
    scores = [prediction.score for prediction in predictions]
    np.testing.assert_allclose(scores, answers["score"][1:3], atol=0.01)
    trained = model.parent / "training" / "model.keras"
    assert compute_heat_maps(trained, model, {1: records[1]}, {1: 0}) == {}  # of tokens there is no map


def test_a_class_that_training_lacks_is_named_before_training(arguments, tmp_path):
    strange = tf.train.Example()
    png = tf.io.encode_png(tf.zeros([8, 8, 3], tf.uint8)).numpy()
    for name, value in {"input": png, "label": b"zebra", "camera": b"old"}.items():
        strange.features.feature[name].bytes_list.value.append(value)
    with tf.io.TFRecordWriter(str(tmp_path / "eval.tfrecord")) as writer:
        writer.write(strange.SerializeToString())
    wrong = arguments(tmp_path) | {"eval_files": [str(tmp_path / "eval.tfrecord")]}
    with pytest.raises(TrainingError, match=r"1 of 1 images of the eval split .* 'zebra' \(1\)"):
        run_fn(SimpleNamespace(**wrong))
    assert not (tmp_path / "model").exists()
