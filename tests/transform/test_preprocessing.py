import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import SIZE, example
from trainer.export import example_parser
from transform import features as f
from transform import graph


@pytest.fixture(scope="module")
def transformed(analyzed):
    output, features, serialized = analyzed
    _, transform = graph.load(output)
    return transform(example_parser(output, features, with_label=True)(tf.constant(serialized)))


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
    unseen = example(image, "new class", weight=1.0, camera="old").SerializeToString()
    _, transform = graph.load(output)
    raw = example_parser(output, features, with_label=True)(tf.constant([unseen]))
    assert transform(raw)[f.TARGET].numpy().tolist() == [-1]


def test_numeric_side_features_are_standardized_and_a_missing_one_becomes_the_mean(transformed):
    weight = transformed["weight"].numpy()
    given = np.array([i % 3 != 0 for i in range(48)])
    assert weight[given].mean() == pytest.approx(0, abs=1e-5)
    assert weight[given].std() == pytest.approx(1, abs=1e-4)
    assert (weight[~given] == 0).all()


def test_an_unseen_category_gets_the_last_index(analyzed):
    output, features, serialized = analyzed
    image = tf.train.Example.FromString(serialized[0]).features.feature["input"].bytes_list.value[0]
    rows = [example(image, "7", camera=camera).SerializeToString() for camera in ("old", "new", "other")]
    _, transform = graph.load(output)
    indices = transform(example_parser(output, features, with_label=True)(tf.constant(rows)))["camera"].numpy()
    assert sorted(indices[:2]) == [0, 1]
    assert indices[2] == 2 == output.vocabulary_size_by_name(features.vocabulary("camera"))


def test_without_a_label_everything_else_is_still_transformed(analyzed):
    output, features, serialized = analyzed
    _, transform = graph.load(output)
    served = transform(example_parser(output, features, with_label=False)(tf.constant(serialized[:2])))
    assert set(served) == {f.IMAGE, "weight", "camera"}
