"""Calibration and novelty of the answers about flowers by a MobileNetV2 at 160 px.

- calibration: 5 folds, each answered by a network that was trained on the others, with a tenth of those set aside for
  the temperature. The calibration error has ten bins of equal mass; beside it, what perfect probabilities would show
  with as many images, drawn by their own.
- novelty: the area under the ROC curve of flowers from the folder `val` against a class of flowers that was left out of
  training, and against handwritten digits.

With the base frozen, the head is the Trainer's, with its start from a regression, its label smoothing, its optimizer
and its choice of the epoch. Fine-tuned, all is as the Trainer does it by default; the folds are of the first seed only.

    python -m benchmarks.answers FOLDER WEIGHTS [--seeds N] [--fine-tuned] [--json] [--record]

FOLDER holds train/<class>/*.jpg and val/<class>/*.jpg, WEIGHTS are of a MobileNetV2.
"""

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results import Claim, at_least, at_most, make_parser, report

MEASURES = ("trainer",)
SIDE, BATCH, FOLDS, BINS, DIGITS = 160, 32, 5, 10, 300
LIMIT = 0.95
UNKNOWN = tuple(f"{name}: novelty of {LIMIT} or more" for name in ("left out", "the others", "digits"))
CALIBRATION_GOAL, DIGITS_GOAL, LEFT_OUT_GOAL = 0.015, 0.99, 0.80


class Images(NamedTuple):
    """Pixels uint8 ``[n, height, width, 3]`` or features float32 ``[n, d]``, classes, and which are of ``val``."""

    inputs: np.ndarray
    classes: np.ndarray
    is_val: np.ndarray

    def take(self, indices: np.ndarray) -> "Images":
        """Returns some of the images."""
        return Images(*(array[indices] for array in self))


Outputs = Callable[[np.ndarray], dict[str, np.ndarray]]
"""A trained network: from inputs as ``Images`` has them to ``logits`` and ``embedding``."""

Training = Callable[[Images, Images, int], Outputs]
"""From images to train on, those set aside, and a seed to a trained network."""


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--fine-tuned", action="store_true", help="whole trainings too: some half an hour")
    arguments = parser.parse_args()
    for path in (arguments.folder / "train", arguments.weights):
        if not path.exists():
            raise SystemExit(f"{path} is not there: nothing is measured")
    pixels, digits = load(arguments.folder)
    compute = load_features(arguments.weights)
    names = sorted(path.name for path in (arguments.folder / "train").iterdir())
    features = pixels._replace(inputs=compute(pixels.inputs))
    kinds = {"frozen": measure(names, features, compute(digits), train_head, arguments.seeds, arguments.seeds)}
    if arguments.fine_tuned:
        training = partial(fine_tune, arguments.weights)
        kinds["fine-tuned"] = measure(names, pixels, digits, training, 1, arguments.seeds)
    rows = [
        [f"{name}, {kind}", *(f"{np.mean([run[key] for run in runs]):.3f}" for key in ("left out", "digits", *UNKNOWN))]
        for kind, figures in kinds.items()
        for name, runs in figures["novelty"].items()
    ]
    header = ["left out", "against the others", "digits against these", *UNKNOWN]
    claims = [claim for kind, figures in kinds.items() for claim in make_claims(kind, **figures)]
    report(arguments, "answers", MEASURES, kinds, header, rows, claims)


def measure(
    names: list[str], flowers: Images, digits: np.ndarray, training: Training, calibrations: int, novelties: int
) -> dict[str, Any]:
    """Measures so many seeds of each."""
    return {
        "calibration": [measure_calibration(flowers, training, seed) for seed in range(calibrations)],
        "novelty": {
            name: [measure_novelty(flowers, digits, training, left_out, seed) for seed in range(novelties)]
            for left_out, name in enumerate(names)
        },
    }


def make_claims(
    kind: str, calibration: list[dict[str, float]], novelty: dict[str, list[dict[str, float]]]
) -> list[Claim]:
    mean = {key: float(np.mean([row[key] for row in calibration])) for key in calibration[0]}
    left_out, against_digits = (
        float(np.mean([row[key] for rows in novelty.values() for row in rows])) for key in ("left out", "digits")
    )
    return [
        at_most(
            f"Calibration error above that of perfect probabilities, {kind}",
            mean["error"] - mean["perfect"],
            CALIBRATION_GOAL,
            f" ({mean['error']:.3f}, perfect {mean['perfect']:.3f}, without {mean['error without']:.3f})",
        ),
        at_most(
            f"Log loss, of that without calibration, {kind}",
            mean["log loss"] / mean["log loss without"],
            1,
            f" ({mean['log loss']:.3f}, without {mean['log loss without']:.3f}; accuracy {mean['accuracy']:.3f}, "
            f"without {mean['accuracy without']:.3f})",
        ),
        at_least(
            f"Novelty of digits among flowers, area under the curve, {kind}",
            against_digits,
            DIGITS_GOAL,
            f" ({against_digits:.4f})",
        ),
        at_least(
            f"Novelty of a class that was left out, area under the curve, {kind}",
            left_out,
            LEFT_OUT_GOAL,
            f" ({left_out:.4f})",
        ),
    ]


def load(folder: Path) -> tuple[Images, np.ndarray]:
    """Returns pixels of the flowers, and of handwritten digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    def resize(images: list[Image.Image]) -> np.ndarray:
        small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for image in images]
        return np.stack([np.asarray(image) for image in small])

    names = sorted(path.name for path in (folder / "train").iterdir())
    files = sorted(folder.glob("train/*/*")) + sorted(folder.glob("val/*/*"))
    classes = np.array([names.index(file.parent.name) for file in files], np.int32)
    is_val = np.array([file.parts[-3] == "val" for file in files])
    digits = [Image.fromarray((255 - image * 15.9).astype(np.uint8)) for image in load_digits().images[:DIGITS]]
    return Images(resize([Image.open(file) for file in files]), classes, is_val), resize(digits)


def load_features(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from pixels to the features of the untouched network."""
    from trainer.config import TrainerConfig
    from trainer.features import load_backbone

    pooled = load_backbone(TrainerConfig(backbone="mobilenet_v2", weights=str(weights)), (SIDE, SIDE))
    return partial(pooled.predict, batch_size=BATCH, verbose=0)


def train_head(train: Images, validation: Images, seed: int) -> Outputs:
    """Trains the head on features; it is that of the epoch that is best on ``validation``."""
    import keras

    from imagepipe.base.features import IMAGE
    from trainer.config import TrainerConfig
    from trainer.linear_probe import fit_probe
    from trainer.network import build_network
    from trainer.steps import make_learning_rate, make_optimizer
    from trainer.tasks import make_task

    keras.utils.set_random_seed(seed)
    config = TrainerConfig(backbone="mobilenet_v2", weights="none", head_units=0)  # as with weights
    classes = int(train.classes.max()) + 1
    task = make_task("classification", classes, config)
    head = build_network((SIDE, SIDE), task, {}, config).head
    probe = fit_probe(train.inputs, train.classes, task.name, classes)
    head.get_layer("logits").set_weights([probe.weights, probe.bias])
    steps = math.ceil(len(train.classes) / BATCH)
    rate = make_learning_rate(config, config.fine_tune_learning_rate, config.head_epochs, steps)
    head.compile(make_optimizer(config, rate, head), task.loss)
    learned, chosen_on = (
        ({IMAGE: part.inputs}, np.eye(classes, dtype=np.float32)[part.classes]) for part in (train, validation)
    )
    best = []
    for _ in range(config.head_epochs):
        head.fit(*learned, batch_size=BATCH, verbose=0)
        loss = head.evaluate(*chosen_on, verbose=0)
        best.append((loss, head.get_weights()))
    head.set_weights(min(best, key=lambda epoch: epoch[0])[1])
    (image,) = head.inputs
    network = keras.Model({IMAGE: image}, {"logits": head.get_layer("logits").output, "embedding": image})
    return lambda features: network.predict({IMAGE: features}, verbose=0)


def fine_tune(weights: Path, train: Images, validation: Images, seed: int) -> Outputs:
    """Trains the whole network as the Trainer does."""
    import tensorflow as tf

    from imagepipe.base.features import IMAGE
    from trainer.config import TrainerConfig
    from trainer.data import TrainingData
    from trainer.inputs import ArrayFile, LoadedSplit
    from trainer.run_fn import train as run_training
    from trainer.tasks import make_task

    classes = int(train.classes.max()) + 1
    config = TrainerConfig(backbone="mobilenet_v2", weights=str(weights), seed=seed)
    task = make_task("classification", classes, config)

    def write_pixels(part: Images, path: Path) -> LoadedSplit:
        path.write_bytes(part.inputs.tobytes())
        return LoadedSplit(ArrayFile(path, part.inputs.shape[1:], part.inputs.dtype), {}, part.classes, task)

    with tempfile.TemporaryDirectory() as folder:
        learned, chosen_on = (write_pixels(part, Path(folder, str(i))) for i, part in enumerate((train, validation)))
        names = [str(number) for number in range(classes)]
        data = TrainingData(task, names, (SIDE, SIDE), {}, learned, chosen_on, is_set_aside=True)
        served = run_training(data, config, Path(folder), tf.distribute.get_strategy()).network.served
    return lambda pixels: served.predict({IMAGE: pixels}, batch_size=BATCH, verbose=0)


def set_aside(indices: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nine tenths of the indices, to train on, and the others."""
    shuffled = np.random.default_rng(seed).permutation(indices)
    return shuffled[len(shuffled) // 10 :], shuffled[: len(shuffled) // 10]


def measure_calibration(flowers: Images, training: Training, seed: int) -> dict[str, float]:
    """Returns calibration error, log loss and accuracy, with calibration and without."""
    from scipy.special import softmax

    from trainer.export.calibration import fit_calibration

    count = len(flowers.classes)
    targets = np.eye(int(flowers.classes.max()) + 1, dtype=np.float32)[flowers.classes]
    folds = np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)
    probabilities = {name: np.zeros_like(targets) for name in ("", " without")}
    for fold in folds:
        train, validation = set_aside(np.setdiff1d(np.arange(count), fold), seed)
        ask = training(flowers.take(train), flowers.take(validation), seed)
        held_out = ask(flowers.inputs[validation])["logits"]
        calibration = fit_calibration("classification", held_out, targets[validation])
        logits = ask(flowers.inputs[fold])["logits"]
        probabilities[""][fold] = softmax(logits * calibration.factors, axis=1)
        probabilities[" without"][fold] = softmax(logits, axis=1)
    random = np.random.default_rng(seed)
    best = probabilities[""].max(axis=1)
    figures = {"perfect": float(np.mean([compute_error(best, random.random(count) < best) for _ in range(1000)]))}
    for name, p in probabilities.items():
        is_right = p.argmax(axis=1) == flowers.classes
        figures[f"error{name}"] = compute_error(p.max(axis=1), is_right)
        figures[f"log loss{name}"] = float(-np.log(p[np.arange(count), flowers.classes]).mean())
        figures[f"accuracy{name}"] = float(is_right.mean())
    return figures


def compute_error(probabilities: np.ndarray, is_right: np.ndarray) -> float:
    """Returns the calibration error in bins of equal mass."""
    bins = np.array_split(np.argsort(probabilities, kind="stable"), BINS)
    gaps = [len(rows) * abs(probabilities[rows].mean() - is_right[rows].mean()) for rows in bins]
    return float(sum(gaps) / len(probabilities))


def measure_novelty(
    flowers: Images, digits: np.ndarray, training: Training, left_out: int, seed: int
) -> dict[str, float]:
    """Returns areas under the curve, and shares whose novelty is above the limit."""
    from sklearn.metrics import roc_auc_score

    from trainer.export.novelty import fit_novelty

    is_left_out = flowers.classes == left_out
    # The classes that are left are numbered anew: a network has no output for a class without images.
    four_kinds = flowers._replace(classes=flowers.classes - (flowers.classes > left_out))
    train, validation = set_aside(np.flatnonzero(~is_left_out & ~flowers.is_val), seed)
    ask = training(four_kinds.take(train), four_kinds.take(validation), seed)
    novelty = fit_novelty("classification", ask(flowers.inputs[train])["embedding"], ask(flowers.inputs[validation]))
    usual, unseen, other = (
        novelty(ask(inputs)).numpy()
        for inputs in (flowers.inputs[~is_left_out & flowers.is_val], flowers.inputs[is_left_out], digits)
    )

    def compute_area(novel: np.ndarray) -> float:
        return float(roc_auc_score(np.repeat([0, 1], [len(usual), len(novel)]), np.concatenate([usual, novel])))

    return {
        "left out": compute_area(unseen),
        "digits": compute_area(other),
        **{name: float((values >= LIMIT).mean()) for name, values in zip(UNKNOWN, (unseen, usual, other), strict=True)},
    }


if __name__ == "__main__":
    main()
