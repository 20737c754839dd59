"""Columns that give the label away."""

import math

import numpy as np
import pytest
import tensorflow as tf

from components.data_check.leaks import find_leaks, measure_share
from imagepipe.base.features import Features
from tests.components.reading import read_split
from tests.conftest import make_example

COUNT = 1000
RANDOM = np.random.default_rng(0)
CLASSES = RANDOM.integers(0, 4, COUNT)


def encode(values) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]


def test_the_share_is_what_is_told_beyond_chance():
    assert measure_share(CLASSES, CLASSES) == pytest.approx(1)
    half = CLASSES // 2  # of two bits
    assert measure_share(half, CLASSES) == pytest.approx(0.5, abs=0.01)
    right = np.where(RANDOM.random(COUNT) < 0.9, CLASSES, RANDOM.integers(0, 4, COUNT))
    assert 0.6 < measure_share(right, CLASSES) < 0.8
    for values in (2, 50, 500, 10**9):  # as many values as that tell all of the labels by chance
        assert measure_share(encode(RANDOM.integers(0, values, COUNT)), CLASSES) < 0.01
    assert measure_share(np.arange(COUNT), CLASSES) == 0
    assert measure_share(np.zeros(COUNT, int), CLASSES) == 0
    assert measure_share(CLASSES, np.zeros(COUNT, int)) == 0
    assert measure_share(half, CLASSES, minimum=0.6) == 0


def test_what_fine_values_tell_is_found_through_chance():
    """Each class has breeds of its own: five images of each tell it."""
    breeds = CLASSES * 50 + RANDOM.integers(0, 50, COUNT)
    assert measure_share(breeds, CLASSES) == pytest.approx(1)


def find(columns, labels, task="classification", stop_on=()):
    return {
        finding.feature: finding
        for finding in find_leaks(
            {name: list(values) for name, values in columns.items()}, labels, task, "label", 0.9, stop_on
        )
    }


NOISE = {
    "id": [f"id {i}" for i in range(COUNT)],
    "weight": RANDOM.random(COUNT).tolist(),
    "camera": [f"camera {i}" for i in RANDOM.integers(0, 9, COUNT)],
    "nothing": [None] * COUNT,
}


def test_of_classes_copies_of_the_label_are_found_and_others_are_not():
    columns = NOISE | {
        "class_id": [int(value) for value in CLASSES],
        "measured": (CLASSES + RANDOM.random(COUNT) / 2).tolist(),
        "missing": [None if value == 0 else f"is {value}" for value in CLASSES],
    }
    labels = [[f"class {value}"] if value or i % 50 else [] for i, value in enumerate(CLASSES)]
    findings = find(columns, labels)
    assert set(findings) == {"class_id", "measured", "missing"}
    assert {finding.severity for finding in findings.values()} == {"warning"}
    assert find(columns, labels, stop_on=["leak"])["class_id"].severity == "error"
    assert findings["class_id"].message.startswith(
        "'class_id' gives the label away: by itself it tells 100% of what there is to know about 'label' (mutual"
    )


def test_of_several_labels_one_that_is_given_away_is_named():
    labels = [
        [name for name, has in (("wet", value & 1), ("cold", value & 2), ("rare", i == 0)) if has]
        for i, value in enumerate(CLASSES)
    ]
    findings = find(NOISE | {"rain": [float(value & 1) for value in CLASSES]}, labels, "multilabel")
    assert set(findings) == {"rain"}
    assert "whether an image has 'wet' as 'label'" in findings["rain"].message


def test_of_a_number_another_unit_is_found():
    prices = RANDOM.lognormal(size=COUNT)
    labels = [[str(price)] for price in prices]
    labels[0], labels[1] = ["many"], ["nan"]
    columns = NOISE | {"dollars": (1.1 * prices + 3).tolist(), "like": (prices * RANDOM.lognormal(size=COUNT)).tolist()}
    assert set(find(columns, labels, "regression")) == {"dollars"}


def test_side_features_of_every_nth_example_are_read(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "data.gz"), "GZIP") as writer:
        for number in range(7):
            columns = {"camera": f"c{number}", "weight": number / 2} if number != 3 else {}
            writer.write(make_example(b"", "a", **columns).SerializeToString())
    features = Features(numeric=("weight",), categorical=("camera",))
    split = read_split(tmp_path, "train", features, columns_every=3)
    assert split.columns == {"camera": ["c0", None, "c6"], "weight": [0.0, None, 3.0]}
    assert split.column_labels == [["a"]] * 3
    assert not read_split(tmp_path, "train", features).columns


def test_a_number_that_is_none_or_infinite_is_missing_and_hides_no_leak(tmp_path):
    """The model takes it for missing, too."""
    with tf.io.TFRecordWriter(str(tmp_path / "data.gz"), "GZIP") as writer:
        for number in range(300):
            weight = {7: math.nan, 8: math.inf, 9: -math.inf}.get(number, number % 3 + number / 1000)
            writer.write(make_example(b"", f"class {number % 3}", weight=weight).SerializeToString())
    split = read_split(tmp_path, "train", Features(numeric=("weight",)), columns_every=1)
    assert split.columns["weight"][6:11] == [pytest.approx(0.006), None, None, None, pytest.approx(1.01)]
    assert set(find(split.columns, split.column_labels)) == {"weight"}
