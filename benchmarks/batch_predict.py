"""Batch prediction against a bare loop over the graph: 320x240 JPEGs, an InceptionV3 at 299x299, start-up included.

- bare loop: reads files and asks the SavedModel, a batch at a time, at that of several batch sizes that is best
- ours: `imagepipe batch-predict`, by one process and by two, which checks every file and writes JSON lines

Each side is a process of its own, and the graph one as the Trainer would make it on this machine.

    python -m benchmarks.batch_predict [--images N] [--json] [--record]
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import build_inception_v3, export_model, make_photo_crops, measure
from benchmarks.results import at_least, make_parser, report

MEASURES = ("imagepipe/base", "imagepipe/serving")
BATCHES = (8, 32, 64)
TRIED = 256  # images, to find the best batch
WORKERS = (1, 2)
GOAL = 0.9


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", choices=["prepare", "best", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        {"prepare": prepare, "best": best, "bare": bare}[arguments.side](arguments.folder, arguments.images)
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
        measure([*own, "--side", "best"])
        usage = measure([*own, "--side", "bare"])
        rates["bare loop"] = arguments.images / usage.seconds
        memory["bare loop"] = usage.peak / 2**20
        batch = int((folder / "batch").read_text())
        for workers in WORKERS:
            name = f"ours, {workers} process{'es' if workers > 1 else ''}"
            command = [
                sys.executable,
                "-m",
                "imagepipe",
                "batch-predict",
                str(folder / "model"),
                str(folder / "images"),
            ]
            usage = measure([*command, "--out", str(folder / f"out-{workers}"), "--workers", str(workers)])
            rates[name] = arguments.images / usage.seconds
            memory[name] = usage.peak / 2**20
    ratios = {name: rate / rates["bare loop"] for name, rate in rates.items() if name != "bare loop"}
    report(
        arguments,
        "batch_predict",
        MEASURES,
        {
            "images": arguments.images,
            "best_batch": batch,
            "images_per_second": rates,
            "peak_memory_mib": memory,
            "ratios": ratios,
            "goal": GOAL,
        },
        ["", "images/s", "peak MiB"],
        [[name, f"{rate:.1f}", f"{memory[name]:,.0f}"] for name, rate in rates.items()],
        [
            at_least(
                f"{arguments.images:,} JPEGs, start-up included, {name}, against a bare loop at batch {batch}",
                ratio,
                GOAL,
                f" ({rates[name]:.0f} images/s; {memory[name]:,.0f} MiB against {memory['bare loop']:,.0f})",
            )
            for name, ratio in ratios.items()
        ],
    )


def prepare(folder: Path, images: int) -> None:
    from benchmarks import transform_and_input
    from trainer.devices import choose_precision

    transform_and_input.prepare(folder, 10)
    bfloat16 = choose_precision("auto") == "mixed_bfloat16"
    export_model(build_inception_v3().served, folder / "transform", folder / "model", bfloat16)
    (folder / "images").mkdir()
    for number, jpeg in enumerate(make_photo_crops(images)):
        (folder / "images" / f"{number:05}.jpg").write_bytes(jpeg)


def best(folder: Path, images: int) -> None:
    """Finds the bare loop's batch size."""
    ask = loop(folder)
    ask(TRIED, BATCHES[0])
    seconds = {}
    for batch in BATCHES:
        start = time.perf_counter()
        ask(TRIED, batch)
        seconds[batch] = time.perf_counter() - start
    (folder / "batch").write_text(str(min(seconds, key=lambda batch: seconds[batch])))


def bare(folder: Path, images: int) -> None:
    loop(folder)(images, int((folder / "batch").read_text()))


def loop(folder: Path) -> Callable[[int, int], None]:
    """Loads the graph; what comes back asks it about so many images, in batches of so many."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(folder / "model")).signatures["serving_default"]
    paths = sorted((folder / "images").iterdir())

    def ask(count: int, batch: int) -> None:
        for first in range(0, count, batch):
            read = [path.read_bytes() for path in paths[first : min(first + batch, count)]]
            serve(input=tf.constant(read), metadata=tf.fill([len(read)], ""))["classes"].numpy()

    return ask


if __name__ == "__main__":
    main()
