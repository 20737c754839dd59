"""The schedule, on a network small enough for seconds; the real one is in tests/e2e."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer import curves, model
from trainer.config import TrainerConfig
from trainer.fit import fit
from trainer.inputs import Split
from trainer.tasks import classification
from transform.features import IMAGE

TASK = classification(2)


@pytest.fixture
def network():
    keras.utils.set_random_seed(3)
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="lower"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="mixed8"),
            keras.layers.Conv2D(4, 3, name="upper"),
        ]
    )
    image = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE)
    pooled = keras.layers.GlobalAveragePooling2D()(base(keras.layers.Rescaling(1 / 255)(image)))
    return keras.Model({IMAGE: image}, keras.layers.Dense(2, activation="softmax", name="head")(pooled)), base


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 64)
    pixels = (rng.integers(0, 100, (64, 8, 8, 3)) + 100 * targets[:, None, None, None]).astype(np.uint8)
    return Split(tf.data.Dataset.from_tensor_slices(({IMAGE: pixels}, targets)), 64, 192)


def weights_of(base: keras.Model) -> dict[str, np.ndarray]:
    return {layer.name: layer.get_weights()[0] for layer in base.layers if layer.get_weights()}


def test_with_weights_the_head_comes_first_and_then_only_the_blocks_above_the_named_one(network, split, monkeypatch):
    net, base = network
    before = weights_of(base)
    at_unfreezing = {}
    original = model.unfreeze_after

    def spy(base, name):
        at_unfreezing.update(weights_of(base))
        original(base, name)

    monkeypatch.setattr(model, "unfreeze_after", spy)
    config = TrainerConfig(weights="somewhere.h5", head_epochs=2, epochs=3, learning_rate=0.05, patience=9)
    history = fit(net, base, split, split, config, TASK)

    assert [row["phase"] for row in history] == ["head"] * 2 + ["upper blocks"] * 3
    assert all(np.array_equal(before[name], at_unfreezing[name]) for name in before)
    after = weights_of(base)
    assert np.array_equal(before["lower"], after["lower"])
    assert not np.array_equal(before["upper"], after["upper"])


def test_from_scratch_everything_is_trained_and_it_learns(network, split):
    net, base = network
    before = weights_of(base)
    config = TrainerConfig(weights="none", epochs=8, learning_rate=0.02, batch_size=8)
    history = fit(net, base, split, split, config, TASK)
    assert not any(np.array_equal(before[name], now) for name, now in weights_of(base).items())
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert max(row["val_accuracy"] for row in history) > 0.9


def test_the_best_epoch_is_kept_and_training_stops_when_nothing_improves(network, split):
    net, base = network
    # Labels turned round: each step towards the training data is one away from the eval data.
    worse = Split(split.examples.map(lambda x, y: (x, 1 - y)), 64, 192)
    config = TrainerConfig(weights="none", epochs=30, learning_rate=0.02, patience=3)
    history = fit(net, base, split, worse, config, TASK)
    assert len(history) < 30
    kept, _accuracy = net.evaluate(worse.examples.batch(32).map(lambda x, y: (x, TASK.encode(y))), verbose=0)
    assert kept == pytest.approx(min(row["val_loss"] for row in history), rel=1e-4)


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.5), (45, 1 - 5 / 45), (10_000, 0.99)])
def test_batch_norm_momentum_follows_the_number_of_steps(network, steps, momentum):
    _, base = network
    model.set_batch_norm_momentum(base, steps)
    assert base.get_layer("norm").momentum == pytest.approx(momentum)


def test_an_unknown_block_is_named_with_those_there_are(network):
    with pytest.raises(ValueError, match=r"no layer 'mixed99'.*mixed8"):
        model.unfreeze_after(network[1], "mixed99")


def test_curves_are_drawn_and_written(tmp_path):
    row = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.1, "val_accuracy": 0.4, "images_per_second": 9.0}
    history = [{"epoch": i + 1, "phase": "head" if i < 2 else "upper blocks"} | row for i in range(4)]
    curves.write(history, tmp_path, "accuracy")
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
