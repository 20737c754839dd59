import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx.types import standard_artifacts

from components.data_check import label_errors, near_duplicates
from components.data_check.anomalies import describe_anomalies
from components.data_check.columns import (
    check_slices,
    find_faulty_values,
    find_missing_columns,
    find_unknown_values,
)
from components.data_check.config import ValidationConfig
from components.data_check.curated_schema import freeze_ranges, read_min_images
from components.data_check.decided import find_decided, list_undecided
from components.data_check.drift import judge_distances
from components.data_check.driver import choose_baseline
from components.data_check.groups import find_torn_groups
from components.data_check.labels import MAX_LABELS, check_labels
from components.data_check.split import MAX_SLICES, Split
from components.data_check.tfdv_statistics import measure_distances, summarize_columns
from components.data_gate.component import DataGate
from components.tfdv import tfdv
from imagepipe.base.errors import DataError
from imagepipe.base.features import Features
from imagepipe.base.names import FINDINGS, TRAIN_STATISTICS
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.live import list_statistics
from imagepipe.deploy.saved_model import GRAPH
from tests.components.reading import read_split
from tests.conftest import encode_image, make_digit_images, make_example


def make_split(counts: dict[str, int]) -> Split:
    labels = [[label] for label, count in counts.items() for _ in range(count)]
    return Split(ids=[f"id-{i}" for i in range(len(labels))], labels=labels)


def test_an_unseen_label_in_eval_and_a_class_with_too_few_images_are_errors():
    splits = {"train": make_split({"a": 20, "b": 4}), "eval": make_split({"a": 2, "new": 1})}
    findings = check_labels("classification", splits, "label", {"train": 10, "eval": 1})
    assert [(f.severity, f.kind, f.split) for f in findings] == [
        ("error", "unseen_label", "eval"),
        ("error", "too_few_images", "train"),
        ("error", "too_few_images", "eval"),
    ]
    assert "the split eval has 1 image of 'new', and the training split none" in findings[0].message
    assert findings[0].examples == ["id-2"]
    assert findings[1].message.startswith("'b' has 4 images in the split train, and at least 10 are needed")
    assert "'b' has 0 images in the split eval" in findings[2].message


@pytest.mark.parametrize(
    ("task", "labels", "without"),
    [
        ("classification", [["1"], [], [""], [" "], ["", "2"], ["0"]], ["id-1", "id-2", "id-3", "id-4"]),
        ("regression", [["1.5"], [], ["nan"], ["-inf"], ["0"], ["many"]], ["id-1", "id-2", "id-3", "id-5"]),
        ("multilabel", [["1"], [], ["1", "2"], [], ["2"], ["0"]], []),
    ],
)
def test_images_without_a_label_stop_the_run_by_name(task, labels, without):
    split = Split(ids=[f"id-{i}" for i in range(len(labels))], labels=labels)
    findings = check_labels(task, {"train": split, "test": split}, "label", {})
    assert [(f.severity, f.kind, f.split, f.examples) for f in findings] == [
        (severity, "missing_label", name, without) for severity, name in (("error", "train"), ("warning", "test"))
    ][: len(findings)]
    assert bool(findings) == bool(without)
    for finding in findings:
        assert f"such as {', '.join(without)}. Label them, or leave them out of the TFRecords" in finding.message


def test_an_empty_label_beside_others_stops_the_run_by_the_image_that_has_it():
    """An image of several labels may have none: then its list is empty."""
    labels = [["1"], [], ["1", " "], ["", "2"], [""], ["\u2028"], ["2"]]
    split = Split(ids=[f"id-{i}" for i in range(len(labels))], labels=labels)
    findings = check_labels("multilabel", {"train": split, "test": split}, "tags", {})
    assert [(f.severity, f.kind, f.split) for f in findings] == [
        ("error", "unusable_label", "train"),
        ("warning", "unusable_label", "test"),
    ]
    for finding in findings:
        assert finding.examples == ["id-2", "id-3", "id-4", "id-5"]
        assert "4 images in the split" in finding.message
        assert "with an empty label in 'tags', such as id-2, id-3, id-4, id-5. Correct or remove it" in finding.message


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_images_with_several_labels_are_for_a_task_that_has_them(task):
    """Transform takes the first of the labels."""
    splits = {
        name: Split(ids=[f"id-{i}" for i in range(4)], labels=[["1"], ["1", "2"], ["2"], ["2", "1"]])
        for name in ("train", "test")
    }
    findings = check_labels(task, splits, "label", {})
    assert [(f.severity, f.kind, f.split, f.examples) for f in findings] == [
        ("error", "several_labels", "train", ["id-1", "id-3"]),
        ("warning", "several_labels", "test", ["id-1", "id-3"]),
    ]
    assert findings[0].message.startswith(
        "2 images in the split train with several labels in 'label', such as id-1, id-3. Give each "
    )
    assert ("task: multilabel" in findings[0].message) == (task == "classification")
    assert check_labels("multilabel", splits, "label", {}) == []


def test_labels_and_categories_that_no_vocabulary_can_hold_stop_the_run_by_name(tmp_path):
    features = Features(categorical=("camera", "lens"))
    with tf.io.TFRecordWriter(str(tmp_path / "data.gz"), "GZIP") as writer:
        for label, camera in (
            (b"a", "old"),
            (b"golden\nretriever", "new\u2028er"),
            (b"misc\xc2\x85", "old"),
            (b"\xe9", ""),
        ):
            example = make_example(b"", camera=camera, lens="wide", group="p1" if camera else "")
            example.features.feature["label"].bytes_list.value.append(label)
            writer.write(example.SerializeToString())
    split = read_split(tmp_path, "train", features)
    assert list(split.groups) == ["p1", "p1", "p1", None]
    (finding,) = check_labels("classification", {"train": split}, "label", {})
    assert (finding.severity, finding.kind, finding.feature) == ("error", "unusable_label", "label")
    assert finding.message == (
        r"the split train has labels that can't name a class: 'golden\nretriever', which holds a control character "
        r"(U+000A), 'misc\x85', which holds a control character (U+0085), '\ufffd', which holds bytes that are not "
        r"UTF-8 (U+FFFD). Correct or remove them"
    ).replace(r"\ufffd", "\ufffd")
    assert finding.examples == ["train/1", "train/2", "train/3"]
    (category,) = find_faulty_values({"train": split})
    assert (category.severity, category.feature) == ("error", "camera")
    assert (
        r"1 image in the split train with values of 'camera' that can't be categories: 'new\u2028er'"
        in category.message
    )

    joined = Split(ids=["id"], labels=[["a|b"]])
    (finding,) = check_labels("multilabel", {"train": joined}, "label", {})
    assert "'a|b', which holds a |" in finding.message
    assert check_labels("classification", {"train": joined}, "label", {}) == []


def test_labels_that_are_ids_are_one_finding_and_soon():
    train = make_split({f"image {number:06}": 1 for number in range(36_000)})
    evaluation = make_split({f"image {number:06}": 1 for number in range(32_000, 40_000)})
    for task in ("classification", "multilabel"):
        (finding,) = check_labels(task, {"train": train, "eval": evaluation}, "label", {"train": 10, "eval": 1})
        assert finding.severity == "error"
        assert finding.message.startswith(
            "'label' has 40,000 different values for 44,000 images, and 36,000 of them are on a single image, such as "
            "image 000000, image 000001, "
        )


def test_tags_that_are_on_one_image_each_are_not_taken_for_ids():
    labels = [[f"tag {5 * i + j}" for j in range(5)] for i in range(12)]
    split = Split(ids=[f"id-{i}" for i in range(12)], labels=labels)
    assert check_labels("multilabel", {"train": split}, "label", {}) == []


def test_of_many_labels_with_the_same_fault_the_first_are_findings_and_one_more_counts_the_others():
    train = make_split({f"rare {number:04}": 3 for number in range(5000)})
    evaluation = make_split({f"new {number:04}": 3 for number in range(5000)})
    findings = check_labels("classification", {"train": train, "eval": evaluation}, "label", {"train": 10})
    assert [f.kind for f in findings] == ["unseen_label"] * (MAX_LABELS + 1) + ["too_few_images"] * (MAX_LABELS + 1)
    assert findings[MAX_LABELS].message.startswith(
        "4,980 more labels of the split eval that the training split lacks: new"
    )
    assert findings[-1].message.startswith("4,980 more labels have fewer than 10 in the split train: rare 0020, ")


def compute_statistics(**columns):
    return tfdv.generate_statistics_from_dataframe(pd.DataFrame(columns))


def test_a_column_that_the_model_needs_and_a_split_lacks_is_an_error():
    train = compute_statistics(label=["a", "b"] * 10, weight=np.arange(20.0))
    (gone,) = find_missing_columns({"train": train, "eval": compute_statistics(label=["a"])}, ("label", "weight"))
    assert (gone.severity, gone.kind, gone.split, gone.feature) == ("error", "missing_column", "eval", "weight")
    assert find_missing_columns({"train": train}, ("label", "weight")) == []


def test_tfdvs_anomalies_are_reported_as_text_and_a_curated_schemas_can_stop_the_run():
    seen = compute_statistics(label=["a", "b", "z"] * 10, brightness=np.linspace(0, 1, 30), more=np.ones(30))
    schema = tfdv.infer_schema(compute_statistics(label=["a", "b"] * 10, brightness=np.linspace(0.4, 0.6, 20)))
    schema = freeze_ranges(schema, [compute_statistics(label=["a"], brightness=[0.5])], "label", {})
    schema.feature.add(name="gone", type=schema_pb2.FLOAT).presence.min_fraction = 1
    anomalies = {"eval": tfdv.validate_statistics(seen, schema)}
    findings = {(f.kind, f.feature): f for f in describe_anomalies(anomalies, "label", (), ("label",))}
    assert findings["missing_column", "gone"].severity == "error"
    assert findings["unseen_label", "label"].severity == "error"
    assert "z (~33%)" in findings["unseen_label", "label"].message
    assert findings["anomaly", "brightness"].severity == "warning"
    assert findings["anomaly", ""].message == "the split eval has columns that the schema lacks: more"
    stopped = describe_anomalies(anomalies, "label", ("anomaly",), ("label",))
    assert {f.severity for f in stopped if f.feature == "brightness"} == {"error"}
    assert describe_anomalies({"eval": anomalies_pb2.Anomalies()}, "label", (), ()) == []


def test_drift_is_reported_and_chance_is_not_taken_for_it():
    random = np.random.default_rng(0)

    def sample(count, mean, share):
        return compute_statistics(
            label=random.choice(["a", "b"], count, p=[share, 1 - share]), brightness=random.normal(mean, 0.1, count)
        )

    reference, alike, darker = sample(400, 0.5, 0.5), sample(60, 0.5, 0.5), sample(400, 0.2, 0.9)
    none = schema_pb2.Schema()
    assert judge_distances("skew", "eval", measure_distances(alike, reference, none, 0.2), "x", []) == []
    findings = judge_distances(
        "drift", "train", measure_distances(darker, reference, none, 0.2), "version 7", ["drift"]
    )
    assert {(f.feature, f.severity) for f in findings} == {("label", "error"), ("brightness", "error")}
    assert "the share of a value differs by 0.4" in "".join(f.message for f in findings)
    lenient = schema_pb2.Schema()
    lenient.feature.add(name="label").skew_comparator.infinity_norm.threshold = 0.9
    findings = judge_distances("drift", "train", measure_distances(darker, reference, lenient, 0.2), "version 7", [])
    assert [(f.feature, f.severity) for f in findings] == [("brightness", "warning")]


def test_a_frozen_schema_has_ranges_values_and_minima_and_gives_the_minima_back():
    train, evaluation = (
        compute_statistics(label=["a", "b"], width=[100, 200]),
        compute_statistics(label=["a", "b"], width=[50, 150]),
    )
    schema = freeze_ranges(tfdv.infer_schema(train), [train, evaluation], "label", {"train": 7, "eval": 2})
    (width,) = [feature for feature in schema.feature if feature.name == "width"]
    assert (width.int_domain.min, width.int_domain.max) == (50, 200)
    assert read_min_images(schema, "label") == {"train": 7, "eval": 2}
    again = freeze_ranges(schema, [train], "label", {"train": 1})
    assert read_min_images(again, "label") == {"train": 7, "eval": 2}


def test_columns_with_infinite_numbers_are_summarized_and_frozen_without_them():
    """Such as the logarithm of 0 in TFRecords made elsewhere; the model takes it for a missing value."""
    infinity = float("inf")
    statistics = compute_statistics(
        high=[1.0, 2.0, infinity] * 5, low=[1.0, -infinity, 2.0] * 5, none=[infinity, infinity, -infinity] * 5
    )
    columns = summarize_columns(statistics)
    json.dumps(columns, allow_nan=False)
    assert {name: (column["min"], column["max"]) for name, column in columns.items()} == {
        "high": (1, None),
        "low": (None, 2),
        "none": (None, None),
    }
    for name, count in {"high": 10, "low": 10, "none": 0}.items():
        assert sum(bucket[2] for bucket in columns[name]["histogram"]) == pytest.approx(count)
    frozen = freeze_ranges(tfdv.infer_schema(statistics), [statistics], "label", {})
    assert not any(feature.HasField("float_domain") for feature in frozen.feature)


def test_labels_that_look_like_numbers_are_frozen_as_the_classes_that_they_are():
    train, evaluation = compute_statistics(label=["7", "9", "10"]), compute_statistics(label=["7"])
    inferred = tfdv.infer_schema(train)
    schema = freeze_ranges(inferred, [train, evaluation], "label", {})
    assert list(schema.feature[0].string_domain.value) == ["10", "7", "9"]
    assert not tfdv.validate_statistics(train, schema).anomaly_info
    anomalies = {"eval": tfdv.validate_statistics(compute_statistics(label=["7", "8"]), schema)}
    (finding,) = describe_anomalies(anomalies, "label", (), ("label",))
    assert (finding.kind, finding.severity) == ("unseen_label", "error")


def test_no_pair_of_near_hashes_is_missed():
    random = np.random.default_rng(1)
    hashes = random.integers(0, 2**64, 1500, dtype=np.uint64)
    for i in range(700):  # copies with 0 to 9 bits changed
        bits = random.choice(64, i % 10, replace=False).astype(np.uint64)
        hashes[800 + i] = hashes[i] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    splits = random.integers(0, 3, len(hashes))
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    near = (distances <= near_duplicates.RADIUS) & (splits[:, None] != splits[None])
    expected = np.argwhere(np.triu(near, 1))
    assert len(expected) > 300
    pairs, bits = near_duplicates.match_hashes(hashes, splits)
    np.testing.assert_array_equal(pairs, expected)
    assert bits == near_duplicates.RADIUS


def test_a_group_of_near_duplicates_starts_with_one_of_each_split():
    photo = np.random.default_rng(0).integers(0, 255, 64)
    splits = {
        "train": Split(["a", "b"], hashes=[5, 5], plain=[False, False]),
        "eval": Split(["c", "d"], hashes=[5, 5], plain=[False, False]),
    }
    (group,), _ = near_duplicates.find_near_duplicates(splits, lambda wanted: lambda image: photo)
    assert group == [("train", 0), ("eval", 0), ("train", 1), ("eval", 1)]


def test_groups_in_several_splits_are_named_and_can_stop_the_run():
    splits = {
        name: Split([f"{name}/{i}" for i in range(4)], [None] * 4, [["x"]] * 4, groups)
        for name, groups in {
            "train": ["p1", "p2", None, "p2"],
            "eval": ["p3", "p1", "p1", None],
            "test": ["p4", "p3", "p5", None],
        }.items()
    }
    (finding,) = find_torn_groups(splits, "patient", [])
    assert (finding.severity, finding.kind, finding.feature) == ("warning", "groups", "patient")
    assert finding.message == (
        "2 values of 'patient' have images in several splits: p1 (train, eval), p3 (eval, test); 2 images outside the "
        "training split are of groups that it has, and say little about a model. Give all images of a group one split; "
        "of TFRecords in one set, data.features.group does so"
    )
    assert finding.examples == ["eval/0", "eval/1", "eval/2", "test/1"]
    (finding,) = find_torn_groups({name: splits[name] for name in ("eval", "test")}, "patient", ["groups"])
    assert finding.severity == "error"
    assert finding.message.startswith("1 value of 'patient' has images in several splits: p3 (eval, test). Give all")
    assert find_torn_groups({"train": splits["train"], "test": splits["test"]}, "patient", []) == []
    assert find_torn_groups({"train": make_split({"a": 3}), "eval": make_split({"a": 3})}, "group", []) == []


def test_only_copies_of_training_images_are_said_to_be_such():
    splits = {name: Split(["a", "b"], [None] * 2, [["x"]] * 2) for name in ("train", "eval", "test")}
    held_out = [[("eval", 0), ("test", 0)]]
    (finding,) = near_duplicates.describe_near_duplicates(splits, held_out, ["near_duplicates"])
    assert finding.severity == "error"
    assert finding.message == "1 group of near-duplicates across splits, such as a and a. Keep one image of each group"
    (finding,) = near_duplicates.describe_near_duplicates(splits, [*held_out, [("train", 1), ("eval", 1)]], [])
    assert "a and a; b and b: 1 image outside the training split has a copy in it" in finding.message


def test_images_whose_hashes_are_alike_by_chance_are_no_duplicates():
    photo = np.random.default_rng(0).integers(0, 255, (1, 64))
    other = np.random.default_rng(1).integers(0, 255, (1, 64))
    splits = {
        "train": Split(["a", "b"], hashes=[5, 5], plain=[False, True]),
        "eval": Split(["c"], hashes=[5], plain=[False]),
    }
    images = {"train": photo, "eval": photo * 0.5 + 9}

    def find_groups():
        return near_duplicates.find_near_duplicates(splits, lambda wanted: lambda image: images[image[0]][0])[0]

    assert find_groups() == [[("train", 0), ("eval", 0)]]
    images["eval"] = other
    assert find_groups() == []


def test_confident_learning_names_the_image_that_looks_like_another_class():
    labels = np.array([0] * 10 + [1] * 10)
    probabilities = np.where(labels[:, None] == [0, 1], 0.8, 0.2)
    probabilities[3] = [0.05, 0.95]  # clearly the other
    probabilities[12] = [0.55, 0.45]  # a little
    first, second = label_errors.rank_candidates(probabilities, labels, 40)
    assert (first.index, first.suggested, first.confident) == (3, 1, True)
    assert (second.index, second.suggested, second.confident) == (12, 0, False)
    assert label_errors.rank_candidates(probabilities, labels, 1) == [first]


def test_a_forest_that_would_not_fit_into_memory_is_grown_in_parts():
    random = np.random.default_rng(0)
    labels = np.arange(40) % 4
    descriptors = (random.normal(0, 0.3, (40, 6)) + labels[:, None]).astype(np.float32)
    three_forests = 130 * 2 * len(labels) * 4 * 8
    probabilities = label_errors.predict_out_of_sample(descriptors, labels, np.arange(40), three_forests)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(40))
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.8


def test_wrong_labels_of_plain_colours_are_listed_and_rare_classes_are_left_out():
    random = np.random.default_rng(0)
    colours = {"red": (200, 30, 30), "blue": (30, 30, 200)}
    names = ["red", "blue"] * 20 + ["rare"] * 3
    images = [
        np.clip(np.array(colours.get(name, (9, 200, 9))) + random.normal(0, 20, (96, 96, 3)), 0, 255) for name in names
    ]
    descriptors = label_errors.compute_descriptors(np.array(images).astype(np.uint8))
    names[5], names[10] = "red", "blue"
    split = Split(
        [f"{i}" for i in range(43)], [None] * 43, [[name] for name in names], descriptors=dict(enumerate(descriptors))
    )
    errors = label_errors.find_label_errors({"train": split}, [], 40, label_errors.predict_out_of_sample)
    assert (errors.judged, errors.count) == (40, 2)
    assert {error["id"] for error in errors.listed} == {"5", "10"}
    assert {error["suggested"] for error in errors.listed} == {"red", "blue"}
    first = label_errors.find_label_errors({"train": split}, [], 1, label_errors.predict_out_of_sample)
    assert first == dataclasses.replace(errors, listed=errors.listed[:1])
    (finding,) = label_errors.describe_label_errors(first, 43)
    assert finding.message.startswith(
        "2 of 40 checked images (43 in all) look more like another class than their own, 2 of them clearly; "
        "listed: 1 (data.validation.label_errors). The likeliest label errors: "
    )
    find = label_errors.find_label_errors
    errors = find({"train": split}, [], 40, label_errors.predict_out_of_sample, {("train", 5), ("train", 7)})
    assert (errors.listed[0]["id"], errors.count, errors.judged, errors.left_out) == ("10", 1, 40, 1)
    (finding,) = label_errors.describe_label_errors(errors, 43)
    assert finding.message.endswith(": 10 (blue, or red?). Not listed: 1 image on which a person has decided")


def test_decided_is_an_image_that_has_the_label_that_a_person_gave_it():
    labels = [["a"], ["a"], ["a", "b"], ["0.1"], ["7"], ["a"], []]
    split = Split(["id"] * 7, ["0", "1", "2", "3", "4", "5", None], labels)
    given = {"0": "a", "1": "b", "2": ["b", "a"], "3": 0.1, "4": 7, "6": "a"}
    assert find_decided({"train": split, "eval": split}, given) == {
        (name, index) for name in ("train", "eval") for index in (0, 2, 3, 4)
    }
    assert find_decided({"train": split}, {}) == set()
    decided = {("train", 0), ("eval", 0)}
    whole, part = [("train", 0), ("eval", 0)], [("train", 0), ("eval", 0), ("eval", 1)]
    assert list_undecided([whole, part], decided) == [part]


def make_groups(labels: list[str], images_each: int, seed: int = 0) -> Split:
    """A split of groups whose images are alike, more than those of a class, with these labels."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(labels)), images_each)
    own = random.normal(0, 1, (len(labels), 30))[groups]
    classes = np.array([[group % 2] for group in groups]) * 4 + random.normal(0, 0.5, (len(groups), 6))
    descriptors = np.concatenate([own, classes], axis=1).astype(np.float32)
    return Split(
        ids=[f"{i}" for i in range(len(groups))],
        sha256=[None] * len(groups),
        labels=[[labels[group]] for group in groups],
        groups=[f"patient {group}" for group in groups],
        descriptors=dict(enumerate(descriptors)),
    )


def test_the_images_of_a_group_do_not_confirm_each_others_wrong_label():
    split = make_groups(["b", "b", *["a", "b"] * 5], 10)
    errors = label_errors.find_label_errors({"train": split}, [], 40, label_errors.predict_out_of_sample)
    assert errors.judged == 120
    assert {f"{i}" for i in range(10)} <= {error["id"] for error in errors.listed}


def test_a_class_of_few_groups_is_not_judged_by_forests_that_have_not_seen_it():
    split = make_groups(["a", "b"] * 5 + ["c"] * 3, 10)
    errors = label_errors.find_label_errors({"train": split}, [], 40, label_errors.predict_out_of_sample)
    assert (errors.judged, {error["label"] for error in errors.listed} & {"c"}) == (100, set())


@pytest.fixture
def records(tmp_path) -> Path:
    """Examples without ingest's measurements of the images, one of them broken."""
    with tf.io.TFRecordWriter(str(tmp_path / "data.gz"), "GZIP") as writer:
        for number, (label, png) in enumerate(make_digit_images(5)):
            writer.write(make_example(png, label, f"id-{number}" if number else None).SerializeToString())
        writer.write(make_example(b"no image", "7", "broken").SerializeToString())
        plain = encode_image(Image.new("RGB", (50, 50), "white"), "PNG")
        writer.write(make_example(plain, "7", "plain").SerializeToString())
    return tmp_path


def test_examples_that_ingest_has_not_measured_are_measured_and_a_broken_image_is_reported(records):
    split = read_split(records, "eval", Features(), describe_every=2)
    assert list(split.ids) == ["eval/0", "id-1", "id-2", "id-3", "id-4", "broken", "plain"]
    assert list(split.sha256) == [None] * 7
    assert split.unreadable.tolist() == [5]
    assert split.plain.tolist() == [False] * 5 + [True] * 2
    assert all(split.hashes[:5])
    assert sorted(split.descriptors) == [0, 2, 4, 6]


def test_a_column_with_a_value_per_image_is_too_much_to_slice_by(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "data.gz"), "GZIP") as writer:
        for number in range(2 * MAX_SLICES):
            side = {"camera": "old" if number % 2 else "new", "patient": f"p{number:03}", "year": number % MAX_SLICES}
            writer.write(make_example(b"", "7", **side).SerializeToString())
    columns = [("camera",), ("patient",), ("year",), ("camera", "patient"), ("none",)]
    split = read_split(tmp_path, "eval", Features(), slices=columns)
    assert split.slices["camera",] == {("new",), ("old",)}
    assert len(split.slices["year",]) == MAX_SLICES
    assert len(split.slices["patient",]) == MAX_SLICES + 1  # no more are kept, however many there are
    assert split.slices["none",] == set()
    one_column, both_columns = check_slices("eval", split.slices)
    assert (one_column.severity, one_column.feature) == ("error", "patient")
    assert one_column.message.startswith(
        "the split eval has more than 200 values of 'patient', such as p000, p001, p002, and evaluation.slices or "
    )
    assert "more than 200 values of 'camera' and 'patient', such as new and p000, " in both_columns.message


def test_a_class_or_value_in_the_configuration_that_the_data_lacks_stops_the_run_by_its_key():
    splits = {"train": make_split({"007": 5, "no": 5}), "eval": make_split({"007": 5})}
    splits["eval"].slices = {("camera", "shop"): {("old", "a"), ("new", "b")}}
    demands = [
        ("trainer.class_weights", "label", ["007", "false"], "train"),
        ("evaluation.rules.0.slice", "label", ["no"], "eval"),
        ("evaluation.rules.1.slice", "camera", ["oldd"], "eval"),
        ("evaluation.rules.1.slice", "shop", ["a"], "eval"),
        ("evaluation.rules.2.slice", "lens", ["wide"], "eval"),
    ]
    findings = find_unknown_values(splits, demands, "label")
    assert {finding.severity for finding in findings} == {"error"}
    assert [finding.message for finding in findings] == [
        "trainer.class_weights: false: not among the labels of the split train, which are 007, no",
        "evaluation.rules.0.slice: no: not among the labels of the split eval, which are 007",
        "evaluation.rules.1.slice: oldd: not among the values of 'camera' of the split eval, "
        "of which the nearest are old",
    ]


def test_data_is_compared_with_the_live_models_training_data_but_not_with_itself(tmp_path):
    def find_baseline(current: bytes) -> str:
        return choose_baseline([file for file, _ in list_statistics(DeployConfig(path=str(tmp_path)))], current)

    assert find_baseline(b"now") == ""
    for version, content in (("7", b"before"), ("8", b"now"), ("9", b"now")):
        file = tmp_path / version / TRAIN_STATISTICS
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        (tmp_path / version / GRAPH).touch()
    assert find_baseline(b"now") == str(tmp_path / "7" / TRAIN_STATISTICS)
    assert find_baseline(b"tomorrow's") == str(tmp_path / "9" / TRAIN_STATISTICS)
    (tmp_path / "10").mkdir()  # a copy under way
    assert find_baseline(b"tomorrow's") == str(tmp_path / "9" / TRAIN_STATISTICS)
    (tmp_path / "10" / GRAPH).touch()  # made elsewhere
    assert find_baseline(b"now") == ""


def test_the_gate_names_every_error_and_lets_warnings_pass(tmp_path):
    artifact = standard_artifacts.ExampleAnomalies()
    artifact.uri = str(tmp_path)

    def gate(*findings):
        listed = [{"severity": severity, "message": message} for severity, message in findings]
        (tmp_path / FINDINGS).write_text(json.dumps({"findings": listed}))
        DataGate.EXECUTOR_SPEC.executor_class().Do({"findings": [artifact]}, {}, {})

    gate(("warning", "something"))
    with pytest.raises(DataError, match=r"can't be used for training.\n- one thing\n- another$"):
        gate(("error", "one thing"), ("warning", "something"), ("error", "another"))


def test_min_images_that_are_not_given_keep_their_defaults():
    assert ValidationConfig(min_images={"train": 3}).min_images == {"train": 3, "eval": 1}
    with pytest.raises(ValueError, match="min_images"):
        ValidationConfig(min_images={"valid": 3})
