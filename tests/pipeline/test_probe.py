"""``imagepipe probe``: pretrained backbones compared on a dataset, and the choice in the configuration."""

import json
import xml.etree.ElementTree as ET

import keras
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from imagepipe.base.errors import ConfigError
from imagepipe.ingest.command import ingest
from pipeline.cli import app
from pipeline.config_file import read_config
from pipeline.yaml_edit import replace_values
from tests.conftest import make_digit_images, make_example
from tests.weight_files import write_weights
from trainer import probe as backbones
from trainer.probe import Candidate, Images, Probed, choose_cheapest, read_images

CONFIG = """\
name: digits  # a name
data: {path: dataset}
image:
  size: [299, 299]  # as trained
trainer:
  # what is below the head
  epochs: 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of digits, whose first two classes differ in brightness, and a folder of weights."""
    root = tmp_path_factory.mktemp("probe")
    for i, (label, image) in enumerate(make_digit_images(60)):
        (root / "images" / label).mkdir(parents=True, exist_ok=True)
        (root / "images" / label / f"{i}.png").write_bytes(image)
    ingest(str(root / "images"), str(root / "dataset"))
    (root / "weights").mkdir()
    write_weights(root / "weights" / "mobile.h5", "mobilenet_v2")
    write_weights(root / "weights" / "v3.h5", "inception_v3")
    (root / "weights" / "broken.h5").write_bytes(b"nothing")
    (root / "weights" / "README.md").write_text("of whom they are")
    return root


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(backbones, "can_download", lambda: False)
    monkeypatch.setattr(backbones, "is_cached", lambda name: False)


def build_stand_in(config, size):
    """In place of the networks: one sees the pixels of a small image, the other only how bright it is."""
    image = keras.Input((*size, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(image)
    side = 8 if config.backbone == "mobilenet_v2" else 1
    return keras.Model(image, keras.layers.Flatten()(keras.layers.AveragePooling2D(size[0] // side)(scaled)))


def test_backbones_are_compared_and_the_choice_is_written_with_the_comments_kept(
    folder, offline, monkeypatch, tmp_path
):
    monkeypatch.setattr(backbones, "load_backbone", build_stand_in)
    config, picture = tmp_path / "pipeline.yaml", tmp_path / "probe.svg"
    config.write_text(CONFIG)
    options = ["--weights", str(folder / "weights"), "--write", str(config), "--picture", str(picture)]
    result = CliRunner().invoke(app, ["probe", str(folder / "dataset"), *options, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    values = {row["backbone"]: row["value"] for row in shown["backbones"]}
    assert values["mobilenet_v2"] > values["inception_v3"] + 0.2
    assert shown["chosen"] == "mobilenet_v2"
    assert (shown["metric"], shown["images"]) == ("accuracy", shown["images_of_train"])
    assert all(row["interval"][0] <= row["value"] <= row["interval"][1] for row in shown["backbones"])
    (passed_over,) = shown["passed_over"]
    assert "broken.h5" in passed_over
    written = read_config(config)
    assert (written.trainer.backbone, written.image.size) == ("mobilenet_v2", (224, 224))
    assert written.trainer.weights == str(folder / "weights" / "mobile.h5")
    assert "# a name" in config.read_text()
    assert "[224, 224]  # as trained" in config.read_text()
    drawing = ET.fromstring(picture.read_text())  # noqa: S314 (our own)
    texts = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"mobilenet_v2", "inception_v3", "accuracy", "milliseconds per image"} <= set(texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give a folder of files: --weights DIR"),
        (["--weights", "missing"], "there is no folder missing"),
        (["--write", "missing.yaml"], "there is no file missing.yaml"),
    ],
)
def test_without_weights_or_configuration_it_says_so(folder, offline, options, message):
    result = CliRunner().invoke(app, ["probe", str(folder / "dataset"), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_the_cheapest_within_noise_is_chosen():
    random = np.random.default_rng(0)
    best = (random.random(500) < 0.9).astype(float)
    close = np.where(np.arange(500) < 4, 0, best)  # four images less, and the others the same
    far = (random.random(500) < 0.8).astype(float)
    rows = {"best": (best, 30), "far": (far, 5)}
    results = [
        Probed(Candidate(name, "imagenet", (9, 9)), values.mean(), (0, 1), milliseconds, 1, values)
        for name, (values, milliseconds) in rows.items()
    ]
    images = Images(None, np.zeros(500), np.arange(500), "classification", 2, 500)
    assert choose_cheapest(results, images) is results[0]
    worse = results[0]._replace(values=close, value=close.mean(), milliseconds=1)
    assert choose_cheapest([results[0], worse], images) is results[0]  # by less, but on the same images
    in_groups = images._replace(groups=np.where(np.arange(500) < 4, 0, np.arange(500)))
    assert choose_cheapest([results[0], worse], in_groups) is worse  # they may be one patient's
    errors = [result._replace(values=-result.values, value=-result.value) for result in results]
    assert choose_cheapest(errors, images._replace(task="regression")) is errors[0]


def test_values_are_replaced_or_added_where_they_belong():
    values = {("trainer", "backbone"): "xception", ("image", "size"): [1, 2]}
    assert replace_values(CONFIG, values) == CONFIG.replace("[299, 299]", "[1, 2]").replace(
        "trainer:\n", "trainer:\n  backbone: xception\n"
    )
    assert replace_values("name: x\ntrainer:  # none yet\n", values) == (
        "name: x\ntrainer:  # none yet\n  backbone: xception\n\nimage:\n  size: [1, 2]\n"
    )
    assert replace_values("trainer: {backbone: a, epochs: 2}\nimage: {size: [3, 4]}", values) == (
        "trainer: {backbone: xception, epochs: 2}\nimage: {size: [1, 2]}"
    )
    with pytest.raises(ConfigError, match=r"^trainer: is written in braces"):
        replace_values("trainer: {epochs: 2}", values)


def test_images_of_an_empty_group_are_of_none(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        for number, group in enumerate(["", "", "", "a", "a", "b"]):
            example = make_example(b"%d" % number, group=group)
            example.features.feature["label"].bytes_list.value[:] = [b"%d" % (number % 2)]
            writer.write(example.SerializeToString())
    assert read_images([str(tmp_path / "records")], "classification", 6, "").groups.tolist() == [0, 1, 2, 3, 3, 4]
