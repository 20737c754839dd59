"""The report of 10,000 predictions, made anew: seconds and peak memory, imports included, and the size of the page.

Photos of ten classes, a model at 224x224 that gives each image scores that were drawn at random, so that all of the
page is full, and beside it InceptionV3 for the heat maps. The Evaluator and Predictions are the pipeline's own.

    python -m benchmarks.report [--images N] [--json] [--record]
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import evaluator
from benchmarks.common import make_photo_crops, measure
from benchmarks.results import Claim, make_parser, report

MEASURES = ("components/model_report", "components/evaluator", "pipeline/runs/report_page.py")
SIZE = (224, 224)
GOALS = {"seconds": 20.0, "peak_memory_mib": 1024.0, "page_mib": 5.0}
_NAMES = [f"class-{i}" for i in range(10)]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", choices=["prepare", "evaluate", "page"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "prepare":
        prepare(arguments.folder, arguments.images)
    elif arguments.side == "evaluate":
        evaluator.evaluate(arguments.folder, "ours")
        os._exit(0)  # see transform_and_input
    elif arguments.side == "page":
        make_page(arguments.folder)
    if arguments.side:
        return

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.report", "--folder", folder]
        measure([*command, "--side", "prepare", "--images", str(arguments.images)])
        measure([*command, "--side", "evaluate"])
        taken = measure([*command, "--side", "page"])
        size = (Path(folder) / "report.html").stat().st_size
    figures = {"seconds": taken.seconds, "peak_memory_mib": taken.peak / 2**20, "page_mib": size / 2**20}
    report(
        arguments,
        "report",
        MEASURES,
        {"images": arguments.images, "goals": GOALS} | figures,
        ["", "measured", "goal: below"],
        [[name.replace("_", " "), f"{value:,.1f}", f"{GOALS[name]:,g}"] for name, value in figures.items()],
        [
            Claim(
                f"the page of {arguments.images:,} predictions, {name.replace('_', ' ')}",
                f"{value:,.1f}",
                f"below {GOALS[name]:,g}",
                value < GOALS[name],
            )
            for name, value in figures.items()
        ],
    )


def prepare(folder: Path, images: int) -> None:
    """Writes Examples, models, and what Predictions says of the Examples."""
    import numpy as np
    import tensorflow as tf

    from components.predictions.row_writer import write_predictions
    from imagepipe.base.features import Features

    rng = np.random.default_rng(0)
    split = folder / "examples" / "Split-eval"
    split.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(split / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for number, image in enumerate(make_photo_crops(images)):
            example = tf.train.Example()
            feature = example.features.feature
            feature["input"].bytes_list.value.append(image)
            feature["label"].bytes_list.value.append(_NAMES[rng.integers(10)].encode())
            feature["metadata"].bytes_list.value.append(b"%d.jpg" % number)
            feature["scores"].float_list.value.extend(rng.dirichlet(np.full(10, 0.3)))
            writer.write(example.SerializeToString())
    _models(folder / "model")
    write_predictions(str(split), folder / "model" / "Format-Serving", None, Features(), folder / "predictions")


def _models(folder: Path) -> None:
    import tensorflow as tf

    from imagepipe.base.features import IMAGE, TARGET
    from imagepipe.base.names import TRAINING_FOLDER
    from trainer.config import TrainerConfig
    from trainer.network import build_network
    from trainer.tasks import make_classification
    from transform.images import decode_and_resize

    built = build_network(SIZE, make_classification(10), {}, TrainerConfig(weights="none"))
    (folder / TRAINING_FOLDER).mkdir(parents=True)
    built.model.save(folder / TRAINING_FOLDER / "model.keras")
    assets = {"labels": "\n".join(_NAMES), "task": "classification"}
    for name, text in assets.items():
        (folder / name).write_text(f"{text}\n", encoding="utf-8")

    class Drawn(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names = tf.constant(_NAMES)
            self.assets = [tf.saved_model.Asset(str(folder / name)) for name in assets]

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def transform_features(self, examples: Any) -> dict[str, Any]:
            spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("input", "label")}
            parsed = tf.io.parse_example(examples, spec)
            target = tf.argmax(parsed["label"][:, None] == self.names[None], axis=1)
            return {IMAGE: decode_and_resize(parsed["input"], SIZE), TARGET: target}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def tf_examples(self, examples: Any) -> dict[str, Any]:
            scores = tf.io.parse_example(examples, {"scores": tf.io.FixedLenFeature([10], tf.float32)})["scores"]
            label, score = tf.gather(self.names, tf.argmax(scores, axis=1)), tf.reduce_max(scores, axis=1)
            return {"classes": scores, "label": label, "score": score}

    module = Drawn()
    signatures = {"transform_features": module.transform_features, "tf_examples": module.tf_examples}
    tf.saved_model.save(module, str(folder / "Format-Serving"), signatures=signatures)


def make_page(folder: Path) -> None:
    """Makes the page as `imagepipe report` does."""
    from imagepipe.base.features import Features
    from imagepipe.serving.types import CheckReport
    from pipeline.runs.report_page import render_page

    html = render_page(
        str(folder / "ours" / "evaluation"),
        predictions=folder / "predictions",
        splits={"eval": str(folder / "examples" / "Split-eval")},
        model=folder / "model" / "Format-Serving",
        findings=None,
        serving=CheckReport([], median_ms=1.0, p95_ms=2.0),
        features=Features(),
        name="benchmark",
        config={},
    )
    (folder / "report.html").write_text(html, encoding="utf-8")


if __name__ == "__main__":
    main()
