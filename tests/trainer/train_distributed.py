"""A process of test_devices.py: trains a small network for three steps, and writes the result.

Each step takes all examples, so that the global batches are the same however they are distributed.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from imagepipe.base.features import IMAGE
from trainer import devices
from trainer.config import AugmentationConfig, TrainerConfig
from trainer.inputs import ArrayFile, LoadedSplit
from trainer.network import join_parts
from trainer.schedule import run_schedule
from trainer.tasks import make_classification

OFF = AugmentationConfig(horizontal_flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0)
COUNT, STEPS = 32, 3


def main(distribution: str, folder: Path) -> None:
    if distribution == "mirrored":
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = devices.make_strategy(distribution)

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, COUNT)
    pixels = (rng.integers(0, 100, (COUNT, 8, 8, 3)) + 100 * labels[:, None, None, None]).astype(np.uint8)
    path = folder / "pixels"
    path.write_bytes(pixels.tobytes())
    rows = ArrayFile(path, (8, 8, 3), np.dtype(np.uint8))
    task = make_classification(2)
    split = LoadedSplit(rows, {}, labels.astype(np.int32), task)

    config = TrainerConfig(weights="none", epochs=STEPS, batch_size=COUNT, augmentation=OFF, learning_rate=0.01)
    keras.utils.set_random_seed(3)
    with strategy.scope():
        base = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation="relu")])
        image = keras.Input((8, 8, 3), dtype="uint8", name=IMAGE)
        scaling = keras.Model(image, keras.layers.Rescaling(1 / 255)(image))
        features = keras.Input((4,), name=IMAGE)
        head = keras.Model({IMAGE: features}, keras.layers.Softmax()(keras.layers.Dense(2, name="logits")(features)))
        network = join_parts(scaling, base, keras.layers.GlobalAveragePooling2D(), head)
    history = run_schedule(network, task, split, split, config, folder, strategy)
    result = {
        "replicas": strategy.num_replicas_in_sync,
        "loss": history[-1]["loss"],
        "val_loss": history[-1]["val_loss"],
        "weights": [float(x) for w in network.model.get_weights() for x in w.ravel()],
    }
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
