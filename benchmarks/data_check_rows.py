"""DataCheck of 100,000 to 1,000,000 Examples: CPU time, peak memory, and the copies that are found.

It runs as in `imagepipe run` with the runner `direct`: one process reads the Examples, and Beam has no part in it.

Each hash is of a thumbnail of 32x32, in gray, of two photos laid over each other, and every fourth image is kept for
itself and the next three. One in 1,000 of the eval split is a darker copy, saved in another quality, of one of the
train split. The time is what Executor.Do takes of the processor (others may use it meanwhile), the memory that of the
whole process.

    python -m benchmarks.data_check_rows FOLDER [--rows N ...] [--draw FILE.svg] [--json] [--record]

FOLDER holds <split>/<class>/*.jpg; a million Examples take 0.8 GB of disk.
"""

import argparse
import gzip
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import measure
from benchmarks.results import at_most, make_parser, report

MEASURES = ("components/data_check",)
SPLITS = {"train": 8, "eval": 1, "test": 1}  # files, for each so many rows as in ten files
FILE_ROWS, BATCH = 10_000, 1000
SIDE, SOURCE_SIDE = 32, 64
CLASSES, COPIED_EVERY, MAX_IMAGES = 50, 1000, 500
PICTURED = 4
MEMORY_GOAL, TIME_GOAL = 1.2, 12.0  # of ten times as many rows
RESULT = "result.json"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="multiples of 100,000")
    parser.add_argument("--draw", type=Path, help="picture of time and memory by rows")
    parser.add_argument("--check", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        check_rows(arguments.folder, arguments.check)
        return
    photos = sorted(arguments.folder.glob("*/*/*.jpg"))
    if not photos:
        raise SystemExit(f"There are no photos in {arguments.folder}.")
    seconds: dict[int, float] = {}
    memory: dict[int, float] = {}  # MiB
    copies: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_examples(read_photos(photos), folder, max(arguments.rows))
        for rows in sorted(arguments.rows):
            command = [sys.executable, "-m", "benchmarks.data_check_rows", name, "--check", str(rows)]
            memory[rows] = measure(command).peak / 2**20
            seconds[rows], copies[rows] = json.loads((folder / f"{rows}" / RESULT).read_text(encoding="utf-8"))
    small, large = min(seconds), max(seconds)
    if arguments.draw:
        arguments.draw.write_text(draw_lines(seconds, memory), encoding="utf-8")
    report(
        arguments,
        "data_check_rows",
        MEASURES,
        {
            str(rows): {"cpu_seconds": seconds[rows], "peak_mib": memory[rows], "copies": copies[rows]}
            for rows in seconds
        },
        ["Examples", "CPU seconds", "peak memory, MiB", "copies found"],
        [[f"{rows:,}", f"{seconds[rows]:.0f}", f"{memory[rows]:,.0f}", copies[rows]] for rows in seconds],
        [
            at_most(f"{what} of DataCheck, {large:,} Examples to {small:,}", of[large] / of[small], goal)
            for what, of, goal in (("peak memory", memory, MEMORY_GOAL), ("CPU time", seconds, TIME_GOAL))
        ],
    )


def read_photos(paths: Sequence[Path]) -> np.ndarray:
    """Returns the photos in gray, uint8 ``[n, SOURCE_SIDE, SOURCE_SIDE]``."""
    from PIL import Image

    photos = []
    for path in paths:
        with Image.open(path) as photo:
            photos.append(np.asarray(photo.convert("L").resize((SOURCE_SIDE, SOURCE_SIDE), Image.Resampling.BOX)))
    return np.stack(photos)


def write_examples(photos: np.ndarray, folder: Path, rows: int) -> None:
    """Writes gzipped TFRecords ``folder/Split-<name>/<number>.gz``, of FILE_ROWS Examples each."""
    from imagepipe.base import tfrecord

    for name, share in SPLITS.items():
        (folder / f"Split-{name}").mkdir()
        for number in range(share * rows // (FILE_ROWS * 10)):
            examples = make_examples(photos, name, number)
            with gzip.open(folder / f"Split-{name}" / f"{number:05}.gz", "wb", compresslevel=0) as file:
                for example in examples:
                    file.write(tfrecord.frame_record(tfrecord.encode_example(example)))


def make_examples(photos: np.ndarray, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Yields the Examples of a file, the same ones each time; every image's hash, one image in PICTURED."""
    for batch in range(FILE_ROWS // BATCH):
        key = [list(SPLITS).index(split), number, batch]
        pixels = draw_thumbnails(photos, key)
        if split == "eval":  # of the batch of the same number in the train split
            pixels[0] = 0.8 * draw_thumbnails(photos, [0, number, batch])[0]
        labels = np.random.default_rng([1, *key]).integers(CLASSES, size=BATCH).tolist()
        hashes, contrasts = measure_thumbnails(pixels)
        jpeg = b""
        for i, (label, dhash, contrast) in enumerate(zip(labels, hashes, contrasts, strict=True)):
            if i % PICTURED == 0:
                jpeg = encode_jpeg(pixels[i], quality=50 if i == 0 else 75)
            name = b"%s/%05d/%05d.jpg" % (split.encode(), number, batch * BATCH + i)
            yield {
                "input": [jpeg],
                "label": [b"class %03d" % label],
                "metadata": [name],
                "sha256": [name.hex().rjust(64, "0")[-64:].encode()],
                "dhash": [dhash.encode()],
                "contrast": [contrast],
            }


def measure_thumbnails(pixels: np.ndarray) -> tuple[list[str], list[float]]:
    """Returns difference hashes and contrasts, as ``imagepipe.base.appearance`` has them but for rounding."""
    places = np.einsum("yr,nrc,cx->nyx", spread_area(8), pixels.astype(np.float32), spread_area(9).T, optimize=True)
    bits = np.packbits((places[:, :, 1:] > places[:, :, :-1]).reshape(len(pixels), -1), axis=1)
    contrasts: list[float] = (pixels.reshape(len(pixels), -1).std(axis=1) / 255).tolist()
    return [row.tobytes().hex() for row in bits], contrasts


def spread_area(count: int) -> np.ndarray:
    """Returns which share each of SIDE pixels has of each of ``count`` areas of a side, float32 ``[count, SIDE]``."""
    edges = np.linspace(0, SIDE, count + 1)
    starts, ends = edges[:-1, None], edges[1:, None]
    overlap = np.minimum(ends, np.arange(1, SIDE + 1)) - np.maximum(starts, np.arange(SIDE))
    return (np.maximum(overlap, 0) * count / SIDE).astype(np.float32)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def draw_thumbnails(photos: np.ndarray, key: list[int]) -> np.ndarray:
    """Returns pairs of photos, cropped and one mirrored, laid over each other: uint8 ``[n, SIDE, SIDE]``."""
    random = np.random.default_rng([0, *key])
    crops = np.lib.stride_tricks.sliding_window_view(photos, (SIDE, SIDE), axis=(1, 2))
    layers = np.zeros((BATCH, SIDE, SIDE), np.uint16)
    for step in (1, -1):
        top, left = random.integers(SOURCE_SIDE - SIDE + 1, size=(2, BATCH))
        layers += crops[random.integers(len(photos), size=BATCH), top, left][:, :, ::step]
    return (layers // 2).astype(np.uint8)


def check_rows(folder: Path, rows: int) -> None:
    """Runs DataCheck's executor on the first Examples of each split; writes its CPU time and the copies it found."""
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2
    from tfx.types import artifact_utils, standard_artifacts

    from components.data_check.driver import Driver
    from components.data_check.executor import Executor
    from imagepipe.base.names import FINDINGS

    here = folder / f"{rows}"

    def make_artifact(kind: Any, name: str, splits: Sequence[str] = tuple(SPLITS)) -> Any:
        artifact = kind()
        artifact.uri = str(here / name)
        if splits:
            artifact.split_names = artifact_utils.encode_split_names(list(splits))
        for split in splits:
            (here / name / f"Split-{split}").mkdir(parents=True)
        return artifact

    examples = make_artifact(standard_artifacts.Examples, "examples")
    statistics = make_artifact(standard_artifacts.ExampleStatistics, "statistics")
    anomalies = make_artifact(standard_artifacts.ExampleAnomalies, "anomalies")
    for split, share in SPLITS.items():
        for file in sorted((folder / f"Split-{split}").iterdir())[: share * rows // (FILE_ROWS * 10)]:
            (here / "examples" / f"Split-{split}" / file.name).symlink_to(file)
        counted = statistics_pb2.DatasetFeatureStatisticsList()
        dataset = counted.datasets.add(num_examples=share * rows // 10)
        label = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.STRING)
        label.path.step.append("label")
        label.string_stats.common_stats.num_non_missing = dataset.num_examples
        (here / "statistics" / f"Split-{split}" / "FeatureStats.pb").write_bytes(counted.SerializeToString())
        (here / "anomalies" / f"Split-{split}" / "SchemaDiff.pb").write_bytes(
            anomalies_pb2.Anomalies().SerializeToString()
        )
    schema = make_artifact(standard_artifacts.Schema, "schema", ())
    (here / "schema").mkdir()
    (here / "schema" / "schema.pbtxt").write_text(text_format.MessageToString(schema_pb2.Schema()), encoding="utf-8")
    findings = make_artifact(standard_artifacts.ExampleAnomalies, "findings", ())
    start = time.process_time()
    Executor().Do(
        {"examples": [examples], "statistics": [statistics], "schema": [schema], "anomalies": [anomalies]},
        {"findings": [findings]},
        {
            "task": "classification",
            "features": json.dumps({"metadata": "metadata"}),
            "validation": json.dumps({"skew": None, "max_images": MAX_IMAGES}),
            "slices": "[]",
            "demands": "[]",
            Driver.PROPERTY: "",
        },
    )
    seconds = time.process_time() - start
    content = json.loads((here / "findings" / FINDINGS).read_text(encoding="utf-8"))
    (message,) = [finding["message"] for finding in content["findings"] if finding["kind"] == "near_duplicates"]
    copies = f"{message.partition(' ')[0]} of {rows // (10 * COPIED_EVERY):,}"
    (here / RESULT).write_text(json.dumps([seconds, copies]), encoding="utf-8")


def draw_lines(seconds: dict[int, float], memory: dict[int, float]) -> str:
    """Returns a picture of CPU time and peak memory, MiB, by rows, SVG."""
    width, height, margin = 620, 220, 50
    rows = sorted(seconds)
    panels = []
    for place, (title, values, form) in enumerate(
        (
            ("CPU time, s", [seconds[count] for count in rows], "{:,.0f}"),
            ("peak memory, MiB", [memory[count] for count in rows], "{:,.0f}"),
        )
    ):
        left = place * width / 2 + margin
        across, up = width / 2 - 2 * margin, height - 2 * margin
        xs = [left + across * count / rows[-1] for count in rows]
        ys = [height - margin - up * value / max(values) for value in values]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        panels.append(
            f'<text x="{left}" y="24" font-size="15" font-weight="bold" fill="#1b2a33">{title}</text>'
            f'<path d="M{left},{margin - 8} V{height - margin} h{across + 8}" stroke="#78909c" fill="none"/>'
            f'<text x="{left + across}" y="{height - margin + 34}" font-size="12" text-anchor="end" fill="#546e7a">'
            "million Examples</text>"
            f'<polyline points="{points}" fill="none" stroke="#1565c0" stroke-width="2"/>'
        )
        for x, y, count, value in zip(xs, ys, rows, values, strict=True):
            panels.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#1565c0"/>'
                f'<text x="{x:.1f}" y="{y - 9:.1f}" font-size="12" text-anchor="middle" fill="#37474f">'
                f"{form.format(value)}</text>"
                f'<text x="{x:.1f}" y="{height - margin + 18}" font-size="12" text-anchor="middle" fill="#37474f">'
                f"{count / 1e6:g}</text>"
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f'<title>Time and memory of DataCheck by the number of Examples</title>\n<rect width="{width}" '
        f'height="{height}" fill="#fafafa"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


if __name__ == "__main__":
    main()
