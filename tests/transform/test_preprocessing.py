from dataclasses import asdict

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base import features as f
from imagepipe.base.errors import DataError
from tests.conftest import SIZE, make_digit_images, make_example, run_analysis, serialize_example
from transform.examples import load_graph, make_parser, read_output_names


@pytest.fixture(scope="module")
def transformed(analyzed):
    output, features, serialized = analyzed
    _, transform = load_graph(output)
    return transform(make_parser(output, features, with_label=True)(tf.constant(serialized)))


def test_pixels_leave_as_uint8_at_model_size(transformed):
    assert transformed[f.IMAGE].dtype == tf.uint8
    assert transformed[f.IMAGE].shape == (48, *SIZE, 3)


def test_classes_are_in_alphabetical_order_however_frequent_they_are(analyzed, transformed):
    output, _, _ = analyzed
    assert output.vocabulary_by_name(f.LABELS_VOCABULARY) == [b"10", b"7", b"b"]
    assert np.bincount(transformed[f.TARGET]).argmax() == 1


def test_a_label_that_training_did_not_see_has_no_index(analyzed):
    output, features, serialized = analyzed
    image = tf.train.Example.FromString(serialized[0]).features.feature["input"].bytes_list.value[0]
    unseen = make_example(image, "new class", weight=1.0, camera="old").SerializeToString()
    _, transform = load_graph(output)
    raw = make_parser(output, features, with_label=True)(tf.constant([unseen]))
    assert transform(raw)[f.TARGET].numpy().tolist() == [-1]


def test_numeric_side_features_are_standardized_and_a_missing_one_becomes_the_mean_with_a_flag(transformed):
    weight = transformed[f.TRANSFORMED + "weight"].numpy()
    given = np.array([i % 3 != 0 for i in range(48)])
    assert weight[given].mean() == pytest.approx(0, abs=1e-5)
    assert weight[given].std() == pytest.approx(1, abs=1e-4)
    assert (weight[~given] == 0).all()
    assert np.array_equal(transformed[f.MISSING_FLAG + "weight"], ~given)


def test_an_unseen_category_gets_the_last_index(analyzed):
    output, features, serialized = analyzed
    image = tf.train.Example.FromString(serialized[0]).features.feature["input"].bytes_list.value[0]
    rows = [make_example(image, "7", camera=camera).SerializeToString() for camera in ("old", "new", "other")]
    _, transform = load_graph(output)
    indices = transform(make_parser(output, features, with_label=True)(tf.constant(rows)))[
        f.TRANSFORMED + "camera"
    ].numpy()
    assert sorted(indices[:2]) == [0, 1]
    assert indices[2] == 2 == output.vocabulary_size_by_name(features.vocabulary("camera"))


def test_without_a_label_everything_else_is_still_transformed(analyzed):
    output, features, serialized = analyzed
    _, transform = load_graph(output)
    served = transform(make_parser(output, features, with_label=False)(tf.constant(serialized[:2])))
    assert set(served) == {f.IMAGE, f.TRANSFORMED + "weight", f.TRANSFORMED + "camera", f.MISSING_FLAG + "weight"}


def targets(output, serialized: list[bytes]) -> np.ndarray:
    _, transform = load_graph(output)
    return transform(make_parser(output, f.Features(), with_label=True)(tf.constant(serialized)))[f.TARGET].numpy()


def test_several_labels_become_multi_hot_in_alphabetical_order_and_none_is_all_zeros(analyzed_multilabel):
    output, serialized = analyzed_multilabel
    assert output.vocabulary_by_name(f.LABELS_VOCABULARY) == [b"a", b"b", b"c"]
    expected = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 1], [0, 1, 0]]
    multi_hot = targets(output, serialized)
    assert multi_hot.dtype == np.float32
    assert multi_hot.tolist() == expected
    assert targets(output, serialized[1:2]).tolist() == [[0, 0, 0]]  # a batch without a single label


def test_labels_that_training_did_not_see_are_left_out_and_repeated_ones_count_once(analyzed_multilabel):
    output, serialized = analyzed_multilabel
    image = tf.train.Example.FromString(serialized[0]).features.feature["input"].bytes_list.value[0]
    rows = [serialize_example(image, labels) for labels in (["new", "c"], ["new"], ["b", "b"])]
    assert targets(output, rows).tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.slow
def test_whole_numbers_as_labels_and_as_many_for_each_image_work_too(tmp_path):
    pngs = [png for _, png in make_digit_images(2)]
    spec = {"input": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([2], tf.int64)}
    raw = [{"input": png, "label": labels} for png, labels in zip(pngs, ([0, 7], [7, 12]), strict=True)]
    custom = {"task": "multilabel", "features": asdict(f.Features()), "image_size": list(SIZE)}
    output = run_analysis(raw, spec, custom, tmp_path)
    assert output.vocabulary_by_name(f.LABELS_VOCABULARY) == [b"0", b"12", b"7"]
    _, transform = load_graph(output)
    examples = {"input": tf.constant(pngs), "label": tf.constant([[0, 7], [7, 12]], tf.int64)}
    assert transform(examples)[f.TARGET].numpy().tolist() == [[1, 0, 1], [0, 1, 1]]


@pytest.mark.slow
def test_a_missing_whole_number_is_neither_the_class_nor_the_category_0_and_nan_becomes_the_mean(tmp_path):
    pngs = [png for _, png in make_digit_images(5)]
    labels, years, weights = ([1], [2], [], [0], [1]), ([0], [1], [1], [], [0]), (1.0, 3.0, np.nan, np.inf, 2.0)
    rows = [
        {"input": png, "label": label, "year": year, "weight": weight}
        for png, label, year, weight in zip(pngs, labels, years, weights, strict=True)
    ]
    spec = {
        "input": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.VarLenFeature(tf.int64),
        "year": tf.io.VarLenFeature(tf.int64),
        "weight": tf.io.FixedLenFeature([], tf.float32),
    }
    features = f.Features(numeric=("weight",), categorical=("year",))
    custom = {"task": "classification", "features": asdict(features), "image_size": list(SIZE)}
    output = run_analysis(rows, spec, custom, tmp_path)
    assert read_output_names("classification", output, features) == ["0", "1", "2"]
    _, transform = load_graph(output)
    examples = {"input": tf.constant(pngs), "weight": tf.constant(weights)} | {
        name: tf.RaggedTensor.from_row_lengths(
            tf.constant([value for values in column for value in values], tf.int64), list(map(len, column))
        ).to_sparse()
        for name, column in (("label", labels), ("year", years))
    }
    transformed = transform(examples)
    assert transformed[f.TARGET].numpy().tolist() == [1, 2, -1, 0, 1]
    assert output.vocabulary_size_by_name(features.vocabulary("year")) == 2
    assert transformed[f.TRANSFORMED + "year"].numpy().tolist() == [
        *(output.vocabulary_by_name(features.vocabulary("year")).index(year) for year in (b"0", b"1", b"1")),
        2,
        output.vocabulary_by_name(features.vocabulary("year")).index(b"0"),
    ]
    assert transformed[f.TRANSFORMED + "weight"].numpy() == pytest.approx([-1.2247, 1.2247, 0, 0, 0], abs=1e-3)
    assert f.MISSING_FLAG + "weight" not in transformed  # each Example has one, so that there is nothing to learn


@pytest.mark.slow
def test_numbers_that_may_be_missing_are_flagged_whole_ones_and_nan_too(tmp_path):
    pngs = [png for _, png in make_digit_images(4)]
    ages, weights = ([20], [], [40], [30]), ([1.0], [3.0], [], [np.nan])
    rows = [
        {"input": png, "label": [b"a"], "age": age, "weight": weight}
        for png, age, weight in zip(pngs, ages, weights, strict=True)
    ]
    spec = {
        "input": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.VarLenFeature(tf.string),
        "age": tf.io.VarLenFeature(tf.int64),
        "weight": tf.io.VarLenFeature(tf.float32),
    }
    features = f.Features(numeric=("age", "weight"))
    custom = {"task": "classification", "features": asdict(features), "image_size": list(SIZE)}
    _, transform = load_graph(run_analysis(rows, spec, custom, tmp_path))
    sparse = {
        name: tf.RaggedTensor.from_row_lengths(
            tf.constant([value for values in column for value in values], dtype), list(map(len, column))
        ).to_sparse()
        for name, column, dtype in (("age", ages, tf.int64), ("weight", weights, tf.float32))
    }
    transformed = transform({"input": tf.constant(pngs)} | sparse)
    for name, flags, values in (
        ("age", [0, 1, 0, 0], [-1.2247, 0, 1.2247, 0]),
        ("weight", [0, 0, 1, 1], [-1, 1, 0, 0]),
    ):
        assert transformed[f.MISSING_FLAG + name].numpy().tolist() == flags
        assert transformed[f.TRANSFORMED + name].numpy() == pytest.approx(values, abs=1e-3)


def test_a_class_whose_name_could_not_be_read_back_stops_the_analysis_by_name(tmp_path):
    spec = {"input": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.string)}
    custom = {"task": "classification", "features": asdict(f.Features()), "image_size": list(SIZE)}
    rows = [{"input": png, "label": name} for (_, png), name in zip(make_digit_images(2), (b"a\nb", b"b"), strict=True)]
    with pytest.raises(DataError, match=r"the label 'a\\nb' holds a control character \(U\+000A\)"):
        run_analysis(rows, spec, custom, tmp_path)


def test_a_number_stays_what_it_is_and_a_missing_one_is_no_zero(analyzed_regression):
    assert targets(*analyzed_regression).tolist() == [0.5, -3.0, pytest.approx(np.nan, nan_ok=True), 1e6]
