"""From a file of weights to an exported model, for each task: head, upper blocks, calibration and signatures."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.features import IMAGE, Features
from tests.conftest import SIZE, make_digit_images, serialize_example
from tests.small_backbone import build
from trainer.run_fn import run_fn

OPTIONS = {"head_units": None, "head_epochs": 1, "epochs": 1, "views": 2, "validation": 0.5}
DIGITS = [(int(digit), png) for digit, png in make_digit_images(60)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    keras.utils.set_random_seed(1)
    file = tmp_path_factory.mktemp("weights") / "base.weights.h5"
    build(SIZE).save_weights(file)
    return file


def train(arguments, folder, weights, caplog):
    """Trains, and returns the exported model's answers to the images on which it was trained."""
    arguments["custom_config"]["serving"] = {"optimize": "off"}  # which other tests are about
    run_fn(SimpleNamespace(**arguments))
    history = json.loads((folder / "model" / "training" / "history.json").read_text())
    assert [row["phase"] for row in history] == ["head", "upper blocks"]
    assert "keeping the outputs of features" in caplog.text
    given, trained = (build(SIZE) for _ in range(2))
    given.load_weights(weights)
    trained.load_weights(folder / "model" / "training" / "base.weights.h5")
    for one, other in list(zip(given.get_weights(), trained.get_weights(), strict=True))[:4]:  # of the frozen layers
        np.testing.assert_array_equal(one, other)
    (pattern,) = arguments["train_files"]
    examples = list(tf.data.TFRecordDataset(tf.io.gfile.glob(pattern)).as_numpy_iterator())
    served = tf.saved_model.load(str(folder / "model" / "Format-Serving"))
    answers = served.signatures["tf_examples"](examples=tf.constant(examples))
    assert np.isfinite(answers["novelty"]).all()
    return {name: value.numpy() for name, value in answers.items()}


def set_task(arguments, task, analysis, records, folder):
    """Returns the arguments with another task, an analysis that fits it, and other Examples."""
    file = folder / "all.tfrecord"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)
    files = {f"{split}_files": [str(file)] for split in ("train", "eval")}
    graph = analysis.transform_savedmodel_dir.removesuffix("/transform_fn")
    custom = arguments["custom_config"] | {"task": task, "features": asdict(Features())}
    return arguments | files | {"transform_graph_path": graph, "custom_config": custom}


@pytest.mark.long
def test_side_features_beside_given_weights(arguments, analyzed, weights, tmp_path, caplog):
    answers = train(arguments(tmp_path, weights=str(weights), **OPTIONS), tmp_path, weights, caplog)
    labels = [tf.train.Example.FromString(row).features.feature["label"].bytes_list.value[0] for row in analyzed[2]]
    assert np.mean(answers["label"] == labels) > 0.7


@pytest.mark.slow
def test_several_labels_from_given_weights(arguments, analyzed_multilabel, weights, tmp_path, caplog):
    names = {"a": {0, 2, 4, 6, 8}, "b": {0, 1, 2, 3}, "c": {7}}
    labels = [[name for name, digits in names.items() if digit in digits] for digit, _ in DIGITS]
    records = [serialize_example(png, row) for (_, png), row in zip(DIGITS, labels, strict=True)]
    given = arguments(tmp_path, weights=str(weights), **OPTIONS)
    given = set_task(given, "multilabel", analyzed_multilabel[0], records, tmp_path)
    answers = train(given, tmp_path, weights, caplog)
    expected = [[name in row for name in "abc"] for row in labels]
    assert np.mean((answers["classes"] > 0.5) == expected) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{}, {"precision": "mixed_bfloat16", "refit": True}], ids=["once", "in bfloat16, twice"]
)
def test_a_large_number_from_given_weights(arguments, analyzed_regression, weights, tmp_path, caplog, more):
    records = [serialize_example(png, [1e5 + 1e4 * digit]) for digit, png in DIGITS]
    given = arguments(tmp_path, weights=str(weights), **OPTIONS, **more)
    given = set_task(given, "regression", analyzed_regression[0], records, tmp_path)
    answers = train(given, tmp_path, weights, caplog)
    numbers = np.array([1e5 + 1e4 * digit for digit, _ in DIGITS])
    errors = np.abs(answers["score"] - numbers)
    assert errors.mean() < 0.7 * np.abs(numbers - numbers.mean()).mean()
    history = json.loads((tmp_path / "model" / "training" / "history.json").read_text())
    assert all(row["val_loss"] < 10 < 1000 < row["val_mean_absolute_error"] < 60_000 for row in history)
    model = keras.models.load_model(tmp_path / "model" / "training" / "model.keras")
    images = tf.image.resize([tf.io.decode_png(png, channels=3) for _, png in DIGITS], SIZE)
    unserved = np.ravel(model({IMAGE: tf.cast(images, tf.uint8)}))
    assert unserved.mean() == pytest.approx(answers["score"].mean(), rel=0.1)  # in the target's unit
