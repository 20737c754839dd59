"""Parts that benchmarks share: images, a model, and measuring processes."""

import io
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


def make_photo_crops(count: int) -> Iterator[bytes]:
    """Yields distinct JPEGs of 320x240: crops of scikit-learn's two sample photos, the same ones each time."""
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


def build_inception_v3() -> Any:
    """Builds the Trainer's InceptionV3 for ten classes of images at 299x299, with random weights.

    The statistics of its BatchNormalization are not the initial ones either: zeros would be optimized away.
    """
    import keras
    import numpy as np

    from trainer.config import TrainerConfig
    from trainer.network import build_network
    from trainer.tasks import make_classification

    keras.utils.set_random_seed(0)
    network = build_network((299, 299), make_classification(10), {}, TrainerConfig(weights="none"))
    rng = np.random.default_rng(0)
    for layer in network.base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.moving_mean.shape))
    return network


def export_model(network: Any, transform: Path, path: Path, bfloat16: bool = False) -> None:
    """Exports the ``served`` of a network as the Trainer does, to ``path``.

    The folder ``transform`` has Transform's output.
    """
    import numpy as np
    import tensorflow_transform as tft

    from imagepipe.base.features import Features
    from trainer.export.answers import make_answers
    from trainer.export.calibration import NO_CALIBRATION
    from trainer.export.novelty import MAX_REFERENCES, fit_novelty
    from trainer.export.optimize import optimize_network
    from trainer.export.signatures import save_model
    from transform.examples import read_output_names

    graph = optimize_network(network, bfloat16)
    output = tft.TFTransformOutput(str(transform))
    names = read_output_names("classification", output, Features())
    width = network.output["embedding"].shape[1]
    random_state = np.random.default_rng(0)
    held_out = {"embedding": random_state.random((50, width)), "logits": random_state.random((50, len(names)))}
    references = random_state.random((MAX_REFERENCES, width), np.float32)
    novelty = fit_novelty(
        "classification", references, {name: array.astype(np.float32) for name, array in held_out.items()}
    )
    answers = make_answers("classification", names, {}, NO_CALIBRATION, novelty, None)
    save_model(graph, answers, output, Features(), "classification", str(path))


class Usage(NamedTuple):
    """Time and memory that a program took.

    Attributes:
        seconds: from start to exit.
        peak: peak memory in bytes of the program and its children together.
        peak_anonymous: the same without pages that only copy files, such as shared libraries: the system takes those
            back when it is short of memory, before it kills anything.
    """

    seconds: float
    peak: int
    peak_anonymous: int


def measure(command: list[str]) -> Usage:
    """Runs a program, and measures it."""
    return measure_in_turns([command])[0]


def measure_in_turns(commands: list[list[str]]) -> list[Usage]:
    """Runs programs, one at a time, so that a machine's slow minutes hit them all alike.

    Each is started and runs until it calls ``next_turn``. Then they continue in turn, each to its next call, until all
    have ended. ``seconds`` include the others' turns.
    """
    programs = []
    for command in commands:
        programs.append(_Program(command))
        programs[-1].wait_for_pause()
    paused = programs
    while paused:
        paused = [program for program in paused if program.resume() and program.wait_for_pause()]
    return [program.wait_for_usage() for program in programs]


def next_turn() -> None:
    """Lets the other programs of ``measure_in_turns`` continue, and waits for this one's turn."""
    print(flush=True)
    sys.stdin.readline()


class _Program:
    def __init__(self, command: list[str]):
        self._command = command
        self._start = time.perf_counter()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (read when the program has ended)
        self._process = subprocess.Popen(  # noqa: S603 (our own command)
            command, cwd=_ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._stdin, self._stdout = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        self._peak = self._peak_anonymous = 0
        self._on_turn = threading.Event()
        self._on_turn.set()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def wait_for_pause(self) -> bool:
        """Waits until the program has written a line; returns False if it has ended instead."""
        written = bool(self._stdout.readline())
        self._on_turn.clear()
        return written

    def resume(self) -> bool:
        """Answers the program's line; returns False if it has ended."""
        self._on_turn.set()
        try:
            self._stdin.write("\n")
            self._stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def wait_for_usage(self) -> Usage:
        self._watcher.join()
        if self._process.returncode:
            self._errors.seek(0)
            raise SystemExit(
                f"{self._command} ended with status {self._process.returncode}:\n{self._errors.read()[-2000:]}"
            )
        return Usage(self._ended - self._start, self._peak, self._peak_anonymous)

    def _watch(self) -> None:
        while self._process.poll() is None:
            # Looking at a waiting program would take time from the one whose turn it is.
            if not self._on_turn.wait(_SAMPLE_SECONDS):
                continue
            total = anonymous = 0
            try:
                family = psutil.Process(self._process.pid)
                for member in (family, *family.children(recursive=True)):
                    memory = read_memory(member.pid)
                    total += memory["Pss"]
                    anonymous += memory["Pss_Anon"]
            except (psutil.Error, OSError, KeyError):  # one of them has just ended
                pass
            self._peak, self._peak_anonymous = max(self._peak, total), max(self._peak_anonymous, anonymous)
            time.sleep(_SAMPLE_SECONDS)
        self._ended = time.perf_counter()


def read_memory(pid: int) -> dict[str, int]:
    """Returns a process's memory in bytes, by kind; a page shared by n processes counts 1/n in each."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in map(str.split, lines)}
