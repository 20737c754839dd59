"""The cost of a version in shadow for live answers: an InceptionV3 at 299x299 in bfloat16, photos of 320x240.

- alone: `imagepipe serve` with `--capture DIR --capture-rate 0.1`
- with a shadow: the same, with `--shadow VERSION`, a copy of the live one

Both are processes that take turns, in one run: those whose turn it is not are stopped, the shadow too. First callers
ask one after the other, which gives the images/s that the machine can answer; then images come at random moments
(a Poisson process), half as many in a second. A latency is from the moment at which the image came. What counts is the
median of the ratios within each turn, of the 99th percentiles.

    python -m benchmarks.shadow [--turns N] [--images N] [--rate SHARE] [--model VERSION] [--json] [--record]
"""

import contextlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median, quantiles
from urllib.request import urlopen

import psutil

from benchmarks.common import make_photo_crops, measure_in_turns
from benchmarks.engine_servers import Server, serving
from benchmarks.results import Claim, make_parser, report

MEASURES = ("imagepipe/base", "imagepipe/capture", "imagepipe/serving")
ALONE, SHADOWED = "alone", "with a shadow"
LIVE, SHADOW = "1", "2"
GOAL = 1.25
MIN_ANSWERED = 0.5
CALLERS, WAITING = 8, 64
LOAD = 0.5
READY_SECONDS = 600


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=600, help="that come in a turn")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the requests that the shadow is asked, too")
    parser.add_argument("--model", type=Path, help="a version to serve, in place of the InceptionV3")
    arguments = parser.parse_args()
    images = list(make_photo_crops(arguments.images))
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if not arguments.model:
            measure_in_turns([[sys.executable, "-m", "benchmarks.capture", "--prepare", name]])
        for version in (LIVE, f"shadow/{SHADOW}"):
            shutil.copytree(arguments.model or folder / "model", folder / "versions" / version)
        servers = {side: stack.enter_context(start(folder, side, arguments.rate, images)) for side in (ALONE, SHADOWED)}
        capacity = measure_capacity(servers[ALONE], images)
        p50: dict[str, list[float]] = {side: [] for side in servers}
        p99: dict[str, list[float]] = {side: [] for side in servers}
        with resumed(servers[SHADOWED]):
            outcomes_at_start = read_outcomes(servers[SHADOWED])
        for turn in range(arguments.turns):
            for side, server in servers.items():
                with resumed(server):
                    times = ask_at_random(server, images, LOAD * capacity, turn)
                p50[side].append(1000 * median(times))
                p99[side].append(1000 * quantiles(times, n=100, method="inclusive")[-1])
        with resumed(servers[SHADOWED]):
            outcomes_at_end = read_outcomes(servers[SHADOWED])
    outcomes = {name: count - outcomes_at_start.get(name, 0) for name, count in outcomes_at_end.items()}
    answered, drawn = outcomes.get("answered", 0), sum(outcomes.values())
    ratio = median(b / a for a, b in zip(p99[ALONE], p99[SHADOWED], strict=True))
    report(
        arguments,
        "shadow",
        MEASURES,
        {"images_per_second": capacity, "p50_ms": p50, "p99_ms": p99, "ratio": ratio, "shadow": outcomes, "goal": GOAL},
        ["ms, medians of the turns", "median", "99th percentile"],
        [[side, f"{median(p50[side]):.1f}", f"{median(p99[side]):.1f}"] for side in servers],
        [
            Claim(
                f"99th percentile at {LOAD:.0%} of {capacity:.0f} images/s, {SHADOWED} / {ALONE}",
                f"{ratio:.2f}",
                f"at most {GOAL:g}",
                ratio <= GOAL,
            ),
            # A shadow that answers nothing costs nothing.
            Claim(
                f"images that the shadow answered in these turns, of the {arguments.rate:.0%} that were drawn",
                ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.items()),
                f"at least {MIN_ANSWERED:.0%}",
                answered > 0 and answered >= MIN_ANSWERED * drawn,
            ),
        ],
    )


@contextlib.contextmanager
def start(folder: Path, side: str, rate: float, images: list[bytes]) -> Iterator[Server]:
    """Runs a server; yields it, stopped, once it is warm and its shadow answers."""
    options = ["--capture", str(folder / side), "--capture-rate", str(rate)]
    versions = folder / "versions"
    if side == SHADOWED:
        options += ["--shadow", SHADOW]
    with serving(versions if side == SHADOWED else versions / LIVE, *options) as server:
        deadline = time.monotonic() + READY_SECONDS
        ask_at_once(server, images[:CALLERS])
        while side == SHADOWED and not read_outcomes(server).get("answered"):
            if time.monotonic() > deadline:
                raise RuntimeError("the version in shadow does not answer")
            ask_at_once(server, images[:1])
            time.sleep(0.1)
        stop(server)
        try:
            yield server
        finally:
            resume(server)


def measure_capacity(server: Server, images: list[bytes]) -> float:
    """Returns the images/s that callers get, who ask one after the other."""
    with resumed(server):
        begin = time.perf_counter()
        ask_at_once(server, images)
        return len(images) / (time.perf_counter() - begin)


def ask_at_once(server: Server, images: list[bytes]) -> None:
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(server.ask, images))


def ask_at_random(server: Server, images: list[bytes], rate: float, seed: int) -> list[float]:
    """Returns the seconds from the moment at which each image came to its answer."""
    gaps = random.Random(seed)  # noqa: S311 (no secret)

    def ask(image: bytes, due: float) -> float:
        server.ask(image)
        return time.perf_counter() - due

    with ThreadPoolExecutor(WAITING) as pool:
        due, asked = time.perf_counter(), []
        for image in images:
            due += gaps.expovariate(rate)
            time.sleep(max(0, due - time.perf_counter()))
            asked.append(pool.submit(ask, image, due))
        return [future.result() for future in asked]


@contextlib.contextmanager
def resumed(server: Server) -> Iterator[None]:
    """Lets a server and its shadow run inside the block."""
    resume(server)
    try:
        yield
    finally:
        stop(server)


def resume(server: Server) -> None:
    for process in list_processes(server):
        process.resume()


def stop(server: Server) -> None:
    for process in list_processes(server):
        process.suspend()


def list_processes(server: Server) -> list[psutil.Process]:
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def read_outcomes(server: Server) -> dict[str, int]:
    """Returns the images for the shadow by what became of them."""
    with urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=120) as answer:
        text = answer.read().decode()
    counts = re.findall(r'imagepipe_shadow_images_total\{outcome="(\w+)",version="\d+"\} (\S+)', text)
    return {outcome: int(float(count)) for outcome, count in counts}


if __name__ == "__main__":
    main()
