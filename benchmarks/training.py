"""The Trainer's speed: against Keras's fit, with augmentation, in bfloat16; and the head on kept features.

- bare fit: `model.fit` of the same network, with the same optimizer, on one batch in memory, again and again
- ours: `trainer.schedule`, each image read from the pixels' file, in another order each epoch

Each side is a process of its own, traced in its first epoch, which doesn't count. From then on they take turns of one
epoch, and what counts is the median of the turns: of a side's images/s, and of the ratios within each turn.

    python -m benchmarks.training [--turns N] [--json] [--record]
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

from benchmarks.common import measure_in_turns, next_turn
from benchmarks.results import Claim, at_least, make_parser, report

MEASURES = ("trainer",)
CLASSES = 5
GOAL, HEAD_GOAL = 0.95, 5.0
HEAD_EPOCHS = 10
BATCH = {75: 32, 299: 16}  # by the images' side in pixels
BATCHES = {75: 16, 299: 6}  # of an epoch: seconds on two cores, and more than what is prefetched
SIDES: dict[str, dict[str, dict[str, Any]]] = {
    "all": {
        "bare fit": {},
        "ours": {},
        "ours, augmented": {"augmented": True},
        "ours, mixed_bfloat16": {"precision": "mixed_bfloat16"},
    },
    "frozen base": {"bare fit": {}, "ours": {}},
}

Case = dict[str, Any]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)  # one side, and where to write its figures
    arguments = parser.parse_args()
    if arguments.case:
        run_case = CASES[arguments.case.pop("kind")]
        path = Path(arguments.case.pop("result"))
        path.write_text(json.dumps(run_case(folder=path.parent, **arguments.case)), encoding="utf-8")
        return

    figures: dict[str, float] = {}
    memory: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for side in BATCHES:
        for layers, variants in SIDES.items():
            case = {"side": side, "frozen": layers == "frozen base", "epochs": 1 + arguments.turns}
            turns, peaks = run(
                {name: {"kind": name.partition(",")[0], **case, **options} for name, options in variants.items()}
            )
            for name in variants:
                figures[f"{side} px, {layers}: {name}"] = statistics.median(turns[name])
                memory[f"{side} px, {layers}: {name}"] = peaks[name]
                other = "bare fit" if name == "ours" else "ours"
                if name != "bare fit":
                    ratios[f"{side} px, {layers}: {name} / {other}"] = statistics.median(
                        one / another for one, another in zip(turns[name], turns[other], strict=True)
                    )
    seconds, peaks = run({kind: {"kind": kind} for kind in ("head through the base", "head on kept features")})
    head = seconds["head through the base"] / seconds["head on kept features"]
    report(
        arguments,
        "training",
        MEASURES,
        {
            "images_per_second": figures,
            "peak_memory_mib": memory | peaks,
            "ratios": ratios,
            "goal": GOAL,
            "head_seconds": seconds,
            "head_times_as_fast": head,
            "head_goal": HEAD_GOAL,
        },
        ["", "images/s", "peak MiB"],
        [[name, f"{figure:,.1f}", f"{memory[name]:,.0f}"] for name, figure in figures.items()],
        [
            *(
                at_least(f"images/s, {name}", ratio, GOAL)
                if name.endswith("bare fit")
                else Claim(f"images/s, {name}", f"{ratio:.2f}")
                for name, ratio in ratios.items()
            ),
            at_least(
                f"{HEAD_EPOCHS} epochs of the head at 299 px on cached features, against fit through the frozen base",
                head,
                HEAD_GOAL,
                f" times as fast ({seconds['head on kept features']:.1f} s, {seconds['head through the base']:.1f} s)",
            ),
        ],
    )


def run(cases: dict[str, Case]) -> tuple[dict[str, Any], dict[str, float]]:
    """The figures of each case, each a process of its own, and its peak memory in MiB."""
    with contextlib.ExitStack() as stack:
        paths = {name: Path(stack.enter_context(tempfile.TemporaryDirectory())) / "result.json" for name in cases}
        usages = measure_in_turns(
            [
                [sys.executable, "-m", "benchmarks.training", "--case", json.dumps(case | {"result": str(paths[name])})]
                for name, case in cases.items()
            ]
        )
        peaks = {name: usage.peak / 2**20 for name, usage in zip(cases, usages, strict=True)}
        return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}, peaks


def _network(side: int, frozen: bool, precision: str = "float32") -> tuple[Any, Any]:
    import keras

    from trainer.config import TrainerConfig
    from trainer.network import build_network
    from trainer.tasks import make_classification

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    task = make_classification(CLASSES)
    network = build_network((side, side), task, {}, TrainerConfig(weights="none"))
    network.base.trainable = not frozen
    return network, task


def _fit(model: Any, side: int, steps: int, epochs: int) -> list[float]:
    """Seconds of each epoch of Keras's fit, on one batch again and again; each but the first is a turn."""
    import keras
    import numpy as np
    import tensorflow as tf

    from trainer.config import TrainerConfig
    from trainer.steps import make_learning_rate, make_optimizer

    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (BATCH[side], side, side, 3), np.uint8)}
    targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, BATCH[side])]
    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.perf_counter() - self.start)
            next_turn()

    config = TrainerConfig()
    rate = make_learning_rate(config, config.learning_rate, epochs, steps)
    model.compile(make_optimizer(config, rate, model), "categorical_crossentropy", metrics=["accuracy"])
    data = tf.data.Dataset.from_tensors((batch, targets)).cache().repeat(steps)
    model.fit(data, epochs=epochs, verbose=0, callbacks=[Clock()])
    return seconds


def bare_fit(folder: Path, side: int, frozen: bool, epochs: int) -> list[float]:
    network, _ = _network(side, frozen)
    seconds = _fit(network.model, side, BATCHES[side], epochs)
    return [BATCHES[side] * BATCH[side] / epoch_seconds for epoch_seconds in seconds[1:]]


def _split(folder: Path, side: int, images: int) -> Any:
    import numpy as np

    from trainer.inputs import ArrayFile, LoadedSplit
    from trainer.tasks import make_classification

    rng = np.random.default_rng(0)
    path = folder / f"pixels-{images}"
    path.write_bytes(rng.integers(0, 256, (images, side, side, 3), np.uint8).data)
    targets = rng.integers(0, CLASSES, images).astype(np.int32)
    return LoadedSplit(ArrayFile(path, (side, side, 3), np.dtype(np.uint8)), {}, targets, make_classification(CLASSES))


def _config(side: int, augmented: bool = False, **options: Any) -> Any:
    from trainer.config import AugmentationConfig, TrainerConfig

    off = dict.fromkeys(AugmentationConfig.model_fields, 0)
    augmentation = AugmentationConfig() if augmented else AugmentationConfig(**off)
    return TrainerConfig(batch_size=BATCH[side], patience=99, augmentation=augmentation, **options)


def ours(
    folder: Path, side: int, frozen: bool, epochs: int, augmented: bool = False, precision: str = "float32"
) -> list[float]:
    import tensorflow as tf

    from trainer.schedule import run_schedule

    network, task = _network(side, frozen, precision)
    train, evaluation = _split(folder, side, BATCHES[side] * BATCH[side]), _split(folder, side, 1)
    config = _config(side, augmented, weights="none", epochs=epochs)
    strategy = tf.distribute.get_strategy()
    history = run_schedule(network, task, train, evaluation, config, folder, strategy, on_epoch=lambda row: next_turn())
    return [row["images_per_second"] for row in history[1:]]


HEAD_BATCHES = 16


def through_base(folder: Path) -> float:
    """Seconds; of the later epochs, which are all alike, one is timed."""
    network, _ = _network(299, frozen=True)
    first, later = _fit(network.model, 299, HEAD_BATCHES, 2)
    return first + later * (HEAD_EPOCHS - 1)


def on_features(folder: Path) -> float:
    import tensorflow as tf

    from trainer.schedule import run_schedule

    network, task = _network(299, frozen=True)
    train, evaluation = _split(folder, 299, HEAD_BATCHES * BATCH[299]), _split(folder, 299, 1)
    # Given weights let the head come first. The upper blocks are none of this.
    config = _config(299, weights="some.weights.h5", head_epochs=HEAD_EPOCHS, epochs=1)
    start = time.perf_counter()
    ended: list[float] = []

    class Enough(Exception):  # noqa: N818 (no error)
        pass

    def after(row: dict[str, Any]) -> None:
        ended.append(time.perf_counter())
        if len(ended) == HEAD_EPOCHS:
            raise Enough

    with contextlib.suppress(Enough):
        run_schedule(network, task, train, evaluation, config, folder, tf.distribute.get_strategy(), on_epoch=after)
    return ended[-1] - start


CASES: dict[str, Callable[..., Any]] = {
    "bare fit": bare_fit,
    "ours": ours,
    "head through the base": through_base,
    "head on kept features": on_features,
}

if __name__ == "__main__":
    main()
