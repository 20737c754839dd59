"""Peak memory of the Evaluator on photos at 299x299: our fixed batches against the batches that TFX lets grow.

The model is an InceptionV3 with random weights behind the transform graph, exported as the Trainer does, in float32.
Each side is a process of its own, on the same SavedModel and the same Examples (320x240 JPEGs, crops of scikit-learn's
sample photos).

    python -m benchmarks.evaluator [--images N] [--json] [--record]
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.common import build_inception_v3, export_model, measure
from benchmarks.results import Claim, make_parser, report

MEASURES = ("components/evaluator", "pipeline/eval_config.py")
SIDES = ("ours", "tfx")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", choices=["prepare", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side == "prepare":
        prepare(arguments.folder, arguments.images)
        os._exit(0)  # see transform_and_input
    if arguments.side:
        evaluate(arguments.folder, arguments.side)
        return

    seconds, memory = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.evaluator", "--folder", folder]
        measure([*command, "--side", "prepare", "--images", str(arguments.images)])
        for side in SIDES:
            seconds[side], peak, _ = measure([*command, "--side", side])
            memory[side] = peak / 2**20
    rates = {side: arguments.images / seconds[side] for side in SIDES}
    report(
        arguments,
        "evaluator",
        MEASURES,
        {
            "images": arguments.images,
            "images_per_second": rates,
            "peak_memory_mib": memory,
            "memory_ratio": memory["ours"] / memory["tfx"],
        },
        ["", "images/s, start-up included", "peak MiB"],
        [[side, f"{rates[side]:.1f}", f"{memory[side]:,.0f}"] for side in SIDES],
        [
            Claim(
                f"peak memory for {arguments.images:,} photos at 299 px, against TFX's growing batches",
                f"{memory['ours'] / memory['tfx']:.2f} ({memory['ours']:,.0f} MiB, {memory['tfx']:,.0f})",
            )
        ],
    )


def prepare(folder: Path, images: int) -> None:
    """Writes Examples as ImportExampleGen does, Transform's analysis of them, and a model."""
    import tensorflow as tf

    from benchmarks import transform_and_input

    transform_and_input.prepare(folder, images)
    split = folder / "examples" / "Split-eval"
    split.mkdir(parents=True)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(split / "data_tfrecord-00000-of-00001.gz"), options) as writer:
        records = tf.io.gfile.glob(str(folder / transform_and_input.RECORDS / "*"))
        for record in tf.data.TFRecordDataset(records).as_numpy_iterator():
            writer.write(record)
    export_model(build_inception_v3().served, folder / "transform", folder / "model" / "Format-Serving")


def evaluate(folder: Path, side: str) -> None:
    from tfx.components.evaluator import executor as tfx_executor
    from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
    from tfx.types import standard_artifacts
    from tfx.utils import proto_utils

    from components.evaluator.executor import Executor
    from imagepipe.base.features import Features
    from pipeline.config import BeamConfig, EvaluationConfig
    from pipeline.eval_config import build_eval_config

    examples, model, champion = standard_artifacts.Examples(), standard_artifacts.Model(), standard_artifacts.Model()
    examples.uri, model.uri, champion.uri = (str(folder / name) for name in ("examples", "model", "no-champion"))
    examples.split_names = '["eval"]'
    evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
    evaluation.uri, blessing.uri = str(folder / side / "evaluation"), str(folder / side / "blessing")
    inputs = {"examples": [examples], "model": [model]}
    if side == "ours":
        inputs["baseline_model"] = [champion]
    executor = Executor if side == "ours" else tfx_executor.Executor
    context = BaseBeamExecutor.Context(beam_pipeline_args=BeamConfig().make_arguments(), unique_id="0")
    executor(context).Do(
        inputs,
        {"evaluation": [evaluation], "blessing": [blessing]},
        {
            "eval_config": proto_utils.proto_to_json(
                build_eval_config("classification", EvaluationConfig(), Features())
            ),
            "example_splits": '["eval"]',
            "fairness_indicator_thresholds": "null",
        },
    )


if __name__ == "__main__":
    main()
