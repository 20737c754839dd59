"""Ingest against a bare loop that reads, hashes and decodes each file once, with as many workers.

Both sides are whole programs, timed from start to exit: importing Beam counts. The images are distinct 320x240 JPEGs,
crops of scikit-learn's sample photos. The sides take turns, and the median counts. The same images in a tar are
ingested too, and held against the folder.

    python -m benchmarks.ingest [--images N] [--workers N] [--repeats N] [--json] [--record]
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.common import make_photo_crops, measure
from benchmarks.results import at_least, make_parser, report

MEASURES = ("imagepipe/base", "imagepipe/ingest")
GOAL, TAR_GOAL = 0.5, 0.95
SIDES = ("bare loop", "ingest", "ingest of a tar")
INGEST = (
    "import sys; from imagepipe.ingest.command import ingest; "
    "print(ingest(sys.argv[1], sys.argv[2], workers=int(sys.argv[3])))"
)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)  # the other side: this script, on a folder
    arguments = parser.parse_args()
    if arguments.bare:
        bare_loop(arguments.bare, arguments.workers)
        return

    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    memory: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:
        folder, archive = Path(temporary) / "images", Path(temporary) / "images.tar"
        for index, jpeg in enumerate(make_photo_crops(arguments.images)):
            path = folder / f"class-{index % 10}" / f"{index:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
        with tarfile.open(archive, "w") as tar:
            tar.add(folder, ".")
        workers = str(arguments.workers)
        for repeat in range(arguments.repeats):
            commands = {
                "bare loop": ["-m", "benchmarks.ingest", "--bare", str(folder), "--workers", workers],
                "ingest": ["-c", INGEST, str(folder), f"{temporary}/out-{repeat}", workers],
                "ingest of a tar": ["-c", INGEST, str(archive), f"{temporary}/out-{repeat}-tar", workers],
            }
            for side, command in commands.items():
                took, peak, _ = measure([sys.executable, *command])
                seconds[side].append(took)
                memory[side].append(peak / 2**20)

    rates = {side: arguments.images / statistics.median(took) for side, took in seconds.items()}
    ratio = rates["ingest"] / rates["bare loop"]
    tar_ratio = rates["ingest of a tar"] / rates["ingest"]
    report(
        arguments,
        "ingest",
        MEASURES,
        {
            "images": arguments.images,
            "workers": arguments.workers,
            "images_per_second": rates,
            "seconds": seconds,
            "peak_memory_mib": memory,
            "ratio": ratio,
            "goal": GOAL,
            "tar_ratio": tar_ratio,
            "tar_goal": TAR_GOAL,
        },
        ["", "images/s, start-up included", "peak MiB"],
        [[side, f"{rate:,.0f}", f"{max(memory[side]):,.0f}"] for side, rate in rates.items()],
        [
            at_least(
                f"{arguments.images:,} JPEGs of 320x240, images/s against a bare loop that reads, hashes and decodes",
                ratio,
                GOAL,
                f" ({rates['ingest']:,.0f} images/s; {max(memory['ingest']):,.0f} MiB against "
                f"{max(memory['bare loop']):,.0f})",
            ),
            at_least("The same in a tar, images/s against the folder", tar_ratio, TAR_GOAL),
        ],
    )


def bare_loop(folder: Path, workers: int) -> None:
    paths = sorted(folder.glob("*/*.jpg"))
    with multiprocessing.Pool(workers) as pool:
        hashes = set(pool.imap_unordered(read_hash_decode, paths, chunksize=16))
    if len(hashes) != len(paths):
        raise SystemExit(f"{len(hashes)} distinct images of {len(paths)}")


def read_hash_decode(path: Path) -> bytes:
    data = path.read_bytes()
    Image.open(io.BytesIO(data)).load()
    return hashlib.sha256(data).digest()


if __name__ == "__main__":
    main()
