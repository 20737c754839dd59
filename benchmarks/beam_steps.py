"""CPU time per image of TFX's steps on Beam that read all images: ImportExampleGen and StatisticsGen, on this machine.

Each is executed for two datasets of 320x240 JPEGs; what an image takes is the difference, so that start-up is no part.

    python -m benchmarks.beam_steps [--images N N] [--json] [--record]
"""

import os
import tempfile
from pathlib import Path

from benchmarks.common import make_photo_crops
from benchmarks.results import Claim, make_parser, report

MEASURES = ("components/example_gen", "pipeline/dag.py", "pipeline/local_runner.py")
STEPS = ("ImportExampleGen", "StatisticsGen")
CLASSES = 10


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, nargs=2, default=[1000, 5000], metavar="N")
    arguments = parser.parse_args()
    few, many = arguments.images
    with tempfile.TemporaryDirectory() as temporary:
        execute_steps(Path(temporary, "warm"), 100)  # imports
        small = execute_steps(Path(temporary, "small"), few)
        large = execute_steps(Path(temporary, "large"), many)
    milliseconds = {step: 1000 * (large[step] - small[step]) / (many - few) for step in STEPS}
    report(
        arguments,
        "beam_steps",
        MEASURES,
        {"images": arguments.images, "cpu_milliseconds_per_image": milliseconds},
        ["", "CPU ms per image"],
        [[step, f"{value:.2f}"] for step, value in milliseconds.items()],
        [Claim(f"CPU milliseconds per image, {step}", f"{value:.2f}") for step, value in milliseconds.items()],
    )


def execute_steps(folder: Path, count: int) -> dict[str, float]:
    """Makes a dataset, and returns the CPU seconds that each step takes with it."""
    from tfx.orchestration.metadata import sqlite_metadata_connection_config

    from imagepipe.ingest.command import ingest
    from pipeline.config_file import read_config
    from pipeline.dag import create_pipeline
    from pipeline.init import write_config
    from pipeline.local_runner import NodeError, NodeResult, run_nodes
    from pipeline.source import find_examples

    for number, jpeg in enumerate(make_photo_crops(count)):
        path = folder / "photos" / str(number % CLASSES) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    ingest(str(folder / "photos"), str(folder / "dataset"))
    write_config(str(folder / "dataset"), folder / "pipeline.yaml")
    config = read_config(folder / "pipeline.yaml")
    pipeline = create_pipeline(
        config,
        find_examples(config),
        pipeline_root=str(folder / "artifacts"),
        state_dir=str(folder / "training"),
        deploy=config.make_deployment(str(folder / "serving")),
        beam_args=config.beam.make_arguments(),
        metadata=sqlite_metadata_connection_config(str(folder / "metadata.db")),
    )
    seconds: dict[str, float] = {}
    start = 0.0

    def begin(_: str) -> None:
        nonlocal start
        start = sum(os.times()[:4])

    def end(node: NodeResult) -> None:
        seconds[node.id] = sum(os.times()[:4]) - start
        if node.id == STEPS[-1]:
            raise NodeError(node.id, "that is all")

    try:
        run_nodes(pipeline, "measured", (), begin, end)
    except NodeError:
        if not seconds.keys() >= set(STEPS):
            raise
    return seconds


if __name__ == "__main__":
    main()
