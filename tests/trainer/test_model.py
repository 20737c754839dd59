import keras
import numpy as np
import pytest

from trainer import model, weights
from trainer.config import TrainerConfig
from trainer.weights import WeightsError

SCRATCH = TrainerConfig(weights="none")


@pytest.fixture(scope="module")
def built():
    return model.build((75, 80), 4, {"price": None, "camera": 3}, SCRATCH)


def test_side_features_and_pixels_give_a_probability_for_each_class(built):
    network, _ = built
    rows = {
        "image": np.zeros((2, 75, 80, 3), np.uint8),
        "price": np.array([0.5, -3.0], np.float32),
        "camera": np.array([0, 2]),
    }
    probabilities = network(rows).numpy()
    assert probabilities.shape == (2, 4)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert not np.allclose(probabilities[0], probabilities[1])  # the side features count


def test_weights_saved_from_one_network_are_those_of_the_next(built, tmp_path):
    _, base = built
    path = tmp_path / "base.weights.h5"
    base.save_weights(path)
    _, loaded = model.build((75, 75), 2, {}, TrainerConfig(weights=str(path)))
    assert all(np.array_equal(a, b) for a, b in zip(base.get_weights(), loaded.get_weights(), strict=True))


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(path)
    with pytest.raises(WeightsError, match=r"other\.weights\.h5 does not hold weights of InceptionV3"):
        model.build((75, 75), 2, {}, TrainerConfig(weights=str(path)))


def test_a_missing_file_of_weights_is_found_before_anything_runs(tmp_path):
    with pytest.raises(WeightsError, match="no file"):
        weights.check(str(tmp_path / "none.h5"))


def test_without_network_imagenet_names_the_two_ways_out(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(weights, "_KERAS_CACHE", tmp_path)
    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    with pytest.raises(WeightsError, match=r"trainer\.weights: FILE.*trainer\.weights: none"):
        weights.check("imagenet")
    (tmp_path / weights._IMAGENET_URL.rpartition("/")[2]).write_bytes(b"cached")
    weights.check("imagenet")  # Keras takes it from its cache
