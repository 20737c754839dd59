"""Common requests and health probes while a server is flooded: an InceptionV3 at 299x299, random weights, in bfloat16.

Some callers ask about a photo of 320x240 at a fixed pace, and a probe asks for the server's health, as Kubernetes does.
`benchmarks.traffic` floods the server from another process, on the same cores: bodies of 64 MiB at 1 Gbit/s, slow or
idle connections. Each flood comes after a while without any; the 99th percentile is compared with that of all these.

    python -m benchmarks.floods [--seconds N] [--json] [--record]
"""

import argparse
import base64
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median, quantiles
from subprocess import DEVNULL, Popen, run

import psutil

from benchmarks.common import build_inception_v3, export_model, make_photo_crops
from benchmarks.results import Claim, at_most, make_parser, report
from benchmarks.traffic import FLOODS

MEASURES = ("imagepipe/base", "imagepipe/serving", "trainer/export", "transform")
NAME = "bench"
NONE = "undisturbed"
CALLERS, PER_SECOND = 4, 10  # in all
PROBE_SECONDS = 0.1
PAUSE_SECONDS = 2  # for a flood to start, and for what it leaves to end
TIMEOUT_SECONDS = 30
GOALS = {"ratio": 2.0, "health, ms": 250.0}


@dataclass
class Phase:
    """Seconds that answers took, and how much memory the server had.

    Attributes:
        requests: of common requests.
        probes: of health probes.
        failures: common requests and probes that got no answer, or another than 200.
        peak_mib: of the server's resident memory.
    """

    requests: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    peak_mib: float = 0.0

    def p99(self) -> float:
        """Milliseconds in which 99% of the common requests were answered."""
        return 1000 * quantiles(self.requests, n=100, method="inclusive")[-1]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="of each flood, and half as many before it")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(arguments.prepare)
        os._exit(0)  # see transform_and_input
    from imagepipe.serving.check import run_server

    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "benchmarks.floods", "--prepare", folder], check=True, stdout=DEVNULL)  # noqa: S603
        with run_server(Path(folder) / "model", NAME, Path(folder) / "log") as url:
            phases = measure(url, arguments.seconds)
    calm = phases[NONE]
    ratios = {flood: phases[flood].p99() / calm.p99() for flood in FLOODS}
    probes = {flood: 1000 * max(phases[flood].probes) for flood in phases}
    report(
        arguments,
        "floods",
        MEASURES,
        {
            "p99_ms": {flood: phase.p99() for flood, phase in phases.items()},
            "ratios": ratios,
            "slowest_probe_ms": probes,
            "peak_memory_mib": {flood: phase.peak_mib for flood, phase in phases.items()},
            "failures": {flood: phase.failures for flood, phase in phases.items()},
            "goals": GOALS,
        },
        ["flood", "requests", "median ms", "p99 ms", "slowest probe ms", "failed", "peak MiB"],
        [
            [
                flood,
                str(len(phase.requests)),
                f"{1000 * median(phase.requests):.0f}",
                f"{phase.p99():.0f}",
                f"{probes[flood]:.0f}",
                str(len(phase.failures)),
                f"{phase.peak_mib:,.0f}",
            ]
            for flood, phase in phases.items()
        ],
        [
            at_most(
                f"99th percentile of common requests, flood of {flood} / undisturbed",
                ratio,
                GOALS["ratio"],
                f" ({phases[flood].p99():.0f} and {calm.p99():.0f} ms)",
            )
            for flood, ratio in ratios.items()
        ]
        + [
            at_most("slowest health probe under any flood, ms", max(probes[x] for x in FLOODS), GOALS["health, ms"]),
            at_most("common requests and probes that failed", sum(len(x.failures) for x in phases.values()), 0),
            Claim(
                "peak memory of the server, MiB",
                f"{max(phase.peak_mib for phase in phases.values()):,.0f}, undisturbed {calm.peak_mib:,.0f}",
            ),
        ],
    )


def prepare(folder: Path) -> None:
    """Writes the model."""
    from benchmarks import transform_and_input

    transform_and_input.prepare(folder, 10)
    export_model(build_inception_v3().served, folder / "transform", folder / "model", bfloat16=True)


def measure(url: str, seconds: float) -> dict[str, Phase]:
    """Returns what was measured under each flood, and in all the time without any."""
    phases = {NONE: Phase()} | {flood: Phase() for flood in FLOODS}
    observe(url, seconds / 2, Phase())  # warms
    for flood in FLOODS:
        observe(url, seconds / 2, phases[NONE])
        command = [sys.executable, "-m", "benchmarks.traffic", flood, url, NAME, str(seconds + PAUSE_SECONDS)]
        with Popen(command) as traffic:  # noqa: S603 (our own command)
            time.sleep(PAUSE_SECONDS)
            observe(url, seconds, phases[flood])
            traffic.wait()
        time.sleep(PAUSE_SECONDS)
    return phases


def observe(url: str, seconds: float, phase: Phase) -> None:
    """Asks for some seconds, and adds what comes to a phase."""
    body = json.dumps(
        {"instances": [{"input": {"b64": base64.b64encode(next(make_photo_crops(1))).decode()}}]}
    ).encode()
    end = time.monotonic() + seconds
    period = CALLERS / PER_SECOND

    def ask(method: str, path: str, content: bytes | None, times: list[float], every: float, first: float) -> None:
        http = HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT_SECONDS)
        due = time.monotonic() + first
        while due < end:
            time.sleep(max(0, due - time.monotonic()))
            start = time.perf_counter()
            try:
                http.request(method, path, content)
                answer = http.getresponse()
                text = answer.read()
                if answer.status != HTTPStatus.OK:
                    phase.failures.append(text.decode(errors="replace"))
            except (OSError, HTTPException) as error:
                phase.failures.append(repr(error))
                http.close()
            times.append(time.perf_counter() - start)
            due = max(due + every, time.monotonic())
        http.close()

    predict = f"/v1/models/{NAME}:predict"
    threads = [
        threading.Thread(target=ask, args=("POST", predict, body, phase.requests, period, number * period / CALLERS))
        for number in range(CALLERS)
    ]
    threads.append(
        threading.Thread(target=ask, args=("GET", "/v2/health/ready", None, phase.probes, PROBE_SECONDS, 0.0))
    )
    for thread in threads:
        thread.start()
    port = int(url.rpartition(":")[2])
    read_memory = find_server(port).memory_info
    while any(thread.is_alive() for thread in threads):
        phase.peak_mib = max(phase.peak_mib, read_memory().rss / 2**20)
        time.sleep(PROBE_SECONDS)


def find_server(port: int) -> psutil.Process:
    """Returns this process's child that listens on a port."""
    for child in psutil.Process().children():
        if any(socket.laddr.port == port and socket.status == psutil.CONN_LISTEN for socket in child.connections()):
            return child
    raise RuntimeError(f"no server listens on port {port}")


if __name__ == "__main__":
    main()
