"""Weights of one training give the next one a start, on real digits: five classes, then the other five."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from trainer.config import AugmentationConfig, TrainerConfig
from trainer.inputs import ArrayFile, LoadedSplit
from trainer.network import Network, build_network
from trainer.schedule import run_schedule
from trainer.tasks import make_classification

pytestmark = pytest.mark.long

SIDE = 32
TASK = make_classification(5)
COMMON = {
    "backbone": "mobilenet_v2",
    "batch_size": 32,
    "precision": "float32",
    "augmentation": AugmentationConfig(**dict.fromkeys(AugmentationConfig.model_fields, 0)),
}


def split(folder, first: int, part: slice) -> LoadedSplit:
    """Digits from ``first`` to ``first`` + 4."""
    digits = load_digits()
    chosen = np.flatnonzero((digits.target >= first) & (digits.target < first + 5))[part]
    gray = (digits.images[chosen] * (255 / 16)).astype(np.uint8).repeat(SIDE // 8, axis=1).repeat(SIDE // 8, axis=2)
    path = folder / f"{first}-{part.start}"
    path.write_bytes(np.repeat(gray[..., None], 3, axis=3).tobytes())
    targets = (digits.target[chosen] - first).astype(np.int32)
    return LoadedSplit(ArrayFile(path, (SIDE, SIDE, 3), np.dtype(np.uint8)), {}, targets, TASK)


def train(folder, first: int, config: TrainerConfig) -> tuple[Network, list[dict]]:
    folder.mkdir()
    keras.utils.set_random_seed(0)
    network = build_network((SIDE, SIDE), TASK, {}, config)
    train, evaluation = split(folder, first, slice(150, None)), split(folder, first, slice(0, 150))
    return network, run_schedule(network, TASK, train, evaluation, config, folder, tf.distribute.get_strategy())


def test_weights_of_five_digits_lift_the_first_epoch_on_the_other_five(tmp_path):
    network, _ = train(tmp_path / "first five", 0, TrainerConfig(weights="none", epochs=6, **COMMON))
    weights = str(tmp_path / "base.weights.h5")
    network.base.save_weights(weights)

    _, scratch = train(tmp_path / "scratch", 5, TrainerConfig(weights="none", epochs=1, **COMMON))
    _, lifted = train(tmp_path / "lifted", 5, TrainerConfig(weights=weights, head_epochs=1, epochs=1, **COMMON))
    assert lifted[0]["phase"] == "head"
    assert lifted[0]["val_accuracy"] > scratch[0]["val_accuracy"] + 0.2
    assert lifted[-1]["val_accuracy"] == pytest.approx(max(row["val_accuracy"] for row in lifted), abs=0.2)
