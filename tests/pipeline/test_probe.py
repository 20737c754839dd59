"""``imagepipe probe``: pretrained backbones compared on a dataset, and the choice in the configuration."""

import errno
import json
import xml.etree.ElementTree as ET

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import pipeline.probe
from imagepipe.base.errors import ConfigError, WeightsError
from imagepipe.ingest.command import ingest
from pipeline.cli import app
from pipeline.config_file import read_config
from pipeline.probe import check_configuration, configure
from pipeline.yaml_edit import remove_value, replace_values
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


def probe(dataset, *options):
    """Returns the exit status of the command; and what it shows, or the message."""
    result = CliRunner().invoke(app, ["probe", str(dataset), *map(str, options), "--json"])
    assert result.exit_code in (0, 2), result.exception
    message = " ".join(result.stderr.replace("│", " ").split())
    return result.exit_code, message if result.exit_code else json.loads(result.stdout)


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


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_backbones_are_compared_by_several_labels_and_by_a_number(task, folder, offline, monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "load_backbone", build_stand_in)
    lines = ["path,label"]
    for number, (digit, image) in enumerate(make_digit_images(100)):
        (tmp_path / f"{number}.png").write_bytes(image)
        is_even, is_small = int(digit) % 2 == 0, int(digit) < 5
        several = "|".join(name for name, is_so in {"even": is_even, "small": is_small}.items() if is_so)
        lines.append(f"{number}.png,{several if task == 'multilabel' else int(is_even)}")
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    ingest(str(tmp_path / "all.csv"), str(tmp_path / "dataset"), task=task)
    status, shown = probe(tmp_path / "dataset", "--weights", folder / "weights", "--picture", tmp_path / "p.svg")
    assert status == 0
    values = {row["backbone"]: row["value"] for row in shown["backbones"]}
    if task == "multilabel":
        assert shown["metric"] == "binary_accuracy"
        assert values["mobilenet_v2"] > max(0.75, values["inception_v3"] + 0.1)
    else:
        assert shown["metric"] == "mean_absolute_error"
        assert values["mobilenet_v2"] < min(0.4, values["inception_v3"] - 0.1)
    assert shown["chosen"] == "mobilenet_v2"


def fail_to_build(config, size):
    raise WeightsError("trainer.weights: v3.h5: the weights of layer 'conv2d' are not all finite")


def refuse_the_size(config, size):
    raise ValueError("Input size must be at least 75x75")


def build_without_numbers(config, size):
    image = keras.Input((*size, 3), dtype="uint8")
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(float("nan"))(image)))


def test_what_can_not_be_used_is_passed_over_with_its_reason(folder, offline, monkeypatch, tmp_path):
    def build_one(config, size):
        return (fail_to_build if config.backbone == "inception_v3" else build_stand_in)(config, size)

    monkeypatch.setattr(backbones, "load_backbone", build_one)
    status, shown = probe(folder / "dataset", "--weights", folder / "weights", "--picture", tmp_path / "probe.svg")
    assert status == 0
    assert [row["backbone"] for row in shown["backbones"]] == ["mobilenet_v2"]
    _, passed_over = shown["passed_over"]
    assert passed_over == "v3.h5: the weights of layer 'conv2d' are not all finite"


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (refuse_the_size, r"^inception_v3 from v3\.h5 can't be used at 20 by 10 pixels: .* at least 75x75"),
        (build_without_numbers, r"^inception_v3 from v3\.h5 gives features that are no numbers"),
    ],
)
def test_a_network_that_gives_no_features_is_refused_with_the_reason(monkeypatch, build, reason):
    monkeypatch.setattr(backbones, "load_backbone", build)
    records = [make_example(png).SerializeToString() for _, png in make_digit_images(2)]
    images = Images(tf.data.Dataset.from_tensor_slices(records), np.arange(2), np.arange(2), "classification", 2, 2)
    with pytest.raises(WeightsError, match=reason):
        backbones.probe_candidate(Candidate("inception_v3", "v3.h5", (10, 20)), images)


def test_if_nothing_can_be_used_all_reasons_are_given(folder, offline, monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "load_backbone", fail_to_build)
    status, message = probe(folder / "dataset", "--weights", folder / "weights", "--picture", tmp_path / "probe.svg")
    assert status == 2
    assert "none of the weights at hand can be used:" in message
    assert "broken.h5 does not hold weights" in message
    assert message.count("are not all finite") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give a folder of files: --weights DIR"),
        (["--weights", "missing"], "there is no folder missing"),
        (["--weights", "mobile.h5"], "mobile.h5 is a file: give the folder that it is in"),
        (["--write", "missing.yaml"], "there is no file missing.yaml"),
        (["--write", "wrong.yaml"], "trainer.epoch: unknown key"),
        (["--write", "braces.yaml"], "trainer: is written in braces"),
        (["--picture", "missing/probe.svg"], "there is no folder missing"),
        (["--picture", "."], ". is a folder"),
    ],
)
def test_what_is_missing_or_can_not_be_written_is_said_before_the_work(
    folder, offline, options, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mobile.h5").touch()
    (tmp_path / "wrong.yaml").write_text(CONFIG.replace("epochs", "epoch"))
    (tmp_path / "braces.yaml").write_text("name: digits\ndata: {path: dataset}\ntrainer: {epochs: 3}\n")
    if options:  # TensorFlow takes seconds to load
        monkeypatch.setattr(backbones, "list_candidates", None)
        if "--weights" not in options:
            monkeypatch.setattr(pipeline.probe, "probe", None)
    status, shown = probe(folder / "dataset", *options)
    assert status == 2
    assert message in shown


@pytest.mark.parametrize("compress", ["gzip", None])
def test_a_damaged_file_of_the_dataset_is_named(folder, offline, tmp_path, compress):
    ingest(str(folder / "images"), str(tmp_path / "dataset"), compress=compress)
    (file,) = (tmp_path / "dataset" / "train").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    weights = ["--weights", folder / "weights", "--picture", tmp_path / "p.svg"]
    status, message = probe(tmp_path / "dataset", *weights)
    assert status == 2
    assert f"train/{file.name} is not a TFRecord file of tf.train.Examples (" in message.replace("- ", "-")


@pytest.mark.parametrize(
    ("stated", "taken"), [((160, 160), (160, 160)), ((16, 16), (224, 224)), ((9999, 64), (224, 224))]
)
def test_a_size_that_a_backbone_does_not_take_or_that_fills_the_memory_is_not_believed(stated, taken):
    assert backbones._choose_size("mobilenet_v2", stated) == taken


@pytest.mark.slow
def test_the_results_are_shown_though_the_picture_can_not_be_drawn(folder, offline, monkeypatch, tmp_path):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "probe.svg")

    monkeypatch.setattr(backbones, "load_backbone", build_stand_in)
    monkeypatch.setattr(pipeline.probe, "draw_outcome", fail)
    options = ["--weights", str(folder / "weights"), "--picture", str(tmp_path / "probe.svg")]
    result = CliRunner().invoke(app, ["probe", str(folder / "dataset"), *options])
    assert result.exit_code == 1
    assert "inception_v3" in result.stdout
    assert "The cheapest within noise of the best: mobilenet_v2 (mobile.h5)" in result.stdout
    assert "No space left on device" in result.stderr


@pytest.mark.parametrize("name", ["v3.hdf5", "V3.H5"])
def test_files_of_weights_are_taken_by_any_of_their_usual_endings(name, tmp_path, offline):
    file = write_weights(tmp_path / name, "inception_v3")
    candidates, passed_over = backbones.list_candidates(tmp_path)
    assert (candidates, passed_over) == ([Candidate("inception_v3", str(file), (299, 299))], [])


def test_a_size_that_the_backbone_does_not_take_is_not_believed(tmp_path, offline):
    file = write_weights(tmp_path / "v3.h5", "inception_v3")
    layers = [
        {"class_name": "InputLayer", "config": {"batch_shape": [None, 32, 32, 3], "name": "image"}},
        {"class_name": "Conv2D", "config": {"name": "conv2d"}},
    ]
    with h5py.File(file, "r+") as stored:
        stored.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": layers}})
    candidates, passed_over = backbones.list_candidates(tmp_path)
    assert (candidates, passed_over) == ([Candidate("inception_v3", str(file), (299, 299))], [])


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


@pytest.mark.parametrize(
    ("tuner", "removed", "left"),
    [
        ("", ["trainer.unfreeze_after"], None),
        (
            "tuner:\n  space:\n    unfreeze_after:\n      values:  # two\n        - mixed7\n        - mixed9\n"
            "    # small\n    batch_size: {values: [8, 16]}\n",
            ["trainer.unfreeze_after", "tuner.space.unfreeze_after"],
            "tuner:\n  space:\n    # small\n    batch_size: {values: [8, 16]}\n",
        ),
        (
            "tuner: {trials: 2, space: {unfreeze_after: {values: [mixed7, mixed9]}}}\n# the end\n",
            ["trainer.unfreeze_after", "tuner"],
            "# the end\n",
        ),
    ],
)
def test_layers_of_another_backbone_are_removed_from_the_configuration(tuner, removed, left, tmp_path):
    config = tmp_path / "pipeline.yaml"
    config.write_text(f"{CONFIG}  unfreeze_after: mixed7  # its last blocks\n  # rather many\n  patience: 3\n{tuner}")
    check_configuration(config)
    same = Probed(Candidate("inception_v3", "imagenet", (299, 299)), 1, (0, 1), 1, 1, np.ones(1))
    assert configure(same, config) == []
    assert read_config(config).trainer.unfreeze_after == "mixed7"
    assert configure(same._replace(candidate=Candidate("mobilenet_v2", "imagenet", (96, 96))), config) == removed
    written = read_config(config)
    assert (written.trainer.unfreeze_after, written.trainer.patience) == (None, 3)
    assert "  # rather many\n  patience: 3\n" in config.read_text()
    assert "unfreeze_after" not in config.read_text()
    assert left is None or config.read_text().endswith(left)


@pytest.mark.parametrize(
    ("old", "text", "message"),
    [
        ("[299, 299]  # as trained", "\n    - 299  # high\n    - 299", r"comments .* Write it as size: \[\d+, \d+\]"),
        (CONFIG[CONFIG.index("image") :], "trainer: {weights: none}\n...\n", "written in braces"),
        (CONFIG[CONFIG.index("image") :], "...\n", "as its YAML is written: set trainer.backbone: xception, trainer.w"),
        ("  epochs: 3\n", "  <<: {unfreeze_after: mixed7}\n", "as its YAML is written"),
    ],
)
def test_a_configuration_in_which_something_else_would_be_set_is_refused_and_stays(old, text, message, tmp_path):
    config = tmp_path / "pipeline.yaml"
    content = CONFIG.replace(old, text)
    config.write_text(content)
    choice = Probed(Candidate("xception", "imagenet", (160, 160)), 1, (0, 1), 1, 1, np.ones(1))
    with pytest.raises(ConfigError, match=rf"pipeline\.yaml: the choice of a backbone can't be set in it.*{message}"):
        configure(choice, config)
    assert config.read_text() == content


def test_the_file_that_a_link_leads_to_is_written(tmp_path):
    real, link = tmp_path / "real.yaml", tmp_path / "pipeline.yaml"
    real.write_text(CONFIG)
    link.symlink_to(real)
    configure(Probed(Candidate("xception", "imagenet", (160, 160)), 1, (0, 1), 1, 1, np.ones(1)), link)
    assert link.is_symlink()
    assert "xception" in real.read_text()


def test_a_value_on_several_lines_is_replaced_and_the_comments_behind_it_stay():
    values = {("image", "size"): [1, 2]}
    rest = "  # width\n# the next\ntrainer:\n  epochs: 3\n# the end\n"
    for block in ("image:\n  size:\n    - 299\n    - 299", "image:\n  size:\n  - 299\n  - 299"):
        assert replace_values(f"{block}{rest}", values) == f"image:\n  size: [1, 2]{rest}"
        assert replace_values(f"{block}\n# the end", values) == "image:\n  size: [1, 2]\n# the end"
    weights = {("trainer", "weights"): "none"}
    folded = "trainer:\n  weights: >-\n    imagenet\n  epochs: 3\n"
    assert replace_values(folded, weights) == "trainer:\n  weights: none\n  epochs: 3\n"
    assert replace_values("trainer:\n  weights:\n  epochs: 3\n", weights) == "trainer:\n  weights: none\n  epochs: 3\n"


def test_a_value_is_removed_where_it_stands():
    text = "a: {b: 1, c: {d: 2}, e: 3}\nf:\n  g:  # none\n  h: 4\n"
    assert remove_value(text, ["a", "b"]) == text.replace("b: 1, ", "")
    assert remove_value(text, ["a", "c"]) == text.replace("c: {d: 2}, ", "")
    assert remove_value(text, ["a", "e"]) == text.replace(", e: 3", "")
    assert remove_value(text, ["a", "c", "d"]) == text.replace("d: 2", "")
    assert remove_value(text, ["f", "g"]) == text.replace("  g:  # none\n", "")
    for missing in (["x"], ["a", "x"], ["a", "b", "x"], ["f", "g", "x"]):
        assert remove_value(text, missing) == text
    assert remove_value("", ["x"]) == ""


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
