"""Batch prediction against a bare loop over the graph: 320x240 JPEGs, an InceptionV3 at 299x299, start-up included.

- bare loop: reads files and asks the SavedModel, a batch at a time, at each of several batch sizes; the best counts
- ours: `imagepipe batch-predict`, by one process and by two, which checks every file and writes JSON lines

Each side is a process of its own; the bare loop's figure is of the loop alone.

    python -m benchmarks.batch_predict [--images N] [--json]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import export_model, measure, photo_crops, report

BATCHES = (8, 32, 64)
TRIED = 256  # images, to find the best batch
WORKERS = (1, 2)
GOAL = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--side", choices=["prepare", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        {"prepare": prepare, "bare": bare}[arguments.side](arguments.folder, arguments.images)
        os._exit(0)  # see transform_and_input

    rates: dict[str, float] = {}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        own = [
            sys.executable,
            "-m",
            "benchmarks.batch_predict",
            "--folder",
            temporary,
            "--images",
            str(arguments.images),
        ]
        measure([*own, "--side", "prepare"])
        memory["bare loop"] = measure([*own, "--side", "bare"]).peak / 2**20
        found = json.loads((folder / "bare.json").read_text())
        rates["bare loop"] = found["images_per_second"]
        for workers in WORKERS:
            name = f"ours, {workers} process{'es' if workers > 1 else ''}"
            command = [
                sys.executable,
                "-m",
                "pipeline.cli",
                "batch-predict",
                str(folder / "model"),
                str(folder / "images"),
            ]
            measured = measure([*command, "--out", str(folder / f"out-{workers}"), "--workers", str(workers)])
            rates[name] = arguments.images / measured.seconds
            memory[name] = measured.peak / 2**20
    ratios = {name: rate / rates["bare loop"] for name, rate in rates.items() if name != "bare loop"}
    report(
        arguments.json,
        {
            "benchmark": "batch_predict",
            "images": arguments.images,
            "best_batch": found["batch"],
            "images_per_second": rates,
            "peak_memory_mib": memory,
            "ratios": ratios,
            "goal": GOAL,
        },
        ["", "images/s", "peak MiB"],
        [[name, f"{rate:.1f}", f"{memory[name]:,.0f}"] for name, rate in rates.items()],
        [
            f"{name} / bare loop at batch {found['batch']}: {ratio:.2f} (goal: {GOAL:g})"
            for name, ratio in ratios.items()
        ],
    )


def prepare(folder: Path, images: int) -> None:
    from benchmarks import transform_and_input

    transform_and_input.prepare(folder, 10)
    export_model(folder / "transform", folder / "model")
    (folder / "images").mkdir()
    for number, jpeg in enumerate(photo_crops(images)):
        (folder / "images" / f"{number:05}.jpg").write_bytes(jpeg)


def bare(folder: Path, images: int) -> None:
    import tensorflow as tf

    serve = tf.saved_model.load(str(folder / "model")).signatures["serving_default"]
    paths = sorted((folder / "images").iterdir())

    def seconds(count: int, batch: int) -> float:
        begun = time.perf_counter()
        for first in range(0, count, batch):
            read = [path.read_bytes() for path in paths[first : min(first + batch, count)]]
            serve(input=tf.constant(read), metadata=tf.fill([len(read)], ""))["classes"].numpy()
        return time.perf_counter() - begun

    seconds(TRIED, BATCHES[0])
    best = min(BATCHES, key=lambda batch: seconds(TRIED, batch))
    rate = images / seconds(images, best)
    (folder / "bare.json").write_text(json.dumps({"batch": best, "images_per_second": rate}))


if __name__ == "__main__":
    main()
