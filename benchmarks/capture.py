"""The cost of capture for a server: an InceptionV3 at 299x299 in bfloat16, random weights, photos of 320x240.

- off: `imagepipe serve`
- thumbnails of all: with `--capture DIR --capture-rate 1 --capture-images thumbnail`
- one in a hundred: with `--capture-rate 0.01`

All three are processes that take turns, in one run: those whose turn it isn't are stopped, also what they have still to
write. What counts is the median of the ratios within each turn, of eight callers' images/s. The memory is the process's
own, the most that it had at the end of a turn. `--model` serves a version in place of the InceptionV3, with the engine
that it was exported for.

    python -m benchmarks.capture [--turns N] [--images N] [--model VERSION] [--json] [--record]
"""

import argparse
import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from urllib.request import Request, urlopen

import psutil

from benchmarks.common import build_inception_v3, export_model, make_photo_crops, measure_in_turns
from benchmarks.results import Claim, make_parser, report
from imagepipe.deploy.openvino_form import find_form

MEASURES = ("imagepipe/base", "imagepipe/capture", "imagepipe/serving", "trainer/export", "transform")
OFF, ALL, FEW = "off", "thumbnails of all", "one in a hundred"
OPTIONS = {
    OFF: [],
    ALL: ["--capture-rate", "1", "--capture-images", "thumbnail"],
    FEW: ["--capture-rate", "0.01", "--capture-images", "thumbnail"],
}
GOALS = {ALL: 0.95, FEW: 0.99}
OPENVINO_GOALS = GOALS | {ALL: 0.92}  # of a faster answer the same cost is a larger share
MAX_MIB = 100
CALLERS = 8
START_SECONDS = 300


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--images", type=int, default=256, help="that are asked about in a turn")
    parser.add_argument("--model", type=Path, help="a version to serve, in place of the InceptionV3")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare)
        os._exit(0)  # see transform_and_input
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if not arguments.model:
            measure_in_turns([[sys.executable, "-m", "benchmarks.capture", "--prepare", name]])
        model = arguments.model or folder / "model"
        goals = OPENVINO_GOALS if find_form(model) else GOALS
        servers = {side: stack.enter_context(serving(model, folder, side)) for side in OPTIONS}
        bodies = [
            json.dumps({"instances": [{"input": {"b64": base64.b64encode(jpeg).decode()}}]}).encode()
            for jpeg in make_photo_crops(arguments.images)
        ]
        rates: dict[str, list[float]] = {side: [] for side in OPTIONS}
        memory = dict.fromkeys(OPTIONS, 0.0)
        for turn in range(arguments.turns + 1):
            for side, (process, url) in servers.items():
                process.resume()
                rate = measure(url, bodies)
                process.suspend()
                memory[side] = max(memory[side], process.memory_full_info().uss / 2**20)
                if turn:  # the first warms
                    rates[side].append(rate)
        captured = {}
        for side, (process, url) in servers.items():
            process.resume()
            captured[side] = read_captured(url)
    ratios = {side: median(a / b for a, b in zip(rates[side], rates[OFF], strict=True)) for side in goals}
    report(
        arguments,
        "capture",
        MEASURES,
        {"images_per_second": rates, "ratios": ratios, "memory_mib": memory, "captured": captured, "goals": goals},
        ["images/s", "median", "own MiB", "captured so far"],
        [[side, f"{median(rates[side]):.1f}", f"{memory[side]:,.0f}", str(captured[side])] for side in OPTIONS],
        [
            Claim(f"images/s, {side} / {OFF}", f"{ratios[side]:.3f}", f"at least {goal:g}", ratios[side] >= goal)
            for side, goal in goals.items()
        ]
        + [
            Claim(
                f"memory, {ALL} - {OFF}, MiB",
                f"{memory[ALL] - memory[OFF]:,.0f}",
                f"at most {MAX_MIB}",
                memory[ALL] - memory[OFF] <= MAX_MIB,
            )
        ],
    )


def prepare(folder: Path) -> None:
    """Writes the model."""
    from benchmarks import transform_and_input

    transform_and_input.prepare(folder, 10)
    export_model(build_inception_v3().served, folder / "transform", folder / "model", bfloat16=True)


@contextlib.contextmanager
def serving(model: Path, folder: Path, side: str) -> Iterator[tuple[psutil.Process, str]]:
    """Runs a server of a model; yields the process, stopped once it listens, and its URL."""
    log = folder / f"{side}.log"
    capture = ["--capture", str(folder / "traffic" / side)] if OPTIONS[side] else []
    command = [sys.executable, "-m", "imagepipe", "serve", str(model), "--name", "bench", "--port", "0"]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen([*command, *capture, *OPTIONS[side]], stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (port := re.search(r'"listening on .*"port": (\d+)', log.read_text(encoding="utf-8"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(encoding="utf-8"))
            time.sleep(0.2)
        running = psutil.Process(process.pid)
        running.suspend()
        yield running, f"http://127.0.0.1:{port[1]}"
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def measure(url: str, bodies: list[bytes]) -> float:
    """Returns the images/s that callers get."""
    start = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(lambda body: ask(f"{url}/v1/models/bench:predict", body), bodies))
    return len(bodies) / (time.perf_counter() - start)


def ask(url: str, body: bytes | None = None) -> bytes:
    with urlopen(Request(url, body), timeout=120) as answer:  # noqa: S310 (this machine)
        return bytes(answer.read())


def read_captured(url: str) -> dict[str, int]:
    """Returns the captured images by what became of them."""
    counts = re.findall(r'imagepipe_captured_images_total\{outcome="(\w+)"\} (\S+)', ask(f"{url}/metrics").decode())
    return {outcome: int(float(count)) for outcome, count in counts}


if __name__ == "__main__":
    main()
