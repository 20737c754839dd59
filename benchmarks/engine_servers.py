"""The server as `imagepipe serve` starts it, and callers of it, for a benchmark."""

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import read_memory

NAME = "bench"
START_SECONDS = 300
LENGTH = "Inference-Header-Content-Length"
_STEADY_SECONDS = 1.5


class Server:
    """A running server, asked about one image at a time in the binary form of the Open Inference Protocol.

    Attributes:
        pid: of the process that was started.
        port: that it answers HTTP on.
    """

    def __init__(self, pid: int, port: int, grpc_address: str):
        self.pid, self.port, self._grpc_address = pid, port, grpc_address
        self._caller = threading.local()  # a connection for each thread

    def ask(self, image: bytes) -> float:
        """Returns the seconds that an answer takes over HTTP."""
        if not hasattr(self._caller, "ask"):
            self._caller.ask = _connect(self.port)
        start = time.perf_counter()
        self._caller.ask(image)
        return time.perf_counter() - start

    def ask_by_grpc(self, image: bytes) -> float:
        """Returns the seconds that an answer takes by gRPC."""
        if not hasattr(self._caller, "ask_by_grpc"):
            self._caller.ask_by_grpc = _connect_grpc(self._grpc_address)
        start = time.perf_counter()
        self._caller.ask_by_grpc(image)
        return time.perf_counter() - start

    def read_anonymous(self) -> int:
        """Returns the bytes of memory that copy no file, of the process and its children."""
        processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return sum(read_memory(process.pid)["Pss_Anon"] for process in processes)


def _connect(port: int) -> Any:
    # http.client, as it leaves more of the two cores to the server than httpx
    http = HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(image: bytes) -> None:
        packed = len(image).to_bytes(4, "little") + image
        tensor = {"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        http.request("POST", f"/v2/models/{NAME}/infer", head + packed, {LENGTH: str(len(head))})
        answer = http.getresponse()
        content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(content)

    return ask


def _connect_grpc(address: str) -> Any:
    import grpc

    from imagepipe.deploy.kserve_library import grpc_predict_v2_pb2 as v2

    # Of their own: channels to the same address share a connection otherwise.
    channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        v2.ModelInferRequest.SerializeToString,
        v2.ModelInferResponse.FromString,
    )

    def ask(image: bytes) -> None:
        request = v2.ModelInferRequest(model_name=NAME)
        request.inputs.add(name="input", datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(image).to_bytes(4, "little") + image)
        infer(request, timeout=120)

    return ask


@contextlib.contextmanager
def serving(version: Path, *options: str) -> Iterator[Server]:
    """Serves a version inside the block, over HTTP and gRPC."""
    command = [sys.executable, "-m", "imagepipe", "serve", str(version), "--name", NAME, "--port", "0"]
    command += ["--grpc-port", "0", *options]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 (our own command)
        try:
            workers = int(options[options.index("--workers") + 1]) if "--workers" in options else 1
            while len(lines := _read_listening(Path(log.name))) < workers:
                if process.poll() is not None:
                    raise RuntimeError(Path(log.name).read_text(encoding="utf-8"))
                time.sleep(0.1)
            yield Server(process.pid, lines[0]["port"], lines[0]["grpc"])
        finally:
            process.terminate()
            process.wait()


def _read_listening(log: Path) -> list[dict[str, Any]]:
    entries = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # of a library
            entry = json.loads(line)
            if isinstance(entry, dict) and "port" in entry:
                entries.append(entry)
    return entries


def ask_steadily(ask: Callable[[bytes], float], callers: int, jpegs: list[bytes]) -> tuple[float, list[float]]:
    """Lets callers ask one image after the other, and counts what is answered while all of them do.

    Returns:
        Images/s, and the milliseconds that each answer took.
    """
    answers: list[tuple[float, float]] = []  # when one came, and its seconds
    is_over = threading.Event()

    def ask_on(first: int) -> None:
        for number in itertools.count(first, callers):
            if is_over.is_set():
                return
            seconds = ask(jpegs[number % len(jpegs)])
            answers.append((time.perf_counter(), seconds))

    with ThreadPoolExecutor(callers) as pool:
        asking = [pool.submit(ask_on, first) for first in range(callers)]

        def wait(count: int) -> float:
            while len(answers) < count and not any(caller.done() for caller in asking):  # which only an error ends
                time.sleep(0.01)
            return time.perf_counter()

        start = wait(2 * callers)  # all have connected
        time.sleep(_STEADY_SECONDS)
        end = wait(4 * callers)
        is_over.set()
    for caller in asking:
        caller.result()
    counted = [1000 * seconds for came, seconds in answers if start < came <= end]
    return len(counted) / (end - start), counted
