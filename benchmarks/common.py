"""What the benchmarks share: images, measuring a process, and printing."""

import io
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

WIDTH, HEIGHT = 320, 240
_SAMPLE_SECONDS = 0.25  # reading a process's memory maps stops it for a moment
_ROOT = Path(__file__).resolve().parent.parent


def photo_crops(count: int) -> Iterator[bytes]:
    """Distinct JPEGs of 320x240: crops of scikit-learn's two sample photos, the same ones each time."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    places = [
        (number, left, top)
        for number, photo in enumerate(photos)
        for left in range(photo.width - WIDTH)
        for top in range(photo.height - HEIGHT)
    ]
    for number, left, top in random.Random(0).sample(places, count):  # noqa: S311 (no secret)
        buffer = io.BytesIO()
        photos[number].crop((left, top, left + WIDTH, top + HEIGHT)).save(buffer, "JPEG", quality=85)
        yield buffer.getvalue()


class Measured(NamedTuple):
    """What a program took.

    Attributes:
        seconds: from start to exit.
        peak: most memory in bytes that it and its children held together.
        peak_anonymous: the same without what is only a copy of files, such as shared libraries and what was read: the
            system takes that back when it is short of memory, before it kills anything.
    """

    seconds: float
    peak: int
    peak_anonymous: int


def measure(command: list[str]) -> Measured:
    """Runs a program, and measures it."""
    begun = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 (our own command)
        command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = peak_anonymous = 0

    def watch() -> None:
        nonlocal peak, peak_anonymous
        while process.poll() is None:
            total = anonymous = 0
            try:
                family = psutil.Process(process.pid)
                for member in (family, *family.children(recursive=True)):
                    held = held_by(member.pid)
                    total += held["Pss"]
                    anonymous += held["Pss_Anon"]
            except (psutil.Error, OSError, KeyError):  # one of them has just ended
                pass
            peak, peak_anonymous = max(peak, total), max(peak_anonymous, anonymous)
            time.sleep(_SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    took = time.perf_counter() - begun
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{command} ended with status {process.returncode}:\n{errors.decode()[-2000:]}")
    return Measured(took, peak, peak_anonymous)


def held_by(pid: int) -> dict[str, int]:
    """A process's memory in bytes, by kind; a page shared by n processes counts 1/n in each."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in map(str.split, lines)}


def report(as_json: bool, result: dict[str, Any], header: list[str], rows: list[list[str]], lines: list[str]) -> None:
    """Prints one line of JSON, or a table and what follows from it."""
    if as_json:
        print(json.dumps(result))
        return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
    for line in lines:
        print(line)
