"""Batch prediction by OpenVINO against loops by hand, start-up included: small JPEGs, and mixed ones up to 14 MP.

- by hand: the recipe as people do it, a batch of 32 at a time: the run's Keras model behind `tf.map_fn`
- bare: the version's form by OpenVINO behind our decoding, a batch of 8 at a time, and nothing else
- ours: `imagepipe batch-predict`, which checks every file and writes JSON lines

Each side is a process of its own. Of the mixed set each eighth image has 14 megapixels, the others 160x120 pixels; how
much of the time the network works there is told from its rate alone, on decoded images.

    python -m benchmarks.engine_batches RUN [--images N] [--json] [--record]

RUN is the folder of a run (runs/RUN) that was trained with serving.engine: openvino.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import make_photo_crops, measure
from benchmarks.engines import ask_bare, find_network, find_version, make_recipe
from benchmarks.results import Claim, at_least, make_parser, report
from imagepipe.deploy.openvino_form import find_form

MEASURES = ("imagepipe/base", "imagepipe/deploy", "imagepipe/serving")
SIDES = {"by hand": 32, "bare": 8}  # their batches
HAND_GOAL, BARE_GOAL, BUSY_GOAL = 3.3, 0.92, 0.85
LARGE, SMALL, EACH = (4592, 3056), (160, 120), 8
MIXED_SHARE = 10  # images in the mixed set: a tenth


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", choices=[*SIDES, "network"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    version = find_version(arguments.run)
    if not find_network(version).is_file():
        sys.exit(f"{version} has no Keras model beside it: give a run (runs/RUN)")
    if arguments.side:
        loop(version, arguments.side, arguments.folder)
        return

    rates: dict[str, float] = {}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        sets = {"small": Path(temporary, "small"), "mixed": Path(temporary, "mixed")}
        counts = {"small": arguments.images, "mixed": arguments.images // MIXED_SHARE}
        for name, folder in sets.items():
            write_images(folder, counts[name], is_mixed=name == "mixed")
            own = [sys.executable, "-m", "benchmarks.engine_batches", str(arguments.run), "--folder", str(folder)]
            commands = {side: [*own, "--side", side] for side in SIDES}
            ours = [sys.executable, "-m", "imagepipe", "batch-predict", str(version), str(folder)]
            commands["ours"] = [*ours, "--out", f"{folder}-out"]
            for side, command in commands.items():
                usage = measure(command)
                rates[f"{side}, {name}"] = counts[name] / usage.seconds
                memory[f"{side}, {name}"] = usage.peak_anonymous / 2**20
        measure([*own, "--side", "network"])
        alone = float((sets["mixed"].parent / "network").read_text())
    busy = rates["ours, mixed"] / alone
    claims = []
    for name in sets:
        for side, goal in {"by hand": HAND_GOAL, "bare": BARE_GOAL}.items():
            ratio = rates[f"ours, {name}"] / rates[f"{side}, {name}"]
            claims.append(at_least(f"{counts[name]:,} {name} JPEGs, start-up included, ours / {side}", ratio, goal))
    detail = f"{busy:.2f} ({rates['ours, mixed']:.1f} of {alone:.1f} images/s)"
    claims.append(Claim("share of the time that the network works on the mixed set", detail, f"at least {BUSY_GOAL:g}"))
    report(
        arguments,
        "engine_batches",
        MEASURES,
        {"images": counts, "images_per_second": rates, "peak_anonymous_mib": memory, "network_alone": alone},
        ["", "images/s", "peak MiB, anonymous"],
        [[name, f"{rate:.1f}", f"{memory[name]:,.0f}"] for name, rate in rates.items()],
        claims,
    )


def write_images(folder: Path, count: int, is_mixed: bool) -> None:
    from PIL import Image

    folder.mkdir()
    for number, jpeg in enumerate(make_photo_crops(count)):
        content = jpeg
        if is_mixed:
            buffer = io.BytesIO()
            size = SMALL if number % EACH else LARGE
            Image.open(io.BytesIO(jpeg)).resize(size).save(buffer, "JPEG", quality=85)
            content = buffer.getvalue()
        (folder / f"{number:05}.jpg").write_bytes(content)


def loop(version: Path, side: str, folder: Path) -> None:
    """Asks about all images of a folder; or measures the network alone, on images that are decoded."""
    paths = sorted(folder.iterdir())
    if side == "network":
        (folder.parent / "network").write_text(str(measure_network(version)))
        return
    ask = (make_recipe if side == "by hand" else ask_bare)(version)
    for first in range(0, len(paths), SIDES[side]):
        ask([path.read_bytes() for path in paths[first : first + SIDES[side]]])


def measure_network(version: Path) -> float:
    """Returns the images/s of the form, in batches of 8."""
    import tensorflow as tf

    from imagepipe.deploy.openvino_form import OpenVinoNetwork

    form = find_form(version) or version
    network = OpenVinoNetwork(form, {"PERFORMANCE_HINT": "LATENCY"})
    images = tf.constant(list(make_photo_crops(8)))
    inputs = {name: x.numpy() for name, x in tf.saved_model.load(str(form)).preprocess(input=images).items()}
    network(inputs)
    start = time.perf_counter()
    for _ in range(20):
        network(inputs)
    return 160 / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
