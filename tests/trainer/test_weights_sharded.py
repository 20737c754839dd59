"""Weights that Keras 3 has split into several files."""

import json
import shutil

import keras
import numpy as np
import pytest

from imagepipe.base.errors import WeightsError
from trainer.pretrained import check_file, load_weights


def make_network() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Conv2D(64, 3, name=f"conv_{number}") for number in range(3)]
    return keras.Sequential([keras.Input((16, 16, 3)), *layers, keras.layers.BatchNormalization(name="norm")])


@pytest.fixture
def sharded(tmp_path):
    """A network, and its weights in several files; one has a part of a layer, and all of the next."""
    network = make_network()
    for weight in network.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    network.save_weights(tmp_path / "base.weights.json", max_shard_size=150_000 / 2**30)
    assert len(list(tmp_path.glob("base_0*.weights.h5"))) == 3
    return network, tmp_path / "base.weights.json"


def test_weights_in_several_files_are_those_of_one(sharded):
    network, path = sharded
    other = make_network()
    check_file(str(path))
    load_weights(other, str(path), "mine")
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), other.get_weights(), strict=True))


def test_a_file_that_is_missing_is_named(sharded):
    _, path = sharded
    missing = path.with_name("base_00001.weights.h5")
    missing.unlink()
    with pytest.raises(WeightsError, match=f"{path} names {missing}, and there is no such file"):
        check_file(str(path))


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "it names no files"),
        ('{"weight_map": {"/layers/dense/vars": 7}}', "TypeError"),
        ('{"weight_map": {"/layers/dense/vars": "../base_00000.weights.h5"}}', "no .h5 file beside it"),
        ('{"weight_map": {"/layers/dense/vars": ["/etc/passwd"]}}', "no .h5 file beside it"),
        (json.dumps({"weight_map": {str(i): f"{i}.h5" for i in range(300)}}), "names 300 files; at most 256 are read"),
    ],
)
def test_a_list_of_files_from_a_stranger_leads_nowhere_else(content, phrase, sharded):
    _, path = sharded
    path.write_text(content)
    with pytest.raises(WeightsError, match=phrase):
        check_file(str(path))


def test_a_weight_that_two_files_have_is_refused(sharded):
    _, path = sharded
    shutil.copy(path.with_name("base_00000.weights.h5"), path.with_name("base_00001.weights.h5"))
    check_file(str(path))
    with pytest.raises(WeightsError, match="is in more than one of its files"):
        load_weights(make_network(), str(path), "mine")
