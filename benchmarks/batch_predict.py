"""Batch prediction by engine, start-up included: small JPEGs, and mixed ones up to 14 megapixels.

- by hand: the recipe as people do it, a batch of 32 at a time: the run's Keras model behind `tf.map_fn`
- bare: a loop over decoding and the engine, a batch of 8 at a time, and nothing else; by OpenVINO and by TensorFlow
- ours: `imagepipe batch-predict`, which checks every file and writes JSON lines; by the same two

Each side is a process of its own. Of the mixed set each eighth image has 14 megapixels, the others 160x120 pixels. How
much of the time its network waits for images is measured in a process that has started: the share of the batches that
it could compute at once, of which there is none. The rates of the decoding alone and of the network alone, each with
all CPUs, say which of them is the limit.

    python -m benchmarks.batch_predict RUN [--images N] [--json] [--record]

RUN is the folder of a run (runs/RUN) with serving.engine: openvino, made as `benchmarks.serving` says.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib

from benchmarks.common import make_photo_crops, measure
from benchmarks.results import Claim, at_least, make_parser, report
from benchmarks.serving import ask_bare, ask_tensorflow, copy_without_form, find_network, find_version, make_recipe
from imagepipe.deploy.openvino_form import find_form

MEASURES = ("imagepipe/base", "imagepipe/deploy", "imagepipe/serving")
BATCH = 8
LOOPS = {
    "by hand": (make_recipe, 32),
    "bare, OpenVINO": (ask_bare, BATCH),
    "bare, TensorFlow": (ask_tensorflow, BATCH),
}
GOALS = {
    ("ours, OpenVINO", "by hand"): 3.3,
    ("ours, OpenVINO", "bare, OpenVINO"): 0.92,
    ("ours, TensorFlow", "bare, TensorFlow"): 0.9,
}
WAIT_GOAL = 0.15
LARGE, SMALL, EACH = (4592, 3056), (160, 120), 8
MIXED_SHARE = 5  # images in the mixed set: a fifth
NETWORK_BATCHES = 40


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", choices=[*LOOPS, "waits"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    version = find_version(arguments.run)
    if not (find_form(version) and find_network(version).is_file()):
        sys.exit(f"{version} has no form for OpenVINO, or no Keras model: give a run with serving.engine: openvino")
    if arguments.side == "waits":
        (arguments.folder.parent / "waits.json").write_text(
            json.dumps(measure_waits(version, arguments.folder)), encoding="utf-8"
        )
        return
    if arguments.side:
        loop(version, arguments.side, arguments.folder)
        return

    rates: dict[str, float] = {}
    memory: dict[str, float] = {}
    claims = []
    with tempfile.TemporaryDirectory() as temporary:
        versions = {"OpenVINO": version, "TensorFlow": copy_without_form(version, Path(temporary))}
        counts = {"small": arguments.images, "mixed": arguments.images // MIXED_SHARE}
        own = [sys.executable, "-m", "benchmarks.batch_predict", str(arguments.run)]
        for name, count in counts.items():
            folder = Path(temporary, name)
            write_images(folder, count, is_mixed=name == "mixed")
            commands = {side: [*own, "--side", side, "--folder", str(folder)] for side in LOOPS}
            for engine, asked in versions.items():
                ours = [sys.executable, "-m", "imagepipe", "batch-predict", str(asked), str(folder)]
                commands[f"ours, {engine}"] = [*ours, "--out", f"{folder}-{engine}"]
            for side, command in commands.items():
                usage = measure(command)
                rates[f"{side}, {name}"] = count / usage.seconds
                memory[f"{side}, {name}"] = usage.peak_anonymous / 2**20
            for (one, other), goal in GOALS.items():
                ratio = rates[f"{one}, {name}"] / rates[f"{other}, {name}"]
                what = f"{count:,} {name} JPEGs, start-up included, {one} / {other}"
                # Of the mixed ones it is the waiting that has a goal: they are few, and the start-up is half of it.
                claims.append(at_least(what, ratio, goal) if name == "small" else Claim(what, f"{ratio:.2f}"))
        measure([*own, "--side", "waits", "--folder", str(folder)])
        waits = json.loads((Path(temporary) / "waits.json").read_text(encoding="utf-8"))
    claims.append(claim_waits(**waits))
    report(
        arguments,
        "batch_predict",
        MEASURES,
        {"images": counts, "images_per_second": rates, "peak_anonymous_mib": memory, "waits": waits},
        ["", "images/s", "peak MiB, anonymous"],
        [[name, f"{rate:.1f}", f"{memory[name]:,.0f}"] for name, rate in rates.items()],
        claims,
    )


def claim_waits(waits: float, decoding: float, network: float, both: float) -> Claim:
    """Returns the claim about the mixed set, see ``measure_waits``."""
    shared = 1 / (1 / decoding + 1 / network)
    limit = "the decoding" if decoding < network else "the network"
    detail = (
        f"{waits:.2f}; images/s: decoding alone {decoding:.0f}, network alone {network:.0f}, so that {limit} is the "
        f"limit; both {both:.0f}, {both / shared:.2f} of what two that share the CPUs can reach"
    )
    goal = f"at most {WAIT_GOAL:g}, or the decoding is the limit"
    is_met = waits < WAIT_GOAL or decoding < network
    return Claim("share of the time that the network waits, mixed", detail, goal, is_met)


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
    """Asks about all images of a folder."""
    make, size = LOOPS[side]
    ask = make(version)
    paths = sorted(folder.iterdir())
    for first in range(0, len(paths), size):
        ask([path.read_bytes() for path in paths[first : first + size]])


def measure_waits(version: Path, folder: Path) -> dict[str, float]:
    """Returns the share of time that the network waits, and images/s: decoding and network alone, and both."""
    from imagepipe.serving.openvino_model import OpenVinoModel
    from imagepipe.serving.predictor import Predictor
    from imagepipe.serving.types import Request

    events: list[tuple[float, int]] = []  # when a batch came to the network or left it

    class Watched(OpenVinoModel):
        def answer(self, tensors: Any) -> Any:
            events.append((time.perf_counter(), 1))
            try:
                return super().answer(tensors)
            finally:
                events.append((time.perf_counter(), -1))

    model = Watched(version, load="many batches")
    predictor = Predictor(model)
    requests = [Request(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    batches = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
    decoded = model.preprocess(batches[0])
    model.answer(decoded)

    def measure_rate(do: Callable[[Any], Any], items: list[Any], threads: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(do, items))
        return len(items) * BATCH / (time.perf_counter() - start)

    decoding = measure_rate(lambda batch: len(model.preprocess(batch)), batches, joblib.cpu_count())
    network = measure_rate(model.answer, [decoded] * NETWORK_BATCHES, model.at_once)
    events.clear()
    start = time.perf_counter()
    count = sum(1 for _ in predictor.predict_requests(requests))
    seconds = time.perf_counter() - start
    waits = measure_waiting(sorted(events), start, start + seconds, model.at_once)
    return {"waits": waits, "decoding": decoding, "network": network, "both": count / seconds}


def measure_waiting(events: Iterable[tuple[float, int]], start: float, end: float, at_once: int) -> float:
    """Returns the share of the places for batches that were free, on average over the time."""
    free = 0.0
    inside, last = 0, start
    for moment, change in [*events, (end, 0)]:
        free += (moment - last) * max(at_once - inside, 0)
        inside, last = inside + change, moment
    return free / at_once / (end - start)


if __name__ == "__main__":
    main()
