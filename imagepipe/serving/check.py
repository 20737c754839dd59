"""Checks that a model can be served: through a server in a fresh process, with real images and with bad requests."""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from imagepipe.serving.check_report import Report
from imagepipe.serving.limits import MAX_BODY
from imagepipe.serving.requests import Request, to_instance

_NAME = "candidate"
_PREDICT, _INFER = f"/v1/models/{_NAME}:predict", f"/v2/models/{_NAME}/infer"
_START_SECONDS = 300  # to import TensorFlow, load the model and warm it, on a busy machine
_ANSWER_SECONDS = 60
_BATCH = 16  # images in a request, at most
MAX_BYTES = MAX_BODY // 2
"""Of the images of a request, which base64 makes a third longer."""
_LATENCY_REQUESTS = 40
_TOLERANCE = 1e-3  # of a probability: batches of other sizes are computed in another order
_LOG_CHARACTERS = 2000

_Bad = tuple[str, bytes, int, str]  # path, body, status and a part of the reason


@dataclass(frozen=True)
class Expected:
    """What the graph says of an image.

    Attributes:
        request: what is asked.
        classes: float32 ``[k]``.
        label: in words.
    """

    request: Request
    classes: np.ndarray
    label: str


def check(model: Path, expected: Sequence[Expected], budget_ms: float | None) -> Report:
    """Serves a model and asks it.

    Args:
        model: the SavedModel's folder.
        expected: real images, at least one.
        budget_ms: most that the 95th percentile of the latency of one image may be, in milliseconds; None for any.

    Returns:
        What was found; a server that doesn't start is a problem, not an exception.
    """
    bad = _bad_requests(expected[0].request)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        try:
            with serving(model, _NAME, log) as url, httpx.Client(base_url=url, timeout=_ANSWER_SECONDS) as http:
                problems = [*_wrong_answers(http, expected), *_wrong_refusals(http, bad)]
                median, p95 = _latency(http, expected)
        except (StartError, httpx.HTTPError) as error:
            said = log.read_text(errors="replace")[-_LOG_CHARACTERS:]
            return Report([f"the server failed ({error or type(error).__name__}); it said last: {said}"])
    if budget_ms is not None and p95 > budget_ms:
        problems.append(f"an image takes {p95:.0f} ms (95th percentile), more than the budget of {budget_ms:g} ms")
    return Report(problems, len(expected), len(bad), median, p95)


class StartError(RuntimeError):
    """The server does not start."""


@contextlib.contextmanager
def serving(model: Path, name: str, log: Path) -> Iterator[str]:
    """Serves a model in a process of its own while the block lasts; gives the server's URL.

    Args:
        model: the SavedModel's folder.
        name: of the model, to callers.
        log: the file for what the server says.

    Raises:
        StartError: if it does not start.
    """
    command = [sys.executable, "-m", "imagepipe.serving.server", str(model), name]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603 (our own command)
    try:
        yield f"http://127.0.0.1:{_port(process, log)}"
    finally:
        process.kill()
        process.wait()


def _port(process: subprocess.Popen, log: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line of others, or half a line
                return int(json.loads(line)["port"])
        time.sleep(0.1)
    raise StartError("it did not start")


def _wrong_answers(http: httpx.Client, expected: Sequence[Expected]) -> Iterator[str]:
    for name, ask in {"rows": _by_rows, "columns": _by_columns, "Open Inference Protocol": _by_tensors}.items():
        for batch in _batches(expected):
            response = ask(http, [to_instance(each.request) for each in batch])
            if not response.is_success:
                yield f"{name}: status {response.status_code}: {response.text[:_LOG_CHARACTERS]}"
                return
            answers = _answers(response.json())
            for each, (classes, label, metadata) in zip(batch, answers, strict=True):
                if metadata != each.request.id:
                    yield f"{name}: asked about {each.request.id}, it answered about {metadata}"
                elif not _same(label, np.asarray(classes), each):
                    difference = float(np.abs(np.asarray(classes) - each.classes).max())
                    yield (
                        f"{name}: of {each.request.id} the server says {label}, the graph {each.label}; "
                        f"they differ by {difference:.2g}"
                    )


def _batches(expected: Sequence[Expected]) -> Iterator[list[Expected]]:
    batch: list[Expected] = []
    for each in expected:
        if len(batch) == _BATCH or sum(len(e.request.image) for e in [*batch, each]) > MAX_BYTES:
            yield batch
            batch = []
        batch.append(each)
    yield batch


def _same(label: str, classes: np.ndarray, expected: Expected) -> bool:
    """Whether two answers are the same, but for the order of computation in batches of other sizes."""
    if not np.allclose(classes, expected.classes, atol=_TOLERANCE, rtol=_TOLERANCE):
        return False
    # A regression's label is its value; and of two classes that are as probable either may be the best.
    *_, second, best = np.sort(expected.classes) if len(classes) > 1 else (0.0, 0.0)
    return label == expected.label or best - second <= 2 * _TOLERANCE


def _by_rows(http: httpx.Client, instances: list[dict[str, Any]]) -> httpx.Response:
    return http.post(_PREDICT, json={"instances": instances})


def _by_columns(http: httpx.Client, instances: list[dict[str, Any]]) -> httpx.Response:
    return http.post(_PREDICT, json={"inputs": {name: [each[name] for each in instances] for name in instances[0]}})


def _by_tensors(http: httpx.Client, instances: list[dict[str, Any]]) -> httpx.Response:
    tensors = []
    for name, first in instances[0].items():
        values = [each[name]["b64"] if name == "input" else each[name] for each in instances]
        kind = "INT64" if isinstance(first, int) else "FP32" if isinstance(first, float) else "BYTES"
        tensors.append({"name": name, "shape": [len(values)], "datatype": kind, "data": values})
    return http.post(_INFER, json={"inputs": tensors})


def _answers(body: dict[str, Any]) -> list[tuple[list[float], str, str]]:
    if "predictions" in body:
        return [(row["classes"], row["label"], row["metadata"]) for row in body["predictions"]]
    if isinstance(body["outputs"], list):
        shape = {tensor["name"]: tensor["shape"] for tensor in body["outputs"]}
        columns = {tensor["name"]: tensor["data"] for tensor in body["outputs"]}
        columns["classes"] = np.reshape(columns["classes"], shape["classes"]).tolist()
    else:
        columns = body["outputs"]
    return list(zip(columns["classes"], columns["label"], columns["metadata"], strict=True))


def _bad_requests(good: Request) -> dict[str, _Bad]:
    """What is refused, by what is bad."""

    def body(**changes: Any) -> bytes:
        instance = to_instance(good) | changes
        return json.dumps({"instances": [{k: v for k, v in instance.items() if v is not None}]}).encode()

    text, cut = (to_instance(Request("", data))["input"] for data in (b"text", good.image[: len(good.image) // 2]))
    other = f"/v1/models/{_NAME}/versions/0:predict"
    return {
        "what is not JSON": (_PREDICT, b"{", 400, "not JSON"),
        "a field that is not known": (_PREDICT, b'{"x": 1}', 400, "'x' is not known"),
        "no instances": (_PREDICT, b'{"instances": []}', 400, "nothing to predict"),
        "an instance without an image": (_PREDICT, body(input=None), 400, "'input' is missing"),
        "metadata of a wrong type": (_PREDICT, body(metadata=1), 400, "'metadata' has to be a string"),
        "bad base64": (_PREDICT, body(input={"b64": "!"}), 400, "not valid base64"),
        "what is not an image": (_PREDICT, body(input=text), 400, "not an image"),
        "half an image": (_PREDICT, body(input=cut), 400, "image"),
        "a version that is not served": (other, body(), 404, "is not served"),
    }


def _wrong_refusals(http: httpx.Client, bad: Mapping[str, _Bad]) -> Iterator[str]:
    for what, (path, body, status, words) in bad.items():
        response = http.post(path, content=body)
        if response.status_code != status or words not in response.text:
            said = response.text[:_LOG_CHARACTERS]
            yield f"asked with {what}, it answered with status {response.status_code}, not {status}: {said}"


def _latency(http: httpx.Client, expected: Sequence[Expected]) -> tuple[float, float]:
    times = []
    for number in range(_LATENCY_REQUESTS):
        body = {"instances": [to_instance(expected[number % len(expected)].request)]}
        begun = time.perf_counter()
        http.post(_PREDICT, json=body).raise_for_status()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]
