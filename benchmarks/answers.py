"""Calibration and novelty of the answers about flowers, with the head on the features of a MobileNetV2 at 160 px.

- calibration: 5 folds, each answered by a network that was trained on the others, with a tenth of those set aside for
  the temperature. The calibration error has ten bins of equal mass; beside it, what perfect probabilities would show
  with as many images, drawn by their own.
- novelty: the area under the ROC curve of flowers from the folder `val` against a class of flowers that was left out of
  training, and against handwritten digits.

The base is frozen; the head is the Trainer's, with its start from a regression, its label smoothing, its optimizer and
its choice of the epoch.

    python -m benchmarks.answers FOLDER WEIGHTS [--seeds N] [--json] [--record]

FOLDER holds train/<class>/*.jpg and val/<class>/*.jpg, WEIGHTS are of a MobileNetV2.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results import at_least, at_most, make_parser, report

MEASURES = ("trainer",)
SIDE, BATCH, FOLDS, BINS, DIGITS = 160, 32, 5, 10, 300
LIMIT = 0.95
UNKNOWN = tuple(f"{name}: novelty of {LIMIT} or more" for name in ("left out", "the others", "digits"))
CALIBRATION_GOAL, DIGITS_GOAL, LEFT_OUT_GOAL = 0.015, 0.99, 0.80


class Images(NamedTuple):
    """Features float32 ``[n, d]``, classes int ``[n]``, and which are of the folder ``val``, bool ``[n]``."""

    features: np.ndarray
    classes: np.ndarray
    is_val: np.ndarray


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    for path in (arguments.folder / "train", arguments.weights):
        if not path.exists():
            raise SystemExit(f"{path} is not there: nothing is measured")
    flowers, digits = load(arguments.folder, arguments.weights)
    calibration = [measure_calibration(flowers, seed) for seed in range(arguments.seeds)]
    names = sorted(path.name for path in (arguments.folder / "train").iterdir())
    novelty = {
        name: [measure_novelty(flowers, digits, left_out, seed) for seed in range(arguments.seeds)]
        for left_out, name in enumerate(names)
    }
    mean = {key: float(np.mean([row[key] for row in calibration])) for key in calibration[0]}
    left_out = float(np.mean([row["left out"] for rows in novelty.values() for row in rows]))
    against_digits = float(np.mean([row["digits"] for rows in novelty.values() for row in rows]))
    rows = [
        [name, *(f"{np.mean([row[key] for row in rows]):.3f}" for key in ("left out", "digits", *UNKNOWN))]
        for name, rows in novelty.items()
    ]
    report(
        arguments,
        "answers",
        MEASURES,
        {"calibration": calibration, "novelty": novelty},
        ["left out", "against the others", "digits against these", *UNKNOWN],
        rows,
        [
            at_most(
                "Calibration error above that of perfect probabilities",
                mean["error"] - mean["perfect"],
                CALIBRATION_GOAL,
                f" ({mean['error']:.3f}, perfect {mean['perfect']:.3f}, without {mean['error without']:.3f})",
            ),
            at_most(
                "Log loss, of that without calibration",
                mean["log loss"] / mean["log loss without"],
                1,
                f" ({mean['log loss']:.3f}, without {mean['log loss without']:.3f}; accuracy {mean['accuracy']:.3f}, "
                f"without {mean['accuracy without']:.3f})",
            ),
            at_least(
                "Novelty of digits among flowers, area under the curve",
                against_digits,
                DIGITS_GOAL,
                f" ({against_digits:.4f})",
            ),
            at_least(
                "Novelty of a class that was left out, area under the curve",
                left_out,
                LEFT_OUT_GOAL,
                f" ({left_out:.4f})",
            ),
        ],
    )


def load(folder: Path, weights: Path) -> tuple[Images, np.ndarray]:
    """Returns the flowers, and the features of handwritten digits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    from trainer.config import TrainerConfig
    from trainer.network import build_network
    from trainer.tasks import make_classification

    def resize(image: Image.Image) -> np.ndarray:
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    names = sorted(path.name for path in (folder / "train").iterdir())
    files = sorted(folder.glob("train/*/*")) + sorted(folder.glob("val/*/*"))
    config = TrainerConfig(backbone="mobilenet_v2", weights=str(weights))
    pooled = build_network((SIDE, SIDE), make_classification(len(names)), {}, config).pooled
    digits = [Image.fromarray((255 - image * 15.9).astype(np.uint8)) for image in load_digits().images[:DIGITS]]
    flowers, others = (
        pooled.predict(np.stack([resize(image) for image in images]), batch_size=BATCH, verbose=0)
        for images in ([Image.open(file) for file in files], digits)
    )
    classes = np.array([names.index(file.parent.name) for file in files])
    return Images(flowers, classes, np.array([file.parts[-3] == "val" for file in files])), others


def train_head(flowers: Images, train: np.ndarray, validation: np.ndarray, seed: int) -> Any:
    """Returns the head from features to ``logits`` and ``embedding``, of the epoch that is best on ``validation``."""
    import keras

    from imagepipe.base.features import IMAGE
    from trainer.config import TrainerConfig
    from trainer.linear_probe import fit_probe
    from trainer.network import build_network
    from trainer.steps import make_learning_rate, make_optimizer
    from trainer.tasks import make_task

    keras.utils.set_random_seed(seed)
    config = TrainerConfig(backbone="mobilenet_v2", weights="none", head_units=0)  # as with weights
    classes = int(flowers.classes[train].max()) + 1
    task = make_task("classification", classes, config)
    head = build_network((SIDE, SIDE), task, {}, config).head
    probe = fit_probe(flowers.features[train], flowers.classes[train].astype(np.int32), task.name, classes)
    head.get_layer("logits").set_weights([probe.weights, probe.bias])
    steps = math.ceil(len(train) / BATCH)
    rate = make_learning_rate(config, config.fine_tune_learning_rate, config.head_epochs, steps)
    head.compile(make_optimizer(config, rate, head), task.loss)
    learned, chosen_on = (
        ({IMAGE: flowers.features[part]}, np.eye(classes, dtype=np.float32)[flowers.classes[part]])
        for part in (train, validation)
    )
    best = []
    for _ in range(config.head_epochs):
        head.fit(*learned, batch_size=BATCH, verbose=0)
        loss = head.evaluate(*chosen_on, verbose=0)
        best.append((loss, head.get_weights()))
    head.set_weights(min(best, key=lambda epoch: epoch[0])[1])
    (image,) = head.inputs
    return keras.Model({IMAGE: image}, {"logits": head.get_layer("logits").output, "embedding": image})


def set_aside(indices: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns nine tenths of the indices, to train on, and the others."""
    shuffled = np.random.default_rng(seed).permutation(indices)
    return shuffled[len(shuffled) // 10 :], shuffled[: len(shuffled) // 10]


def ask(network: Any, features: np.ndarray) -> dict[str, np.ndarray]:
    from imagepipe.base.features import IMAGE

    return network.predict({IMAGE: features}, verbose=0)


def measure_calibration(flowers: Images, seed: int) -> dict[str, float]:
    """Returns calibration error, log loss and accuracy, with calibration and without."""
    from scipy.special import softmax

    from trainer.export.calibration import fit_calibration

    count = len(flowers.classes)
    targets = np.eye(int(flowers.classes.max()) + 1, dtype=np.float32)[flowers.classes]
    folds = np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)
    probabilities = {name: np.zeros_like(targets) for name in ("", " without")}
    for fold in folds:
        train, validation = set_aside(np.setdiff1d(np.arange(count), fold), seed)
        network = train_head(flowers, train, validation, seed)
        held_out = ask(network, flowers.features[validation])["logits"]
        calibration = fit_calibration("classification", held_out, targets[validation])
        logits = ask(network, flowers.features[fold])["logits"]
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


def measure_novelty(flowers: Images, digits: np.ndarray, left_out: int, seed: int) -> dict[str, float]:
    """Returns areas under the curve, and shares whose novelty is above the limit."""
    from sklearn.metrics import roc_auc_score

    from trainer.export.novelty import fit_novelty

    is_left_out = flowers.classes == left_out
    # The classes that are left are numbered anew: a network has no output for a class without images.
    four_kinds = flowers._replace(classes=flowers.classes - (flowers.classes > left_out))
    train, validation = set_aside(np.flatnonzero(~is_left_out & ~flowers.is_val), seed)
    network = train_head(four_kinds, train, validation, seed)
    novelty = fit_novelty("classification", flowers.features[train], ask(network, flowers.features[validation]))
    usual, unseen, other = (
        novelty(ask(network, features)).numpy()
        for features in (flowers.features[~is_left_out & flowers.is_val], flowers.features[is_left_out], digits)
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
