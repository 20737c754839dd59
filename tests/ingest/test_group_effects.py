"""The eval split, if split by group, says how well a model does on groups that it has not seen."""

import io
from pathlib import Path

import numpy as np
import pytest
from apache_beam.transforms.combiners import MeanCombineFn
from PIL import Image

from components.evaluator.intervals import compute_interval, compute_standard_error, count_degrees_of_freedom
from components.evaluator.leave_one_out import LeaveOneOutFn
from imagepipe.base import tfrecord
from imagepipe.ingest.command import ingest
from imagepipe.ingest.dataset import load

SIDE = 8
SPLITS = {"train": 6, "eval": 4}


def draw_photos(rng: np.random.Generator, groups: int) -> list[tuple[str, str, np.ndarray]]:
    """Draws (class, group, uint8 ``[8, 8, 3]``): photos show their group clearly, and their class hardly."""
    patterns = {"ill": rng.normal(0, 1, (SIDE, SIDE, 3)), "well": rng.normal(0, 1, (SIDE, SIDE, 3))}
    photos = []
    for number in range(groups):
        name = "ill" if number % 2 else "well"
        look = 7 * patterns[name] + rng.normal(0, 40, (SIDE, SIDE, 3))
        for _ in range(6):
            pixels = 128 + look + rng.normal(0, 10, (SIDE, SIDE, 3))
            photos.append((name, f"patient{number:03d}", pixels.clip(0, 255).astype(np.uint8)))
    return photos


def read_split(folder: Path, name: str) -> tuple[np.ndarray, list[str], list[str]]:
    """Returns pixels ``[n, p]``, labels and paths of a split."""
    examples = []
    for shard in load(str(folder)).splits[name].shards:
        with (folder / shard.file).open("rb") as file:
            examples += [tfrecord.decode_example(record) for record in tfrecord.read_records(file)]
    pixels = [np.asarray(Image.open(io.BytesIO(example["input"][0])), float).ravel() for example in examples]
    labels, paths = ([example[name][0].decode() for example in examples] for name in ("label", "metadata"))
    return np.array(pixels), labels, paths


def classify(train: tuple[np.ndarray, list[str]], pixels: np.ndarray) -> np.ndarray:
    """Returns the labels of the nearest neighbours."""
    distances = np.square(pixels[:, None] - train[0][None]).sum(axis=2)
    return np.array(train[1])[distances.argmin(axis=1)]


def find_interval(right: np.ndarray, groups: list[str]) -> tuple[float, float]:
    combiner = LeaveOneOutFn(MeanCombineFn())
    parts = combiner.create_accumulator()
    for one, group in zip(right.tolist(), groups, strict=True):
        parts = combiner.add_input(parts, (int(group.removeprefix("patient")), one))
    combined = combiner.extract_output(parts)
    error, degrees = compute_standard_error(combined.without), count_degrees_of_freedom(combined.sizes)
    return compute_interval(combined.total, error, degrees, 0, 1)


@pytest.mark.slow
def test_accuracy_on_groups_that_are_split_off_is_that_on_new_ones_and_by_image_it_is_far_too_high(tmp_path):
    photos = draw_photos(np.random.default_rng(0), 500)
    collected, new = photos[: 6 * 200], photos[6 * 200 :]
    for number, (label, group, pixels) in enumerate(collected):
        path = tmp_path / "photos" / label / f"{group}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    new_pixels, new_labels = np.array([pixels.ravel() for _, _, pixels in new], float), [label for label, _, _ in new]

    def measure(folder: Path) -> tuple[np.ndarray, float, list[str], set[str]]:
        """Returns which images of the eval split are right, the accuracy on new groups, and both splits' groups."""
        train, held_out = read_split(folder, "train"), read_split(folder, "eval")
        right = classify(train[:2], held_out[0]) == held_out[1]
        on_new = (classify(train[:2], new_pixels) == new_labels).mean()
        train_groups, groups = ([Path(path).name.partition("-")[0] for path in split[2]] for split in (train, held_out))
        return right, on_new, groups, set(train_groups)

    ingest(tmp_path / "photos", tmp_path / "by_group", splits=SPLITS, group=r"(patient\d+)")
    right, on_new, groups, train_groups = measure(tmp_path / "by_group")
    assert not train_groups & set(groups)
    low, high = find_interval(right, groups)
    assert low < on_new < high
    assert high - low < 0.3

    ingest(tmp_path / "photos", tmp_path / "by_image", splits=SPLITS)
    right, on_new, groups, train_groups = measure(tmp_path / "by_image")
    assert train_groups & set(groups)
    assert right.mean() > on_new + 0.1
