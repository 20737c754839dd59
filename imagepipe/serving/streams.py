"""How many batches OpenVINO should compute at once on this machine: each stream has a part of the CPUs.

``python -m imagepipe.serving.streams FORM SIZE`` prints it; FORM is a folder, see ``imagepipe.deploy.openvino_form``,
SIZE the number of images in a batch.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np

from imagepipe.base.process import end_with_parent
from imagepipe.deploy.openvino_form import OpenVinoNetwork

Compute = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Makes a network's outputs by name of its inputs, each with a row per image."""

ALL_CPUS = "IMAGEPIPE_ALL_CPUS"
"""Environment variable of a process that has a share of the CPUs: how many it has together with those beside it."""

_GAIN = 1.1  # of images in a second, for which more streams are taken
_MEASURED_SECONDS = 0.3


def choose_streams(form: Path, size: int) -> int:
    """Returns the number of streams with which a network computes most images in a second, in batches of a size.

    It is measured by a process of its own: what OpenVINO holds for networks that are not taken, 100 MB for InceptionV3,
    would stay in this one. 1 if it can't be measured.
    """
    command = [sys.executable, "-m", __name__, str(form), str(size)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own module)
    words = result.stdout.split()  # libraries may write there, too
    return int(words[-1]) if result.returncode == 0 and words and words[-1].isdecimal() else 1


def count_all_cpus() -> int:
    """Returns how many CPUs this process has, together with those beside it."""
    return int(os.environ.get(ALL_CPUS) or joblib.cpu_count())


def compile_streams(form: Path, streams: int, cpus: int | None = None) -> OpenVinoNetwork:
    """Compiles a network that computes as many batches at once as it has streams.

    Args:
        form: the form's folder.
        streams: their number.
        cpus: that they divide among them; by default this process's share.

    Raises:
        ModelError: see ``OpenVinoNetwork``.
    """
    options = {
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(cpus or joblib.cpu_count()),
        "ENABLE_CPU_PINNING": "NO",
    }
    return OpenVinoNetwork(form, options)


def build_trial(network: OpenVinoNetwork, size: int) -> dict[str, np.ndarray]:
    """Returns a batch of black images, and zeros as side features."""
    return {name: np.zeros([size, *shape], dtype) for name, (shape, dtype) in network.inputs.items()}


def _measure_streams(form: Path, size: int) -> int:
    """Doubles the number of streams while that gains a tenth.

    Dividing a batch among CPUs costs time, and computing more batches at once takes memory.
    """
    streams, rate = 1, _measure_rate(form, size, 1)
    while 2 * streams <= joblib.cpu_count() and (other := _measure_rate(form, size, 2 * streams)) >= _GAIN * rate:
        streams, rate = 2 * streams, other
    return streams


def _measure_rate(form: Path, size: int, streams: int) -> float:
    """Returns a network's images per second."""
    network = compile_streams(form, streams)
    trial = build_trial(network, size)

    def repeat(compute: Compute) -> float:
        start = time.perf_counter()
        batches = 0
        while (seconds := time.perf_counter() - start) < _MEASURED_SECONDS:
            compute(trial)
            batches += 1
        return batches * size / seconds

    computes = [network.open_request() for _ in range(streams)]
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda compute: compute(trial), computes))  # the first time takes longer
        return sum(pool.map(repeat, computes))


if __name__ == "__main__":
    end_with_parent()
    print(_measure_streams(Path(sys.argv[1]), int(sys.argv[2])))
