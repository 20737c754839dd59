"""Wrong labels and copies that DataCheck finds by colours and hashes, and FeatureCheck through a pretrained network.

- labels: 12 of the photos of the first four classes get another class of these, ten times; how many of the 12 are among
  the first candidates
- copies: of each photo 3 % are cut off at each side; how many of the copies are found, and how many pairs are found
  among the photos themselves, of which a picture is drawn: look whether a person would call them copies

    python -m benchmarks.data_check FOLDER WEIGHTS [--pairs FILE.png] [--json] [--record]

FOLDER holds <split>/<class>/*.jpg; WEIGHTS is a file of MobileNetV2's weights.
"""

import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import Claim, make_parser, report

MEASURES = ("components/data_check", "components/feature_check", "trainer/features.py", "trainer/linear_probe.py")
SIDE, BATCH = 160, 32
CLASSES, FLIPPED, DRAWS = 4, 12, 10
FIRST, FIRST_BY_COLOURS = 24, 40  # candidates
MARGIN = 0.03
LABELS_GOAL, COPIES_GOAL, PAIRS_GOAL = 10.5, 95.0, 3


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--pairs", type=Path, help="picture of the pairs that are found among the photos themselves")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*/*/*.jpg"))
    if not files or not arguments.weights.exists():
        raise SystemExit(f"There are no photos in {arguments.folder}, or no file {arguments.weights}.")
    names = sorted({file.parent.name for file in files})
    classes = np.array([names.index(file.parent.name) for file in files])
    originals = [file.read_bytes() for file in files]
    everything = [*originals, *map(crop_margin, originals)]
    features = compute_features(everything, str(arguments.weights))

    from components.feature_check.check import predict_twice

    some = np.flatnonzero(classes < CLASSES)
    colours = count_among_first(describe_colours([originals[i] for i in some]), classes[some], FIRST_BY_COLOURS)
    seen = count_among_first(features[: len(files)][some], classes[some], FIRST, predict_twice)
    by_hash, by_features = find_pairs_by_hash(everything), find_pairs(everything, features)
    count = len(files)
    share = {
        name: 100 * sum((i, count + i) in pairs for i in range(count)) / count
        for name, pairs in {"by hash": by_hash, "by features": by_features}.items()
    }
    among = sorted(pair for pair in by_features if max(pair) < count)
    if arguments.pairs and among:
        draw_pairs([(originals[one], originals[other]) for one, other in among], arguments.pairs)
    report(
        arguments,
        "data_check",
        MEASURES,
        {
            "labels": {"colours": colours, "features": seen, "goal": LABELS_GOAL},
            "copies_percent": share | {"goal": COPIES_GOAL},
            "pairs_among_photos": {
                "files": [[str(files[i].relative_to(arguments.folder)) for i in pair] for pair in among],
                "goal": PAIRS_GOAL,
            },
        },
        ["", "wrong labels found", "copies found"],
        [
            [
                "DataCheck",
                f"{statistics.mean(colours):.1f} of {FLIPPED} among the first {FIRST_BY_COLOURS}",
                f"{share['by hash']:.0f} %",
            ],
            [
                "FeatureCheck",
                f"{statistics.mean(seen):.1f} of {FLIPPED} among the first {FIRST}",
                f"{share['by features']:.0f} %",
            ],
        ],
        [
            Claim(
                f"wrong labels among the first {FIRST} candidates, mean of {DRAWS} draws",
                f"{statistics.mean(seen):.1f} of {FLIPPED} ({', '.join(map(str, seen))})",
                f"at least {LABELS_GOAL}",
                statistics.mean(seen) >= LABELS_GOAL,
            ),
            Claim(
                f"copies found, cropped by {MARGIN:.0%} at each side",
                f"{share['by features']:.1f} %",
                f"at least {COPIES_GOAL:.0f} %",
                share["by features"] >= COPIES_GOAL,
            ),
            Claim(
                f"pairs among the {count} photos themselves",
                str(len(among)),
                f"at most {PAIRS_GOAL}",
                len(among) <= PAIRS_GOAL,
            ),
        ],
    )


def crop_margin(encoded: bytes) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as photo:
        left, top = round(photo.width * MARGIN), round(photo.height * MARGIN)
        cropped = photo.convert("RGB").crop((left, top, photo.width - left, photo.height - top))
    buffer = io.BytesIO()
    cropped.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def compute_features(images: Sequence[bytes], weights: str) -> np.ndarray:
    import tensorflow as tf

    from trainer.config import TrainerConfig
    from trainer.features import load_backbone
    from transform.images import decode_and_resize

    backbone = load_backbone(TrainerConfig(backbone="mobilenet_v2", weights=weights), (SIDE, SIDE))
    batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate(
        [
            backbone(decode_and_resize(tf.constant(batch), (SIDE, SIDE)), training=False).numpy().astype(np.float16)
            for batch in batches
        ]
    )


def describe_colours(images: Sequence[bytes]) -> np.ndarray:
    from components.data_check import label_errors
    from imagepipe.base.images import read_pixels

    return label_errors.compute_descriptors(np.stack([read_pixels(image, label_errors.SIDE) for image in images]))


def count_among_first(
    descriptors: np.ndarray, classes: np.ndarray, first: int, predict: Callable[..., np.ndarray] | None = None
) -> list[int]:
    """Returns how many of the wrong labels are among the first candidates, by draw."""
    from components.data_check import label_errors

    counts = []
    for draw in range(DRAWS):
        random = np.random.default_rng(draw)
        flipped = random.choice(len(classes), FLIPPED, replace=False)
        labels = classes.copy()
        labels[flipped] = (labels[flipped] + random.integers(1, CLASSES, FLIPPED)) % CLASSES
        probabilities = (predict or label_errors.predict_out_of_sample)(descriptors, labels, np.arange(len(labels)))
        candidates = label_errors.rank_candidates(probabilities, labels, first)
        counts.append(len({candidate.index for candidate in candidates} & set(flipped.tolist())))
    return counts


def make_thumbnails(images: Sequence[bytes]) -> dict[int, np.ndarray]:
    from PIL import Image

    from imagepipe.base import appearance
    from imagepipe.base.images import read_pixels

    pixels = (read_pixels(image, appearance.THUMBNAIL_SIDE) for image in images)
    thumbnails = (appearance.make_thumbnail(Image.fromarray(image)) for image in pixels)
    return {i: np.frombuffer(thumbnail, np.uint8) for i, thumbnail in enumerate(thumbnails)}


def find_pairs(images: Sequence[bytes], features: np.ndarray) -> set[tuple[int, int]]:
    from components.feature_check import neighbours

    pairs = neighbours.list_candidates(*neighbours.find_neighbours(features), len(images) ** 2)
    return set(neighbours.confirm_copies(make_thumbnails(images), pairs))


def find_pairs_by_hash(images: Sequence[bytes]) -> set[tuple[int, int]]:
    from components.data_check import near_duplicates
    from imagepipe.base import appearance

    thumbnails = make_thumbnails(images)
    measured = [appearance.measure_appearance(thumbnails[i].tobytes()) for i in range(len(images))]
    hashes = np.array([int(one.dhash, 16) for one in measured], np.uint64)
    pairs, _ = near_duplicates.match_hashes(hashes, np.arange(len(images)))
    one, other = (np.stack([thumbnails[i] for i in pairs[:, side]]) for side in (0, 1))
    return set(map(tuple, pairs[near_duplicates.compare_thumbnails(one, other)].tolist()))


def draw_pairs(pairs: Sequence[tuple[bytes, bytes]], path: Path) -> None:
    from PIL import Image

    sheet = Image.new("RGB", (2 * SIDE, len(pairs) * SIDE))
    for row, pair in enumerate(pairs):
        for column, encoded in enumerate(pair):
            with Image.open(io.BytesIO(encoded)) as photo:
                sheet.paste(photo.convert("RGB").resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
    sheet.save(path)


if __name__ == "__main__":
    main()
