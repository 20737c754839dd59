"""The steps of `imagepipe demo`: scikit-learn's handwritten digits, from images to predictions of the pushed model."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imagepipe.base.errors import ModelError
from imagepipe.ingest.command import IngestResult, ingest
from imagepipe.serving.request_files import read_requests
from imagepipe.serving.types import Failure
from pipeline.runs.summary import Summary, write_summary

_WHITE = 16  # digits are 8 by 8 pixels of 17 grays
_SIDE = 80
_COLUMNS, _ROWS = 10, 4  # of the picture

_CONFIG = """\
# The demo's configuration: 1,797 handwritten digits, trained from scratch, as small as InceptionV3 goes.
name: digits
data:
  path: dataset
image:
  size: [75, 75]
trainer:
  weights: none
  epochs: 10
  batch_size: 64
  augmentation:
    horizontal_flip: false    # a mirrored 2 is no 2
evaluation:
  thresholds:
    accuracy: 0.95
"""


@dataclass(frozen=True)
class TestedImage:
    """An image of the test split: its id, its actual label, the predicted one, and the probability of that."""

    id: str
    actual: str
    label: str
    score: float
    image: bytes


def write_images(root: Path) -> Path:
    """Writes the digits as PNG files into ``images/<digit>/``, enlarged so that people can look at them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder = root / "images"
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = Image.fromarray((pixels * (255 / _WHITE)).astype(np.uint8))
        gray.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path)
    return folder


def ingest_images(root: Path) -> IngestResult:
    """Ingests the images into ``dataset/``."""
    return ingest(str(root / "images"), str(root / "dataset"))


def write_config(root: Path) -> Path:
    """Writes ``pipeline.yaml`` unless it exists: it may have been edited."""
    path = root / "pipeline.yaml"
    if not path.exists():
        path.write_text(_CONFIG, encoding="utf-8")
    return path


def predict_test_split(root: Path, summary: Summary) -> tuple[Path, float, list[TestedImage]]:
    """Asks the pushed model about the raw images of the test split, and adds the accuracy to the run's summary.

    Returns:
        A picture of some predictions, the accuracy on the whole split, and the images in the picture.
    """
    from imagepipe.serving.predictor import load

    predictor = load(Path(summary.serving_dir) / str(summary.pushed_version))
    files = sorted((root / "dataset" / "test").glob("*.tfrecord"))
    requests = [request for file in files for request in read_requests(file)]
    tested: list[TestedImage] = []
    for request, answer in zip(requests, predictor.predict_requests(requests), strict=True):
        if isinstance(request, Failure) or isinstance(answer, Failure):
            raise ModelError(f"{root / 'dataset'} is damaged: {answer}")
        actual = answer.id.partition("/")[0]  # the id is the file's path, and its first folder the label
        tested.append(TestedImage(answer.id, actual, answer.label, answer.score, request.image))
    accuracy = sum(image.label == image.actual for image in tested) / len(tested)
    summary.test_accuracy = accuracy
    write_summary(summary, root / "runs" / summary.run_id)
    picture = root / "predictions.png"
    drawn = tested[: _COLUMNS * _ROWS]
    _draw(drawn, f"{accuracy:.1%} of {len(tested)}", picture)
    return picture, accuracy, drawn


def _draw(images: list[TestedImage], result: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = -(-len(images) // _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(_COLUMNS * 1.1, rows * 1.45), layout="constrained")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(Image.open(io.BytesIO(image.image)), cmap="gray")
        is_right = image.label == image.actual
        title = f"{image.label}  {image.score:.2f}" + ("" if is_right else f"\nis {image.actual}")
        axis.set_title(title, fontsize=9, color="black" if is_right else "red")
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(f"Test images with the pushed model's prediction and its probability ({result} are right)")
    figure.savefig(path, dpi=110)
    plt.close(figure)
