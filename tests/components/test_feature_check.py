"""The second look at the data, through the features of a pretrained backbone."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.types import artifact_utils, standard_artifacts

from components.data_check.config import ValidationConfig
from components.data_check.split import Split
from components.feature_check import neighbours
from components.feature_check.check import check_features
from components.feature_check.component import FeatureCheck
from components.features.component import sample_examples
from imagepipe.base import appearance
from imagepipe.base.features import Features
from imagepipe.base.names import FEATURES, FINDINGS, SCHEMA, STATISTICS
from tests.conftest import encode_image, make_example
from trainer.feature_file import read_features, write_features

CLASSES, EACH, WIDTH = 3, 30, 40


def make_features(seed: int = 0) -> np.ndarray:
    """Features of three classes, 30 images each in turn."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 1, (CLASSES, WIDTH))[np.arange(CLASSES * EACH) % CLASSES]
    return (centres + random.normal(0, 0.5, (CLASSES * EACH, WIDTH))).astype(np.float16)


def make_split(name: str, labels: list[str]) -> Split:
    count = len(labels)
    return Split(
        [f"{name}/{i}" for i in range(count)],
        [None] * count,
        [[label] for label in labels],
        hashes=[0] * count,
        plain=[True] * count,  # so that hashes find nothing
    )


def draw_thumbnail(seed: int, margin: float = 0) -> np.ndarray:
    """A random picture without fine detail, of which a margin is cut off, as a thumbnail."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 9), np.uint8))
    large = small.resize((200, 200), Image.Resampling.BICUBIC)
    cut = round(200 * margin)
    return np.frombuffer(appearance.make_thumbnail(large.crop((cut, cut, 200 - cut, 200 - cut))), np.uint8)


def test_neighbours_are_the_same_whatever_part_of_them_is_compared_at_once(monkeypatch):
    features = make_features()
    positions, similarities = neighbours.find_neighbours(features)
    monkeypatch.setattr(neighbours, "_ROWS", 7)
    monkeypatch.setattr(neighbours, "_COLUMNS", 4)
    again, their_similarities = neighbours.find_neighbours(features)
    np.testing.assert_array_equal(again, positions)
    np.testing.assert_allclose(their_similarities, similarities, atol=1e-6)
    assert not (positions == np.arange(len(features))[:, None]).any()
    assert (positions % CLASSES == (np.arange(len(features)) % CLASSES)[:, None]).mean() > 0.9


def test_copies_are_candidates_in_projections_of_very_many_images_too(monkeypatch):
    features = np.concatenate([make_features(), make_features()[:5] + np.float16(0.01)])
    monkeypatch.setattr(neighbours, "_DENSE", 10)
    monkeypatch.setattr(neighbours, "_DIMENSIONS", 20)
    pairs = neighbours.list_candidates(*neighbours.find_neighbours(features), 10)
    assert {tuple(pair) for pair in pairs[:5].tolist()} == {(i, 90 + i) for i in range(5)}


def test_a_cropped_copy_is_told_from_another_picture():
    thumbnails = {0: draw_thumbnail(0), 1: draw_thumbnail(0, 0.03), 2: draw_thumbnail(1), 3: draw_thumbnail(0, 0.25)}
    pairs = np.array([[0, 1], [0, 2], [1, 2], [0, 3], [0, 4]])  # of 4, which is broken, there is no thumbnail
    assert list(neighbours.confirm_copies(thumbnails, pairs)) == [(0, 1)]


@pytest.fixture
def checked():
    """Checks a train and an eval split with two copies, two wrong labels and one image of something else."""
    features = make_features()
    labels = [f"class {i % CLASSES}" for i in range(CLASSES * EACH)]
    labels[4], labels[8] = "class 0", "class 1"
    features = np.concatenate([features, features[[20, 21]], 3 * make_features(9)[:1]])
    labels += [labels[20], "class 2", "class 0"]
    splits = {"train": make_split("train", labels[:91]), "eval": make_split("eval", labels[91:])}
    images = [("train", i) for i in range(91)] + [("eval", 0), ("eval", 1)]

    def read_thumbnails(wanted):
        copied = {("train", 90): 20, ("eval", 0): 21}
        return lambda image: draw_thumbnail(copied.get(image, image[1] + 100 * (image[0] == "eval")))

    def check(task: str = "classification", decided=(), **settings):
        return check_features(splits, images, features, read_thumbnails, task, ValidationConfig(**settings), decided)

    return check


def test_copies_within_and_across_splits_are_listed_and_only_those_across_can_stop_the_run(checked):
    findings, listed = checked(stop_on=["near_duplicates"])
    groups = [[image["id"] for image in group] for group in listed["near_duplicates"]]
    assert groups == [["train/20", "train/90"], ["train/21", "eval/0"]]
    (finding,) = [finding for finding in findings if finding.kind == "near_duplicates"]
    assert finding.severity == "error"
    assert finding.message.startswith(
        "2 groups of near-duplicates (1 of them across splits), such as train/20 and train/90; train/21 and eval/0: 1 "
        "image outside the training split has a copy in it"
    )
    assert "in 1 of the groups the labels differ" in finding.message


def test_wrong_labels_come_first_and_an_image_of_something_else_is_named(checked):
    findings, listed = checked()
    assert {error["id"] for error in listed["label_errors"][:3]} >= {"train/4", "train/8"}
    (finding,) = [finding for finding in findings if finding.kind == "outliers"]
    assert finding.message.startswith("2 images are unlike all others, the most unlike first: eval/1, ")
    assert [finding.kind for finding in checked("regression")[0]] == ["outliers", "near_duplicates"]
    assert checked(label_errors=0)[1]["label_errors"] == []


def test_images_that_a_person_has_decided_on_are_counted_and_not_listed_and_others_take_their_place(checked):
    decided = {("train", 4), ("train", 21), ("eval", 0)}  # the last is a copy whose label is wrong, too
    findings, listed = checked(decided=decided, stop_on=["near_duplicates"], label_errors=1)
    assert [error["id"] for error in listed["label_errors"]] == ["train/8"]
    assert [[image["id"] for image in group] for group in listed["near_duplicates"]] == [["train/20", "train/90"]]
    assert listed["not_listed"] == {"near_duplicates": 1, "label_errors": 2}
    messages = {finding.kind: finding.message for finding in findings}
    assert messages["near_duplicates"].endswith("Not listed: 1 group on which a person has decided")
    assert messages["label_errors"].endswith("Not listed: 2 images on which a person has decided")


def test_features_come_back_from_their_file_without_images_that_could_not_be_decoded(tmp_path):
    features = make_features()
    rows = [("train", i, row) for i, row in enumerate(features[:3])] + [("eval", 7, np.full(WIDTH, np.nan, np.float16))]
    assert write_features(iter(rows), WIDTH, tmp_path / FEATURES) == 4
    images, read = read_features(tmp_path / FEATURES)
    assert images == [("train", 0), ("train", 1), ("train", 2)]
    np.testing.assert_array_equal(read, features[:3])


def test_of_too_many_images_the_sample_is_the_same_each_time():
    records = [f"record {i}".encode() for i in range(100)]
    splits = {"train": tf.data.Dataset.from_tensor_slices(records), "eval": tf.data.Dataset.from_tensor_slices([b"x"])}
    whole = sample_examples(splits, 101)["train"]
    assert [record for _, record in zip(*whole, strict=False)] == records
    indices, sample = sample_examples(splits, 40)["train"]
    chosen = list(zip(indices, sample.as_numpy_iterator(), strict=True))
    assert 25 < len(chosen) < 55
    assert all(records[index] == record for index, record in chosen)
    assert list(sample_examples(splits, 40)["train"][0]) == [index for index, _ in chosen]


def make_artifact(kind: type, folder):
    folder.mkdir(parents=True, exist_ok=True)
    artifact = kind()
    artifact.uri = str(folder)
    return artifact


def test_the_component_puts_its_findings_in_place_of_data_checks_of_the_same_kind(tmp_path):
    examples = make_artifact(standard_artifacts.Examples, tmp_path / "examples")
    examples.split_names = artifact_utils.encode_split_names(["eval", "train"])
    for name in ("train", "eval"):
        (tmp_path / "examples" / f"Split-{name}").mkdir()
        with tf.io.TFRecordWriter(str(tmp_path / "examples" / f"Split-{name}" / "a.gz"), "GZIP") as writer:
            photo = encode_image(Image.linear_gradient("L"))
            writer.write(make_example(photo, "a").SerializeToString())
    features = make_artifact(standard_artifacts.InferenceResult, tmp_path / "features")
    row = np.ones(WIDTH, np.float16)
    write_features(iter([("train", 0, row), ("eval", 0, row)]), WIDTH, tmp_path / "features" / FEATURES)
    findings = make_artifact(standard_artifacts.ExampleAnomalies, tmp_path / "findings")
    finding = {"severity": "warning", "split": "", "feature": "", "message": "m", "examples": []}
    first = [finding | {"kind": "skew"}, finding | {"kind": "label_errors"}, finding | {"kind": "near_duplicates"}]
    content = {"findings": first, "near_duplicates": [["old"]], "label_errors": ["old"], "decided": [["train", 0]]}
    (tmp_path / "findings" / FINDINGS).write_text(json.dumps(content))
    for name in (STATISTICS, SCHEMA):
        (tmp_path / "findings" / name).write_text(name)
    checked = make_artifact(standard_artifacts.ExampleAnomalies, tmp_path / "checked")
    inputs = {"examples": [examples], "features": [features], "findings": [findings]}
    properties = {"task": "classification", "names": json.dumps(asdict(Features())), "validation": "{}"}
    FeatureCheck.EXECUTOR_SPEC.executor_class().Do(inputs, {"checked": [checked]}, properties)
    written = json.loads((tmp_path / "checked" / FINDINGS).read_text())
    assert [finding["kind"] for finding in written["findings"]] == ["skew", "near_duplicates"]
    assert written["label_errors"] == []
    assert [image["split"] for image in written["near_duplicates"][0]] == ["train", "eval"]
    assert (tmp_path / "checked" / SCHEMA).read_text() == SCHEMA
    assert checked.get_int_custom_property("warnings") == 2
