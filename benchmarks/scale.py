"""A billion images on paper: core-hours, storage and money of each stage, from the rates that were recorded.

    python -m benchmarks.scale

The same tables are on the page docs/scale.md: they are made when the documentation is built.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import results

COUNTS = (10**6, 10**8, 10**9)
SAMPLE = 10**6
"""Maximum number of images to train on."""

# Assumptions, to be replaced by the reader's own: docs/scale.md says where they are from.
DOLLARS_PER_CORE_HOUR = 0.3885 / 8
DOLLARS_PER_GB_MONTH = 0.020
DOLLARS_PER_REQUEST = 0.0004 / 1000
BYTES_PER_IMAGE = 20_500
"""A JPEG of 320x240, as the rates are of."""

BYTES_PER_ENTRY = 200
"""A line of a dataset's index."""

TRAINED_IMAGES = 450
"""Images that benchmarks.transfer trains on: 500, less a tenth that is set aside."""


class Stage(NamedTuple):
    """A stage: its name, the benchmark that was recorded, and the core-seconds of an image."""

    name: str
    benchmark: str
    seconds: Callable[[dict[str, Any]], float]
    most: float = float("inf")  # images that it takes


def _read_checked(record: dict[str, Any]) -> float:
    by_rows = {int(rows): value["cpu_seconds"] for rows, value in record["figures"].items()}
    few, many = min(by_rows), max(by_rows)
    return (by_rows[many] - by_rows[few]) / (many - few)


STAGES = (
    Stage("ingest", "ingest", lambda r: r["cores"] / r["figures"]["images_per_second"]["ingest"]),
    Stage(
        "ImportExampleGen",
        "beam_steps",
        lambda r: r["figures"]["cpu_milliseconds_per_image"]["ImportExampleGen"] / 1000,
    ),
    Stage("StatisticsGen", "beam_steps", lambda r: r["figures"]["cpu_milliseconds_per_image"]["StatisticsGen"] / 1000),
    Stage("DataCheck", "data_check_rows", _read_checked),
    Stage(
        "training on a sample",
        "transfer",
        lambda r: r["cores"] * r["figures"]["seconds"]["ours"] / TRAINED_IMAGES,
        SAMPLE,
    ),
    Stage(
        "batch prediction",
        "batch_predict",
        lambda r: r["cores"] / r["figures"]["images_per_second"]["ours, OpenVINO, small"],
    ),
)


def choose_record(benchmark: str) -> dict[str, Any]:
    """Returns a benchmark's first record with figures.

    Raises:
        SystemExit: if none was recorded.
    """
    records = [record for record in results.read(benchmark) if record["figures"]]
    if not records:
        raise SystemExit(f"benchmarks/results/{benchmark}.json is missing: python -m benchmarks.{benchmark} --record")
    return records[0]


def compute_hours() -> dict[str, dict[int, float]]:
    """Returns the core-hours by stage and number of images."""
    return {
        stage.name: {
            count: stage.seconds(choose_record(stage.benchmark)) * min(count, stage.most) / 3600 for count in COUNTS
        }
        for stage in STAGES
    }


def render() -> str:
    """Returns the tables as Markdown."""
    hours = compute_hours()
    total = {count: sum(by_count[count] for by_count in hours.values()) for count in COUNTS}
    titles = [_format_count(count) for count in COUNTS]
    time = [["core-hours", "ms of a core per image", *titles, "measured"], ["---"] * 6]
    for stage in STAGES:
        record = choose_record(stage.benchmark)
        milliseconds = f"{1000 * stage.seconds(record):.3g}"
        measured = f"[{stage.benchmark}](benchmarks.md#{stage.benchmark}), {record['date']}"
        time.append([stage.name, milliseconds, *(_format(hours[stage.name][count]) for count in COUNTS), measured])
    time.append(["**all**", "", *(f"**{_format(total[count])}**" for count in COUNTS), ""])
    money = [
        ["", *titles],
        ["---"] * 4,
        ["time on 1,000 cores, hours", *(_format(total[count] / 1000) for count in COUNTS)],
        ["processors, $", *(_format(total[count] * DOLLARS_PER_CORE_HOUR) for count in COUNTS)],
        ["images, GB", *(_format(count * BYTES_PER_IMAGE / 1e9) for count in COUNTS)],
        [
            "the dataset and the pipeline's copy of it, GB",
            *(_format(2 * count * BYTES_PER_IMAGE / 1e9) for count in COUNTS),
        ],
        ["its index, GB", *(_format(count * BYTES_PER_ENTRY / 1e9) for count in COUNTS)],
        [
            "storage of all this, $ per month",
            *(
                _format(count * (3 * BYTES_PER_IMAGE + BYTES_PER_ENTRY) / 1e9 * DOLLARS_PER_GB_MONTH)
                for count in COUNTS
            ),
        ],
        [
            "requests, each image read twice by ingest and once by batch prediction, $",
            *(_format(3 * count * DOLLARS_PER_REQUEST) for count in COUNTS),
        ],
    ]
    processors = sorted({choose_record(stage.benchmark)["processor"] for stage in STAGES})
    tables = ["\n".join(f"| {' | '.join(row)} |" for row in table) for table in (time, money)]
    return "\n\n".join([tables[0], f"Measured on: {'; '.join(processors)}.", tables[1]]) + "\n"


def _format_count(count: int) -> str:
    return f"{count // 10**6:,} million"


def _format(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


if __name__ == "__main__":
    print(render())
