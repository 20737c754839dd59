"""Checks that a model can be served, by a server in a fresh process, with real images and with bad requests."""

import contextlib
import json
import os
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

from imagepipe.serving.instances import encode_instance
from imagepipe.serving.limits import MAX_IMAGES_BYTES
from imagepipe.serving.types import CheckReport, Request

_NAME = "candidate"
_PREDICT, _INFER = f"/v1/models/{_NAME}:predict", f"/v2/models/{_NAME}/infer"
_START_SECONDS = 300  # to import TensorFlow, load the model and warm it, on a busy machine
_ANSWER_SECONDS = 60
_BATCH = 16  # images in a request, at most
_LATENCY_REQUESTS = 40
_TOLERANCE = 1e-3  # of a probability: the order of computation depends on the size of the batch
_NOVELTY_TOLERANCE = 1e-2  # of a share of images, which is steep where many images are equally novel
_LOG_CHARACTERS = 2000

_BadRequest = tuple[str, bytes, int, str]  # path, body, status, and a part of the reason


@dataclass(frozen=True)
class Expected:
    """The graph's answer about an image.

    Attributes:
        request: the request about the image.
        classes: float32 ``[k]``.
        label: the label as text.
        novelty: 0 to 1; None from a model without.
    """

    request: Request
    classes: np.ndarray
    label: str
    novelty: float | None


def check_model(model: Path, expected: Sequence[Expected], budget_ms: float | None) -> CheckReport:
    """Serves a model, and compares its answers and refusals with those expected.

    Args:
        model: the SavedModel's folder.
        expected: the graph's answers about real images, at least one.
        budget_ms: maximum 95th percentile of the latency of one image, in milliseconds; None for no limit.

    Returns:
        The report; a server that doesn't start is a problem in it, not an exception.
    """
    bad = _build_bad_requests(expected[0].request)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        try:
            with run_server(model, _NAME, log) as url, httpx.Client(base_url=url, timeout=_ANSWER_SECONDS) as http:
                problems = [*_find_wrong_answers(http, expected), *_find_wrong_refusals(http, bad)]
                median, p95 = _measure_latency(http, expected)
        except (StartError, httpx.HTTPError) as error:
            tail = log.read_text(errors="replace", encoding="utf-8")[-_LOG_CHARACTERS:]
            return CheckReport([f"the server failed ({error or type(error).__name__}); its log ends with: {tail}"])
    if budget_ms is not None and p95 > budget_ms:
        problems.append(f"an image takes {p95:.0f} ms (95th percentile), more than the budget of {budget_ms:g} ms")
    return CheckReport(problems, len(expected), len(bad), median, p95)


class StartError(RuntimeError):
    """The server does not start."""


@contextlib.contextmanager
def run_server(model: Path, name: str, log: Path) -> Iterator[str]:
    """Serves a model in a process of its own inside the block; yields the server's URL.

    The server ends with this process, even if that is killed.

    Args:
        model: the SavedModel's folder.
        name: the model's name, for callers.
        log: the file for the server's output.

    Raises:
        StartError: if it does not start.
    """
    # -P: without it Python imports modules from the current folder, whoever wrote them.
    command = [sys.executable, "-P", "-m", "imagepipe.serving.server", str(model), name, str(os.getpid())]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603 (our own command)
    try:
        yield f"http://127.0.0.1:{_read_port(process, log)}"
    finally:
        process.kill()
        process.wait()


def _read_port(process: subprocess.Popen, log: Path) -> int:
    """Waits until the server logs the port that it listens on."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        for line in log.read_text(errors="replace", encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line of a library, or half a line
                return int(json.loads(line)["port"])
        time.sleep(0.1)
    raise StartError("it did not start")


def _find_wrong_answers(http: httpx.Client, expected: Sequence[Expected]) -> Iterator[str]:
    for name, ask in {"rows": _ask_rows, "columns": _ask_columns, "Open Inference Protocol": _ask_tensors}.items():
        for batch in _split_batches(expected):
            response = ask(http, [encode_instance(image.request) for image in batch])
            if not response.is_success:
                yield f"{name}: status {response.status_code}: {response.text[:_LOG_CHARACTERS]}"
                return
            answers = _parse_answers(response.json())
            for image, (classes, label, novelty, metadata) in zip(batch, answers, strict=True):
                if metadata != image.request.id:
                    yield f"{name}: asked about {image.request.id}, it answered about {metadata}"
                elif not _is_same(label, np.asarray(classes), image):
                    difference = float(np.abs(np.asarray(classes) - image.classes).max())
                    yield (
                        f"{name}: about {image.request.id} the server says {label}, the graph {image.label}; "
                        f"they differ by {difference:.2g}"
                    )
                elif not _is_equally_novel(novelty, image.novelty):
                    values = f"the server says novelty {novelty}, the graph {image.novelty}"
                    yield f"{name}: about {image.request.id} {values}"


def _split_batches(expected: Sequence[Expected]) -> Iterator[list[Expected]]:
    batch: list[Expected] = []
    for image in expected:
        if len(batch) == _BATCH or sum(len(e.request.image) for e in [*batch, image]) > MAX_IMAGES_BYTES:
            yield batch
            batch = []
        batch.append(image)
    yield batch


def _is_same(label: str, classes: np.ndarray, expected: Expected) -> bool:
    """Returns whether an answer is the expected one, but for the order of computation in batches of other sizes."""
    if not np.allclose(classes, expected.classes, atol=_TOLERANCE, rtol=_TOLERANCE):
        return False
    # A regression's label is its value; and of two equally probable classes either may be the best.
    *_, second, best = np.sort(expected.classes) if len(classes) > 1 else (0.0, 0.0)
    return label == expected.label or best - second <= 2 * _TOLERANCE


def _is_equally_novel(novelty: float | None, expected: float | None) -> bool:
    if novelty is None or expected is None:
        return novelty is expected
    return abs(novelty - expected) <= _NOVELTY_TOLERANCE


def _ask_rows(http: httpx.Client, instances: list[dict[str, Any]]) -> httpx.Response:
    return http.post(_PREDICT, json={"instances": instances})


def _ask_columns(http: httpx.Client, instances: list[dict[str, Any]]) -> httpx.Response:
    return http.post(
        _PREDICT, json={"inputs": {name: [instance[name] for instance in instances] for name in instances[0]}}
    )


def _ask_tensors(http: httpx.Client, instances: list[dict[str, Any]]) -> httpx.Response:
    tensors = []
    for name in instances[0]:
        values = [row[name]["b64"] if name == "input" else row[name] for row in instances]
        first = next((value for value in values if value is not None), 0.0)  # a number that is missing has no type
        kind = "INT64" if isinstance(first, int) else "FP32" if isinstance(first, float) else "BYTES"
        tensors.append({"name": name, "shape": [len(values)], "datatype": kind, "data": values})
    return http.post(_INFER, json={"inputs": tensors})


def _parse_answers(body: dict[str, Any]) -> list[tuple[list[float], str, float | None, str]]:
    if "predictions" in body:
        rows = body["predictions"]
        return [(row["classes"], row["label"], row.get("novelty"), row["metadata"]) for row in rows]
    if isinstance(body["outputs"], list):
        shape = {tensor["name"]: tensor["shape"] for tensor in body["outputs"]}
        columns = {tensor["name"]: tensor["data"] for tensor in body["outputs"]}
        columns["classes"] = np.reshape(columns["classes"], shape["classes"]).tolist()
    else:
        columns = body["outputs"]
    novelty = columns.get("novelty", [None] * len(columns["label"]))
    return list(zip(columns["classes"], columns["label"], novelty, columns["metadata"], strict=True))


def _build_bad_requests(good: Request) -> dict[str, _BadRequest]:
    """Returns requests that have to be refused, by what is wrong with them."""

    def body(**changes: Any) -> bytes:
        instance = encode_instance(good) | changes
        return json.dumps({"instances": [{k: v for k, v in instance.items() if v is not None}]}).encode()

    text, cut = (encode_instance(Request("", data))["input"] for data in (b"text", good.image[: len(good.image) // 2]))
    other = f"/v1/models/{_NAME}/versions/0:predict"
    return {
        "a body that is not JSON": (_PREDICT, b"{", 400, "not JSON"),
        "an unknown field": (_PREDICT, b'{"x": 1}', 400, "'x' is not known"),
        "no instances": (_PREDICT, b'{"instances": []}', 400, "nothing to predict"),
        "an instance without an image": (_PREDICT, body(input=None), 400, "'input' is missing"),
        "metadata of a wrong type": (_PREDICT, body(metadata=1), 400, "'metadata' has to be a string"),
        "bad base64": (_PREDICT, body(input={"b64": "!"}), 400, "not valid base64"),
        "a file that is not an image": (_PREDICT, body(input=text), 400, "not an image"),
        "half an image": (_PREDICT, body(input=cut), 400, "image"),
        "a version that is not served": (other, body(), 404, "is not served"),
    }


def _find_wrong_refusals(http: httpx.Client, bad: Mapping[str, _BadRequest]) -> Iterator[str]:
    for kind, (path, body, status, reason) in bad.items():
        response = http.post(path, content=body)
        if response.status_code != status or reason not in response.text:
            answer = response.text[:_LOG_CHARACTERS]
            yield f"asked with {kind}, it answered with status {response.status_code}, not {status}: {answer}"


def _measure_latency(http: httpx.Client, expected: Sequence[Expected]) -> tuple[float, float]:
    times = []
    for number in range(_LATENCY_REQUESTS):
        body = {"instances": [encode_instance(expected[number % len(expected)].request)]}
        start = time.perf_counter()
        http.post(_PREDICT, json=body).raise_for_status()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]
