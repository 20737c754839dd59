"""Accuracy against time from a pretrained file: a tutorial's recipe, a regression on features, and the Trainer.

- tutorial: TensorFlow's transfer learning guide: flips and rotation, 10 epochs of a linear head at 1e-4 (Adam), 10 more
  of what comes after layer 100 at 1e-5 (RMSprop), batches of 32; its last weights
- regression: logistic regression on the network's features of each photo
- ours: the Trainer's defaults; of the photos to train on a tenth is set aside, and what is trained is chosen on it

Each run is a process of its own, timed from the first byte that it reads, imports done: weights, photos and tracing
count. Accuracy is measured on ``val`` afterwards, on states saved on the way, and nothing is chosen on it.

Then one epoch of the upper blocks, on what is kept of the frozen layers and through the whole network.

    python -m benchmarks.transfer FOLDER WEIGHTS [--backbone NAME] [--size N] [--seeds N] [--json] [--record]

FOLDER holds train/<class>/*.jpg and val/<class>/*.jpg; WEIGHTS is a file of the backbone's weights.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import measure
from benchmarks.results import Claim, at_least, at_most, make_parser, report

MEASURES = ("trainer", "transform")
BATCH = 32
SIDES = ("tutorial", "regression", "ours")
SPEEDS = ("kept", "whole")
POINTS_GOAL, ACCURACY_GOAL, SPEED_GOAL = 16.0, 0.88, 2.8
TENTH, THIRD = 0.1, 1 / 3

State = tuple[float, Callable[[Any], Any]]
"""Seconds until a state was there, and its function from pixels to outputs."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--unfreeze-after")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", choices=(*SIDES, *SPEEDS), help=argparse.SUPPRESS)  # one run, of the last seed
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for path in (arguments.folder / "train", arguments.weights):
        if not path.exists():
            sys.exit(f"{path} does not exist: give a folder with train/ and val/, and a file of weights")
    if arguments.side:
        arguments.result.write_text(json.dumps(run_side(arguments)), encoding="utf-8")
        return

    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in (*SIDES, *SPEEDS)}
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "result.json"
        for seed in range(arguments.seeds):
            for side in (*SIDES, *(SPEEDS if seed == 0 else ())):
                given = [str(path.resolve()) for path in (arguments.folder, arguments.weights)]
                given += ["--backbone", arguments.backbone, "--size", str(arguments.size), "--seeds", str(seed)]
                if arguments.unfreeze_after:
                    given += ["--unfreeze-after", arguments.unfreeze_after]
                command = [sys.executable, "-m", "benchmarks.transfer", *given, "--side", side, "--result", str(result)]
                peak = measure(command).peak / 2**20
                runs[side].append(json.loads(result.read_text(encoding="utf-8")) | {"peak_mib": peak})
                print(f"seed {seed}, {side}: {describe(runs[side][-1])}", file=sys.stderr)
    summarize(arguments, runs)


def describe(run: dict[str, Any]) -> str:
    """Returns a run's figures for people."""
    if "images_per_second" in run:
        return f"{run['images_per_second']:.0f} images/s"
    states = " ".join(f"{accuracy:.3f}@{seconds:.0f}s" for seconds, accuracy in run["states"])
    return f"{states}; {run['peak_mib']:,.0f} MiB, {run['disk_mib']:,.0f} MiB on disk"


def summarize(arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Reports the figures of all runs."""
    final = {side: statistics.mean(run["states"][-1][1] for run in runs[side]) for side in SIDES}
    seconds = {side: statistics.mean(run["states"][-1][0] for run in runs[side]) for side in SIDES}
    limit = seconds["tutorial"]
    speed = runs["kept"][0]["images_per_second"] / runs["whole"][0]["images_per_second"]

    def reach(accuracy: float) -> float:
        """Returns the mean share of the tutorial's time until an accuracy was reached; of the whole run if never."""
        first = [next((s for s, a in run["states"] if a >= accuracy), float("inf")) for run in runs["ours"]]
        return statistics.mean(first) / limit

    points = 100 * (final["ours"] - final["tutorial"])
    seeds = f"mean of {arguments.seeds} seeds"
    report(
        arguments,
        "transfer",
        MEASURES,
        {"runs": runs, "accuracy": final, "seconds": seconds, "points": points, "speed": speed},
        ["", "accuracy on val, mean", "by seed", "seconds, mean", "peak MiB", "disk MiB"],
        [
            [
                side,
                f"{final[side]:.3f}",
                " ".join(f"{run['states'][-1][1]:.3f}" for run in runs[side]),
                f"{seconds[side]:.0f}",
                f"{max(run['peak_mib'] for run in runs[side]):,.0f}",
                f"{max(run['disk_mib'] for run in runs[side]):,.0f}",
            ]
            for side in SIDES
        ],
        [
            Claim(
                f"accuracy of ours less the tutorial's, {seeds}",
                f"{points:+.1f} points ({final['ours']:.3f}, {final['tutorial']:.3f})",
                f"at least {POINTS_GOAL:+g} points",
                points >= POINTS_GOAL,
            ),
            at_most("time of ours, against the tutorial's", seconds["ours"] / limit, 1),
            at_most("time until ours has the regression's accuracy", reach(final["regression"]), TENTH),
            at_most(f"time until ours has {ACCURACY_GOAL}", reach(ACCURACY_GOAL), THIRD),
            at_least("images a second of the upper blocks, against the whole network", speed, SPEED_GOAL),
        ],
    )


def run_side(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one side, and measures the accuracy of its states."""
    import keras
    import numpy as np

    from trainer import linear_probe, run_fn  # noqa: F401 (all is imported before the clock starts)

    keras.utils.set_random_seed(arguments.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.side in SPEEDS:
            return {"images_per_second": measure_speed(arguments, folder, run_fn)}
        states = {"tutorial": follow_tutorial, "regression": fit_regression, "ours": train_ours}[arguments.side](
            arguments, folder, time.perf_counter()
        )
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        images, labels = read_photos(arguments.folder / "val", arguments.size)
        measured = []
        for seconds, predict in states:
            outputs = np.concatenate([np.asarray(predict(images[i : i + 50])) for i in range(0, len(images), 50)])
            measured.append((seconds, float((outputs.argmax(axis=1) == labels).mean())))
    return {"states": measured, "disk_mib": size / 2**20}


def read_photos(folder: Path, size: int) -> tuple[Any, Any]:
    """Pixels uint8 ``[n, size, size, 3]`` by the project's own decoder, and classes int32 ``[n]``."""
    import numpy as np
    import tensorflow as tf

    from transform.images import decode_and_resize

    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*.jpg"))
    labels = np.array([classes.index(file.parent.name) for file in files], np.int32)
    decode = tf.function(lambda encoded: decode_and_resize(encoded, (size, size)), reduce_retracing=True)
    batches = [
        decode(tf.constant([file.read_bytes() for file in files[i : i + 8]])).numpy() for i in range(0, len(files), 8)
    ]
    return np.concatenate(batches).astype(np.uint8), labels


def load_training(arguments: argparse.Namespace, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Returns the Trainer's data and settings; the photos are decoded into a file as the Trainer does."""
    import hashlib

    import numpy as np

    from trainer.config import TrainerConfig
    from trainer.data import TrainingData, choose_validation
    from trainer.inputs import ArrayFile, LoadedSplit
    from trainer.tasks import make_task

    options |= {"unfreeze_after": arguments.unfreeze_after} if arguments.unfreeze_after else {}
    config = TrainerConfig(backbone=arguments.backbone, weights=str(arguments.weights), seed=arguments.seeds, **options)
    images, labels = read_photos(arguments.folder / "train", arguments.size)
    names = sorted(path.name for path in (arguments.folder / "train").iterdir())
    task = make_task("classification", len(names), config)
    (folder / "pixels").write_bytes(images.data)
    split = LoadedSplit(ArrayFile(folder / "pixels", images.shape[1:], np.dtype(np.uint8)), {}, labels, task)
    hashes = [int.from_bytes(hashlib.blake2b(image, digest_size=8).digest()) >> 2 for image in images]
    chosen = choose_validation(task, labels, np.array(hashes), config.validation)
    train, validation = (split.select(np.flatnonzero(part)) for part in (~chosen, chosen))
    return TrainingData(task, names, (arguments.size, arguments.size), {}, train, validation, True), config


def train_ours(arguments: argparse.Namespace, folder: Path, start: float) -> list[State]:
    import keras
    import tensorflow as tf

    from trainer.devices import choose_training_precision
    from trainer.network import build_network
    from trainer.schedule import run_schedule

    data, config = load_training(arguments, folder)
    keras.config.set_dtype_policy(choose_training_precision(config))
    network = build_network(data.image_size, data.task, data.side, config)
    saved: list[tuple[float, Any]] = []

    def save(row: dict[str, Any]) -> None:
        saved.append((time.perf_counter() - start, network.model.get_weights()))

    strategy = tf.distribute.get_strategy()
    run_schedule(network, data.task, data.train, data.validation, config, folder, strategy, on_epoch=save)
    save({})
    forward = tf.function(lambda images: network.model({"image": images}, training=False), reduce_retracing=True)

    def restore(weights: Any) -> Callable[[Any], Any]:
        def predict(images: Any) -> Any:
            network.model.set_weights(weights)
            return forward(images)

        return predict

    return [(seconds, restore(weights)) for seconds, weights in saved]


def measure_speed(arguments: argparse.Namespace, folder: Path, run_fn: Any) -> float:
    """Returns the images a second of the second epoch of the upper blocks."""
    import tensorflow as tf

    views = {"views": 0} if arguments.side == "whole" else {}
    data, config = load_training(arguments, folder, head_epochs=1, epochs=2, **views)
    history = run_fn.train(data, config, folder, tf.distribute.get_strategy()).history
    return history[-1]["images_per_second"]


def fit_regression(arguments: argparse.Namespace, folder: Path, start: float) -> list[State]:
    import numpy as np
    import tensorflow as tf

    from trainer.config import TrainerConfig
    from trainer.linear_probe import fit_probe
    from trainer.network import build_network
    from trainer.tasks import make_classification

    images, labels = read_photos(arguments.folder / "train", arguments.size)
    classes = int(labels.max()) + 1
    config = TrainerConfig(backbone=arguments.backbone, weights=str(arguments.weights))
    network = build_network(images.shape[1:3], make_classification(classes), {}, config)
    forward = tf.function(lambda batch: network.pooled(batch, training=False), reduce_retracing=True)
    features = np.concatenate([forward(images[i : i + 50]).numpy() for i in range(0, len(images), 50)])
    probe = fit_probe(features, labels, "classification", classes)
    return [(time.perf_counter() - start, lambda batch: probe.predict(forward(batch).numpy()))]


def follow_tutorial(arguments: argparse.Namespace, folder: Path, start: float) -> list[State]:
    import keras
    import tensorflow as tf

    from trainer.config import TrainerConfig
    from trainer.network import build_network
    from trainer.tasks import make_classification

    size = (arguments.size, arguments.size)
    photos = keras.utils.image_dataset_from_directory(
        arguments.folder / "train", image_size=size, batch_size=BATCH, seed=arguments.seeds, verbose=False
    )
    classes = len(photos.class_names)
    config = TrainerConfig(backbone=arguments.backbone, weights=str(arguments.weights))
    network = build_network(size, make_classification(classes), {}, config)
    base = network.base
    base.trainable = False
    image = keras.Input((*size, 3))
    x = keras.layers.RandomRotation(0.2)(keras.layers.RandomFlip("horizontal")(image))
    x = base(network.scaling.get_layer("scale")(x), training=False)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, keras.layers.Dense(classes)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    model.fit(photos.prefetch(tf.data.AUTOTUNE), epochs=10, verbose=0)
    base.trainable = True
    for layer in base.layers[:100]:
        layer.trainable = False
    model.compile(keras.optimizers.RMSprop(1e-5), loss, metrics=["accuracy"])
    model.fit(photos.prefetch(tf.data.AUTOTUNE), epochs=20, initial_epoch=10, verbose=0)
    return [(time.perf_counter() - start, lambda batch: model(tf.cast(batch, tf.float32), training=False))]


if __name__ == "__main__":
    main()
