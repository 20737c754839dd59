"""Seconds until the library is imported, and until the command line has shown its help: nothing heavy may be loaded.

Each is a process of its own, timed from start to exit; a bare Python that imports nothing is the baseline.

    python -m benchmarks.startup [--repeats N] [--json] [--record]
"""

import statistics
import subprocess
import sys
import time

from benchmarks.results import Claim, make_parser, report

MEASURES = ("imagepipe/__init__.py", "pipeline/cli")
COMMANDS = {
    "python": ["-c", "pass"],
    "import imagepipe": ["-c", "import imagepipe"],
    "imagepipe --help": ["-m", "imagepipe", "--help"],
}
GOALS = {"import imagepipe": 0.3, "imagepipe --help": 0.5}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.repeats):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    report(
        arguments,
        "startup",
        MEASURES,
        {"seconds": seconds, "goals": GOALS},
        ["", "seconds, median", "slowest"],
        [[name, f"{median[name]:.2f}", f"{max(seconds[name]):.2f}"] for name in COMMANDS],
        [
            Claim(
                f"seconds of `{name}`, median of {arguments.repeats}; a bare Python takes {median['python']:.2f}",
                f"{median[name]:.2f}",
                f"at most {goal:g}",
                median[name] <= goal,
            )
            for name, goal in GOALS.items()
        ],
    )


if __name__ == "__main__":
    main()
