"""Eval accuracy of the default recipe against the script that one would write, from scratch at 96 px.

- plain: Keras's InceptionV3 and a softmax, Adam at 1e-3, `model.fit`, Keras's defaults, the last epoch's weights
- ours: the Trainer's defaults: augmentation, label smoothing, AdamW with warm-up and cosine, dropout, momentum of
  BatchNormalization by the number of steps, the best epoch's weights

Both see the same images as often, from the same seed. Each run is a process of its own, timed from its first step,
tracing included.

    python -m benchmarks.quality FOLDER [--epochs N] [--seeds N] [--json] [--record]

FOLDER holds train/<class>/*.jpg and val/<class>/*.jpg.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import measure
from benchmarks.results import Claim, at_most, make_parser, report

MEASURES = ("trainer", "transform")
SIDE = 96
BATCH = 32
POINTS_GOAL, TIME_GOAL = 6.0, 1.15
SIDES = ("plain", "ours")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # one run, of the last seed
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        train, evaluation = (load(arguments.folder / name) for name in ("train", "val"))
        train_one = {"plain": plain, "ours": ours}[arguments.side]
        accuracy, seconds = train_one(train, evaluation, arguments.epochs, arguments.seeds)
        arguments.result.write_text(json.dumps([accuracy, seconds]), encoding="utf-8")
        return

    accuracies: dict[str, list[float]] = {side: [] for side in SIDES}
    seconds_of: dict[str, list[float]] = {side: [] for side in SIDES}
    memory: dict[str, float] = dict.fromkeys(SIDES, 0)
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "result.json"
        for seed in range(arguments.seeds):
            for side in SIDES:
                command = [sys.executable, "-m", "benchmarks.quality", str(arguments.folder.resolve())]
                command += ["--epochs", str(arguments.epochs), "--seeds", str(seed)]
                peak = measure([*command, "--side", side, "--result", str(result)]).peak
                accuracy, seconds = json.loads(result.read_text(encoding="utf-8"))
                accuracies[side].append(accuracy)
                seconds_of[side].append(seconds)
                memory[side] = max(memory[side], peak / 2**20)

    mean = {side: statistics.mean(values) for side, values in accuracies.items()}
    points = 100 * (mean["ours"] - mean["plain"])
    longer = statistics.mean(seconds_of["ours"]) / statistics.mean(seconds_of["plain"])
    report(
        arguments,
        "quality",
        MEASURES,
        {
            "epochs": arguments.epochs,
            "accuracies": accuracies,
            "seconds": seconds_of,
            "peak_memory_mib": memory,
            "points": points,
            "points_goal": POINTS_GOAL,
            "time_ratio": longer,
            "time_goal": TIME_GOAL,
        },
        ["", "eval accuracy, mean", "by seed", "seconds, mean", "peak MiB"],
        [
            [
                side,
                f"{mean[side]:.3f}",
                " ".join(f"{accuracy:.3f}" for accuracy in accuracies[side]),
                f"{statistics.mean(seconds_of[side]):.0f}",
                f"{memory[side]:,.0f}",
            ]
            for side in SIDES
        ],
        [
            Claim(
                f"eval accuracy, mean of {arguments.seeds} seeds, less the plain script's",
                f"{points:+.1f} points ({mean['ours']:.3f}, {mean['plain']:.3f})",
                f"at least {POINTS_GOAL:+g} points",
                points >= POINTS_GOAL,
            ),
            at_most("wall time, against the plain script's", longer, TIME_GOAL),
        ],
    )


def load(folder: Path) -> tuple[Any, Any]:
    """Pixels uint8 ``[n, SIDE, SIDE, 3]`` by the project's own decoder, and classes int ``[n]``."""
    import numpy as np
    import tensorflow as tf

    from transform.images import decode_and_resize

    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*.jpg"))
    labels = np.array([classes.index(file.parent.name) for file in files])
    batches = [
        decode_and_resize(tf.constant([file.read_bytes() for file in files[i : i + BATCH]]), (SIDE, SIDE)).numpy()
        for i in range(0, len(files), BATCH)
    ]
    return np.concatenate(batches), labels


def plain(train: tuple[Any, Any], evaluation: tuple[Any, Any], epochs: int, seed: int) -> tuple[float, float]:
    import keras

    keras.utils.set_random_seed(seed)
    images = keras.Input((SIDE, SIDE, 3))
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    features = keras.applications.InceptionV3(include_top=False, weights=None, pooling="avg")(scaled)
    model = keras.Model(images, keras.layers.Dense(int(train[1].max()) + 1, activation="softmax")(features))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    start = time.perf_counter()
    history = model.fit(*train, batch_size=BATCH, epochs=epochs, validation_data=evaluation, verbose=0)
    return history.history["val_accuracy"][-1], time.perf_counter() - start


def ours(train: tuple[Any, Any], evaluation: tuple[Any, Any], epochs: int, seed: int) -> tuple[float, float]:
    import keras
    import numpy as np
    import tensorflow as tf

    from trainer.config import TrainerConfig
    from trainer.devices import choose_training_precision
    from trainer.inputs import ArrayFile, LoadedSplit
    from trainer.network import build_network
    from trainer.schedule import find_best, run_schedule
    from trainer.tasks import make_task

    config = TrainerConfig(weights="none", epochs=epochs, batch_size=BATCH, seed=seed, patience=epochs)
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(choose_training_precision(config))
    classes = int(train[1].max()) + 1
    task = make_task("classification", classes, config)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        splits = []
        for name, (images, labels) in {"train": train, "eval": evaluation}.items():
            (folder / name).write_bytes(images.data)
            rows = ArrayFile(folder / name, images.shape[1:], np.dtype(np.uint8))
            splits.append(LoadedSplit(rows, {}, labels.astype(np.int32), task))
        network = build_network((SIDE, SIDE), task, {}, config)
        start = time.perf_counter()
        history = run_schedule(network, task, splits[0], splits[1], config, folder, tf.distribute.get_strategy())
        seconds = time.perf_counter() - start
    return find_best(history)["val_accuracy"], seconds


if __name__ == "__main__":
    main()
