"""How much a choice among candidates flatters the chosen one: chosen on images set aside, and on those of the gate.

The photos are divided at random into fifths; each in turn is eval, the next one test, and three are for training. So
each photo is in eval as often as in test. Of those for training a tenth is set aside as the Trainer does. The
candidates, which differ by little more than chance, are ridge regressions on a quarter of a MobileNetV2's features
each, which are computed once. The most accurate on the images set aside is chosen, and, as a control, the most accurate
on eval; what either has on eval more than on test is what it flatters itself by. "Less the candidates' mean" takes from
that the mean of all candidates, which nobody chose.

    python -m benchmarks.choosing FOLDER WEIGHTS [--splits N] [--json] [--record]

FOLDER holds <split>/<class>/*.jpg; WEIGHTS is a file of MobileNetV2's weights.
"""

import hashlib
from pathlib import Path

import numpy as np

from benchmarks.data_check import compute_features
from benchmarks.results import Claim, make_parser, report

MEASURES = ("trainer/data.py",)
SUBSETS, PENALTIES = 6, (0.1, 0.3, 1.0, 3.0)  # a candidate for each pair
PARTS = 5
SIDES = ("set aside", "eval")
GOAL, CONTROL_GOAL = 0.5, 1.0


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--splits", type=int, default=200, help=f"a multiple of {PARTS}")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*/*/*.jpg"))
    if not files or not arguments.weights.exists():
        raise SystemExit(f"There are no photos in {arguments.folder}, or no file {arguments.weights}.")
    names = sorted({file.parent.name for file in files})
    classes = np.array([names.index(file.parent.name) for file in files], np.int32)
    photos = [file.read_bytes() for file in files]
    features = compute_features(photos, str(arguments.weights)).astype(np.float32)
    hashes = np.array([int.from_bytes(hashlib.blake2b(photo, digest_size=8).digest()) >> 2 for photo in photos])
    accuracies = np.stack([judge_candidates(features, classes, hashes, number) for number in range(arguments.splits)])
    flattery = {side: describe(measure_flattery(accuracies, column)) for column, side in enumerate(SIDES)}
    chosen, control = (100 * flattery[side]["difference"][0] for side in SIDES)
    count = f"{arguments.splits} splits, {SUBSETS * len(PENALTIES)} candidates"
    report(
        arguments,
        "choosing",
        MEASURES,
        flattery,
        ["chosen on", "eval", "test", "points of difference", "less the candidates' mean"],
        [
            [side, *(format_points(*figures[name]) for name in ("eval", "test", "difference", "by choice"))]
            for side, figures in flattery.items()
        ],
        [
            Claim(
                f"accuracy on eval above that on test, chosen on images set aside, {count}",
                f"{format_points(*flattery['set aside']['difference'])} points",
                f"at most {GOAL:g} either way",
                abs(chosen) <= GOAL,
            ),
            Claim(
                "the same, chosen on eval: the control",
                f"{format_points(*flattery['eval']['difference'])} points",
                f"above {CONTROL_GOAL:g}, or nothing was shown",
                control > CONTROL_GOAL,
            ),
            *(
                Claim(
                    f"the same less the mean of all candidates, chosen on {side}",
                    f"{format_points(*figures['by choice'])} points",
                )
                for side, figures in flattery.items()
            ),
        ],
    )


def judge_candidates(features: np.ndarray, classes: np.ndarray, hashes: np.ndarray, number: int) -> np.ndarray:
    """Returns accuracies of a split's candidates, one row each: on the images set aside, on eval, and on test."""
    from sklearn.linear_model import RidgeClassifier
    from threadpoolctl import threadpool_limits

    from trainer.config import TrainerConfig
    from trainer.data import choose_validation
    from trainer.tasks import make_classification

    draw, turn = divmod(number, PARTS)
    count, width = features.shape
    parts = np.array_split(np.random.default_rng(draw).permutation(count), PARTS)
    evaluation, test, *others = parts[turn:] + parts[:turn]
    train, random = np.concatenate(others), np.random.default_rng([draw, turn])
    task, share = make_classification(int(classes.max()) + 1), TrainerConfig().validation
    is_set_aside = choose_validation(task, classes[train], hashes[train], share)
    learned, judged = train[~is_set_aside], (train[is_set_aside], evaluation, test)
    scaled = features / np.sqrt(np.square(features - features.mean(axis=0)).sum(axis=1).mean())
    accuracies = []
    with threadpool_limits(1):  # of small products, several threads wait for each other
        for _ in range(SUBSETS):
            seen = scaled[:, random.choice(width, width // 4, replace=False)]
            for penalty in PENALTIES:
                candidate = RidgeClassifier(penalty).fit(seen[learned], classes[learned])
                accuracies.append([candidate.score(seen[part], classes[part]) for part in judged])
    return np.array(accuracies)


def measure_flattery(accuracies: np.ndarray, column: int) -> dict[str, np.ndarray]:
    """Returns what the choice by a column gives in each split.

    Args:
        accuracies: of ``judge_candidates``, by split: ``[splits, candidates, 3]``.
        column: by which the best is chosen.
    """
    best = accuracies[:, :, column].argmax(axis=1)
    chosen, mean = accuracies[np.arange(len(best)), best], accuracies.mean(axis=1)
    difference = chosen[:, 1] - chosen[:, 2]
    return {
        "eval": chosen[:, 1],
        "test": chosen[:, 2],
        "difference": difference,
        "by choice": difference - (mean[:, 1] - mean[:, 2]),
    }


def describe(values: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Returns mean and standard error over the draws; the splits of one draw go together."""
    means = {name: row.reshape(-1, PARTS).mean(axis=1) for name, row in values.items()}
    return {name: (float(row.mean()), float(row.std(ddof=1) / np.sqrt(len(row)))) for name, row in means.items()}


def format_points(mean: float, error: float) -> str:
    return f"{100 * mean:.2f} ± {100 * error:.2f}"


if __name__ == "__main__":
    main()
