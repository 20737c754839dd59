"""The demo: scikit-learn's handwritten digits, from images to predictions of the pushed model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from imagepipe.base.errors import ModelError
from imagepipe.ingest import command as ingest_pipeline
from imagepipe.serving.request_files import read_requests
from imagepipe.serving.types import Failure
from pipeline.runs.summary import Summary
from pipeline.runs.summary import write_summary as write_summary

# Digits are 8 by 8 pixels of 17 grays.
_WHITE = 16
_SIDE = 80
_SHOWN = 40

_CONFIG = """\
# The demo's configuration: 1,797 handwritten digits, from scratch, as small as InceptionV3 goes.
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
class Example:
    """A held-out image: its id, its label, the predicted one and that one's probability."""

    id: str
    actual: str
    label: str
    score: float
    image: bytes


def write_images(root: Path) -> Path:
    """Writes the digits as PNG files into ``images/<digit>/``, enlarged so that a person can look at them."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder = root / "images"
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = Image.fromarray((pixels * (255 / _WHITE)).astype(np.uint8))
        gray.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path)
    return folder


def ingest(root: Path) -> ingest_pipeline.IngestResult:
    """Ingests the images into ``dataset/``."""
    return ingest_pipeline.ingest(str(root / "images"), str(root / "dataset"))


def write_config(root: Path) -> Path:
    """Writes ``pipeline.yaml``, unless it is there: it may have been edited."""
    path = root / "pipeline.yaml"
    if not path.exists():
        path.write_text(_CONFIG)
    return path


def predict_test_split(root: Path, summary: Summary) -> tuple[Path, float, list[Example]]:
    """Asks the pushed model about the test split, from its raw image bytes.

    Returns:
        A picture of some predictions, the accuracy on the whole split (which the run's summary now has too), and the
        predictions in the picture.
    """
    from imagepipe.serving.predictor import load

    predictor = load(Path(summary.serving_dir) / str(summary.pushed_version))
    files = sorted((root / "dataset" / "test").glob("*.tfrecord"))
    asked = [request for file in files for request in read_requests(file)]
    examples: list[Example] = []
    for request, answer in zip(asked, predictor.predict_requests(asked), strict=True):
        if isinstance(request, Failure) or isinstance(answer, Failure):
            raise ModelError(f"{root / 'dataset'} is damaged: {answer}")
        actual = answer.id.partition("/")[0]  # the id is the file's path, and its first folder the label
        examples.append(Example(answer.id, actual, answer.label, answer.score, request.image))
    accuracy = sum(e.label == e.actual for e in examples) / len(examples)
    summary.test_accuracy = accuracy
    write_summary(summary, root / "runs" / summary.run_id)
    picture = root / "predictions.png"
    shown = examples[:_SHOWN]
    _draw(shown, accuracy, len(examples), picture)
    return picture, accuracy, shown


def _draw(shown: list[Example], accuracy: float, count: int, path: Path) -> None:
    import io

    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    columns = 10
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.1, rows * 1.45), layout="constrained")
    for axis, example in zip(axes.flat, shown, strict=False):
        axis.imshow(Image.open(io.BytesIO(example.image)), cmap="gray")
        right = example.label == example.actual
        title = f"{example.label}  {example.score:.2f}" + ("" if right else f"\nis {example.actual}")
        axis.set_title(title, fontsize=9, color="black" if right else "red")
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(f"Test images, what the pushed model says, and its score ({accuracy:.1%} of {count} are right)")
    figure.savefig(path, dpi=110)
    plt.close(figure)
