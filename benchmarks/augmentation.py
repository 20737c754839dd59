"""Images a second that tf.data gives to training: as they are, with the default augmentation, with everything on.

Random uint8 images in memory, in batches of 32; the median of several passes, after one that compiles.

    python -m benchmarks.augmentation [--images N] [--repeats N] [--json] [--record]
"""

import statistics
import time

import numpy as np
import tensorflow as tf

from benchmarks.results import Claim, make_parser, report
from trainer.augmentation import make_augmentation
from trainer.config import AugmentationConfig
from transform.examples import CORES, disable_tuner

MEASURES = ("trainer/augmentation.py",)
BATCH = 32
SIDES = (96, 299)
DEFAULT = AugmentationConfig()
OFF = AugmentationConfig(horizontal_flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0)
EVERYTHING = AugmentationConfig(vertical_flip=True, blur_sigma=2, rand_augment=0.5, mixup=0.2, cutmix=1)
RECIPES = {"none": OFF, "default": DEFAULT, "everything": EVERYTHING}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    rates = {
        name: {side: images_per_second(config, side, arguments.images, arguments.repeats) for side in SIDES}
        for name, config in RECIPES.items()
    }
    report(
        arguments,
        "augmentation",
        MEASURES,
        {
            "images": arguments.images,
            "batch": BATCH,
            "cores": CORES,
            "images_per_second": rates,
        },
        ["augmentation", *(f"images/s at {side} px" for side in SIDES)],
        [[name, *(f"{rate:,.0f}" for rate in by_side.values())] for name, by_side in rates.items()],
        [
            Claim(
                f"augmentation {name}",
                ", ".join(f"{rate:,.0f} images/s at {side} px" for side, rate in by_side.items()),
            )
            for name, by_side in rates.items()
        ],
    )


def images_per_second(config: AugmentationConfig, side: int, count: int, repeats: int) -> float:
    batches = count // BATCH
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (BATCH, side, side, 3), np.uint8))
    target = tf.one_hot(rng.integers(0, 5, BATCH), 5)
    change = make_augmentation(config)
    dataset = (
        disable_tuner(tf.data.Dataset.range(batches))
        .map(
            lambda number: change(images, target, tf.stack([0, tf.cast(number, tf.int32)])),
            num_parallel_calls=CORES,
            deterministic=True,
        )
        .prefetch(2)
    )
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        for _batch in dataset:
            pass
        seconds.append(time.perf_counter() - start)
    return batches * BATCH / statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
