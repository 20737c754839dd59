"""What the benchmarks share: images, measuring a process, and printing."""

import io
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

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


def inception_v3() -> Any:
    """The Trainer's InceptionV3 for ten classes of images at 299x299, with random weights.

    The statistics of its BatchNormalization are not the initial ones either: zeros would be optimised away.
    """
    import keras
    import numpy as np

    from trainer import model, tasks
    from trainer.config import TrainerConfig

    keras.utils.set_random_seed(0)
    built = model.build((299, 299), tasks.classification(10), {}, TrainerConfig(weights="none"))
    rng = np.random.default_rng(0)
    for layer in built.base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
    return built.model


def export_model(network: Any, transform: Path, path: Path, bfloat16: bool = False) -> None:
    """Exports an ``inception_v3`` as the Trainer does, to ``path``; the folder ``transform`` has Transform's output."""
    import tensorflow_transform as tft

    from imagepipe.base.features import Features
    from trainer import export, optimize

    graph = optimize.optimized(network, bfloat16)
    export.save(graph, tft.TFTransformOutput(str(transform)), Features(), "classification", {}, str(path))


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
    return measure_in_turns([command])[0]


def measure_in_turns(commands: list[list[str]]) -> list[Measured]:
    """Runs programs, only one of them at a time, such that a machine's slow minutes hit them all alike.

    One after the other is started and runs until it calls ``next_turn``. Then each in turn goes on from there to its
    next call, until all have ended. ``seconds`` include the others' turns.
    """
    programs = []
    for command in commands:
        programs.append(_Program(command))
        programs[-1].pauses()
    paused = programs
    while paused:
        paused = [program for program in paused if program.goes_on() and program.pauses()]
    return [program.measured() for program in programs]


def next_turn() -> None:
    """In a program that ``measure_in_turns`` runs: lets the others go on, and waits until it may."""
    print(flush=True)
    sys.stdin.readline()


class _Program:
    def __init__(self, command: list[str]):
        self._command = command
        self._begun = time.perf_counter()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (read when the program has ended)
        self._process = subprocess.Popen(  # noqa: S603 (our own command)
            command, cwd=_ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._stdin, self._stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        self._peak = self._peak_anonymous = 0
        self._on_turn = threading.Event()
        self._on_turn.set()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def pauses(self) -> bool:
        """Waits until it has written a line, or has ended: then it is False."""
        written = bool(self._stdout.readline())
        self._on_turn.clear()
        return written

    def goes_on(self) -> bool:
        """Answers the line; False if it waits for nothing, having ended."""
        self._on_turn.set()
        try:
            self._stdin.write("\n")
            self._stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def measured(self) -> Measured:
        self._watcher.join()
        if self._process.returncode:
            self._errors.seek(0)
            raise SystemExit(
                f"{self._command} ended with status {self._process.returncode}:\n{self._errors.read()[-2000:]}"
            )
        return Measured(self._ended - self._begun, self._peak, self._peak_anonymous)

    def _watch(self) -> None:
        while self._process.poll() is None:
            # Who waits is not looked at: that would take time from the one whose turn it is.
            if not self._on_turn.wait(_SAMPLE_SECONDS):
                continue
            total = anonymous = 0
            try:
                family = psutil.Process(self._process.pid)
                for member in (family, *family.children(recursive=True)):
                    held = held_by(member.pid)
                    total += held["Pss"]
                    anonymous += held["Pss_Anon"]
            except (psutil.Error, OSError, KeyError):  # one of them has just ended
                pass
            self._peak, self._peak_anonymous = max(self._peak, total), max(self._peak_anonymous, anonymous)
            time.sleep(_SAMPLE_SECONDS)
        self._ended = time.perf_counter()


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
