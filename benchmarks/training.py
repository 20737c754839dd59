"""The Trainer's speed: against Keras's fit, with augmentation, in bfloat16; and the head on kept features.

- bare fit: `model.fit` of the same network, with the same optimizer, on one batch in memory, again and again
- ours: `trainer.fit`, each image read from the pixels' file, in another order each epoch

Each measurement is a process of its own; tracing is not timed, as of each the first epoch is left out. The sides take
turns, and the median counts.

    python -m benchmarks.training [--repeats N] [--json]
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import measure, report

BATCH = 32
CLASSES = 5
GOAL, HEAD_GOAL = 0.95, 5.0
EPOCHS = 4
HEAD_EPOCHS = 10
BATCHES = {75: 16, 299: 3}  # of an epoch, by the images' side in pixels: seconds on two cores

Case = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)  # one measurement, and where to write it
    arguments = parser.parse_args()
    if arguments.case:
        measured = CASES[arguments.case.pop("kind")]
        path = Path(arguments.case.pop("result"))
        path.write_text(json.dumps(measured(folder=path.parent, **arguments.case)))
        return

    figures: dict[str, float] = {}
    memory: dict[str, float] = {}
    for side in BATCHES:
        for frozen in (False, True):
            cases = {kind: {"kind": kind, "side": side, "frozen": frozen} for kind in ("bare fit", "ours")}
            runs = [{kind: run(case) for kind, case in cases.items()} for _ in range(arguments.repeats)]
            for kind in cases:
                name = f"{side} px, {'frozen base' if frozen else 'all'}: {kind}"
                figures[name] = statistics.median(each[kind][0] for each in runs)
                memory[name] = max(each[kind][1] for each in runs)
        variants: dict[str, Case] = {
            "augmented": {"augmented": True},
            "mixed_bfloat16": {"precision": "mixed_bfloat16"},
        }
        for what, options in variants.items():
            name = f"{side} px, all: ours, {what}"
            figures[name], memory[name] = run({"kind": "ours", "side": side, "frozen": False, **options})
    seconds = {kind: run({"kind": kind})[0] for kind in ("head through the base", "head on kept features")}

    ratios = {
        f"{side} px, {layers}": figures[f"{side} px, {layers}: ours"] / figures[f"{side} px, {layers}: bare fit"]
        for side in BATCHES
        for layers in ("all", "frozen base")
    }
    options_ratios = {
        f"{side} px, {what}": figures[f"{side} px, all: ours, {what}"] / figures[f"{side} px, all: ours"]
        for side in BATCHES
        for what in ("augmented", "mixed_bfloat16")
    }
    head = seconds["head through the base"] / seconds["head on kept features"]
    report(
        arguments.json,
        {
            "benchmark": "training",
            "images_per_second": figures,
            "peak_memory_mib": memory,
            "ours/bare fit": ratios,
            "goal": GOAL,
            "with/without": options_ratios,
            "head_seconds": seconds,
            "head_times_as_fast": head,
            "head_goal": HEAD_GOAL,
        },
        ["", "images/s", "peak MiB"],
        [[name, f"{figure:,.1f}", f"{memory[name]:,.0f}"] for name, figure in figures.items()],
        [
            *(f"ours/bare fit, {name}: {ratio:.2f} (goal: at least {GOAL:g})" for name, ratio in ratios.items()),
            *(f"{name}: {ratio:.2f} of the images/s without" for name, ratio in options_ratios.items()),
            f"{HEAD_EPOCHS} epochs of the head at 299 px: {seconds['head on kept features']:.1f} s on kept features, "
            f"{seconds['head through the base']:.1f} s through the frozen base by fit, {head:.1f} times as fast "
            f"(goal: at least {HEAD_GOAL:g})",
        ],
    )


def run(case: Case) -> tuple[float, float]:
    """One measurement in a process of its own: its figure, and its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.training", "--case", json.dumps(case | {"result": str(path)})]
        peak = measure(command).peak
        return json.loads(path.read_text()), peak / 2**20


def _network(side: int, frozen: bool, precision: str = "float32") -> tuple[Any, Any]:
    import keras

    from trainer import model, tasks
    from trainer.config import TrainerConfig

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    task = tasks.classification(CLASSES)
    network = model.build((side, side), task, {}, TrainerConfig(weights="none"))
    network.base.trainable = not frozen
    return network, task


def _fit(model: Any, side: int, steps: int, epochs: int) -> list[float]:
    """Seconds of each epoch of Keras's fit, on one batch again and again."""
    import keras
    import numpy as np
    import tensorflow as tf

    from trainer import optimizers
    from trainer.config import TrainerConfig

    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (BATCH, side, side, 3), np.uint8)}
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, BATCH)]
    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begun = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.perf_counter() - self.begun)

    config = TrainerConfig()
    rate = optimizers.learning_rate(config, config.learning_rate, epochs, steps)
    model.compile(optimizers.optimizer(config, rate, model), "categorical_crossentropy", metrics=["accuracy"])
    data = tf.data.Dataset.from_tensors((batch, targets)).cache().repeat(steps)
    model.fit(data, epochs=epochs, verbose=0, callbacks=[Clock()])
    return seconds


def bare_fit(folder: Path, side: int, frozen: bool) -> float:
    network, _ = _network(side, frozen)
    seconds = _fit(network.model, side, BATCHES[side], EPOCHS)
    return BATCHES[side] * BATCH / statistics.median(seconds[1:])


def _split(folder: Path, side: int, images: int) -> Any:
    import numpy as np

    from trainer.inputs import Rows, Split

    rng = np.random.default_rng(0)
    path = folder / f"pixels-{images}"
    path.write_bytes(rng.integers(0, 256, (images, side, side, 3), np.uint8).data)
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, images)]
    return Split(Rows(path, (side, side, 3), np.dtype(np.uint8)), {}, targets)


def _config(augmented: bool = False, **options: Any) -> Any:
    from trainer.config import AugmentationConfig, TrainerConfig

    off = dict.fromkeys(AugmentationConfig.model_fields, 0)
    augmentation = AugmentationConfig() if augmented else AugmentationConfig(**off)
    return TrainerConfig(batch_size=BATCH, patience=99, augmentation=augmentation, **options)


def ours(folder: Path, side: int, frozen: bool, augmented: bool = False, precision: str = "float32") -> float:
    import tensorflow as tf

    from trainer.fit import fit

    network, task = _network(side, frozen, precision)
    images = BATCHES[side] * BATCH
    train, evaluation = _split(folder, side, images), _split(folder, side, 1)
    config = _config(augmented, weights="none", epochs=EPOCHS)
    history = fit(network, task, train, evaluation, config, folder, tf.distribute.get_strategy())
    return statistics.median(row["images_per_second"] for row in history[1:])


HEAD_BATCHES = 4


def through_base(folder: Path) -> float:
    network, _ = _network(299, frozen=True)
    first, *later = _fit(network.model, 299, HEAD_BATCHES, 3)
    return first + statistics.median(later) * (HEAD_EPOCHS - 1)


def on_features(folder: Path) -> float:
    import tensorflow as tf

    from trainer.fit import fit

    network, task = _network(299, frozen=True)
    images = HEAD_BATCHES * BATCH
    train, evaluation = _split(folder, 299, images), _split(folder, 299, 1)
    # Given weights let the head come first. The upper blocks are none of this.
    config = _config(weights="some.weights.h5", head_epochs=HEAD_EPOCHS, epochs=1)
    begun = time.perf_counter()
    ended: list[float] = []

    class Enough(Exception):  # noqa: N818 (no error)
        pass

    def after(row: dict[str, Any]) -> None:
        ended.append(time.perf_counter())
        if len(ended) == HEAD_EPOCHS:
            raise Enough

    with contextlib.suppress(Enough):
        fit(network, task, train, evaluation, config, folder, tf.distribute.get_strategy(), report=after)
    return ended[-1] - begun


CASES: dict[str, Callable[..., float]] = {
    "bare fit": bare_fit,
    "ours": ours,
    "head through the base": through_base,
    "head on kept features": on_features,
}

if __name__ == "__main__":
    main()
