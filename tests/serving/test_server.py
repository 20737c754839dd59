"""The model server: real requests over loopback, by every protocol."""

import asyncio
import base64
import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from PIL import Image
from starlette.exceptions import HTTPException

import imagepipe
from imagepipe.base.errors import ModelError
from imagepipe.deploy import versions
from imagepipe.serving import engine, handler, limits, server, telemetry
from imagepipe.serving.client import Client
from imagepipe.serving.types import Failure, Prediction, Request
from tests.conftest import break_quantization_table, encode_image
from tests.serving.conftest import look_twice, save_brightness

PREDICT = "/v1/models/brightness:predict"
INFER = "/v2/models/brightness/infer"


def gray(value: int, kind: str = "PNG") -> bytes:
    return encode_image(Image.new("RGB", (20, 20), (value, value, value)), kind)


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


def instance(image: bytes, **rest) -> dict:
    return {"input": b64(image), **rest}


@pytest.fixture(scope="module")
def expected(served) -> list[Prediction]:
    return served.model.predict([Request("a", gray(10)), Request("b", gray(250, "JPEG"))])


@pytest.mark.parametrize(
    "path",
    [
        PREDICT,
        "/v1/models/brightness/versions/7:predict",
        "/v1/projects/p/models/brightness:predict",
        "/v1/projects/p/models/brightness/versions/7:predict",
        "/v1/endpoints/1/deployedModels/2:predict",
    ],
)
@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
def test_every_route_gives_the_answers_of_the_graph(served, expected, path, columns):
    images, ids = [b64(gray(10)), b64(gray(250, "JPEG"))], ["a", "b"]
    if columns:
        answer = served.http.post(path, json={"inputs": {"input": images, "metadata": ids}}).json()["outputs"]
        rows = [dict(zip(answer, values, strict=True)) for values in zip(*answer.values(), strict=True)]
    else:
        asked = [{"input": image, "metadata": name} for image, name in zip(images, ids, strict=True)]
        rows = served.http.post(path, json={"instances": asked, "signature_name": "serving_default"}).json()[
            "predictions"
        ]
    assert [(row["metadata"], row["label"]) for row in rows] == [("a", "dark"), ("b", "light")]
    for row, prediction in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(prediction.score)
        assert row["novelty"] == pytest.approx(prediction.novelty)
        assert 0 < row["novelty"] < 0.1
        assert row["classes"] == pytest.approx([prediction.classes[name] for name in ("dark", "light")])


def test_base64_is_taken_as_callers_write_it_by_both_protocols(served):
    plain, lines = b64(gray(250))["b64"], base64.encodebytes(gray(250)).decode()
    safe = plain.replace("+", "-").replace("/", "_")
    for text in (plain, lines, lines.replace("\n", "\r\n"), plain.rstrip("="), safe, f"data:image/png;base64,{plain}"):
        tensor = {"name": "input", "shape": [1], "datatype": "BYTES", "data": [text]}
        asked = {"instances": [{"input": {"b64": text}}, {"b64": text}]}
        rows = served.http.post(PREDICT, json=asked).json()["predictions"]
        outputs = served.http.post(INFER, json={"inputs": [tensor]}).json()["outputs"]
        assert [*(row["label"] for row in rows), *outputs[1]["data"]] == ["light"] * 3


def test_an_image_of_any_format_that_ingest_takes_is_answered(served):
    for kind in ("WEBP", "GIF", "TIFF", "BMP"):
        answer = served.http.post(PREDICT, json={"instances": [instance(gray(250, kind))]}).json()
        assert answer["predictions"][0]["label"] == "light", kind
        assert answer["predictions"][0]["metadata"] == ""


def test_the_maximum_of_images_in_a_request_is_answered_in_order(served):
    values = [10 if n % 3 else 250 for n in range(limits.MAX_INSTANCES)]
    asked = [instance(gray(value), metadata=str(n)) for n, value in enumerate(values)]
    rows = served.http.post(PREDICT, json={"instances": asked}).json()["predictions"]
    assert [row["label"] for row in rows] == ["dark" if value == 10 else "light" for value in values]
    assert [row["metadata"] for row in rows] == [str(n) for n in range(limits.MAX_INSTANCES)]
    figures = dict(line.rsplit(" ", 1) for line in served.http.get("/metrics").text.splitlines() if line[0] != "#")
    assert figures['imagepipe_batch_size_bucket{le="32.0"}'] == figures['imagepipe_batch_size_bucket{le="+Inf"}']


def test_kserves_own_client_is_answered_by_both_protocols(served, expected):
    async def ask() -> tuple:
        rest = {protocol: InferenceRESTClient(RESTConfig(protocol=protocol, timeout=60)) for protocol in ("v1", "v2")}
        rows = await rest["v1"].infer(served.url, {"instances": [instance(gray(10))]}, model_name="brightness")
        image = InferInput("input", [2], "BYTES", [b64(gray(10))["b64"], b64(gray(250, "JPEG"))["b64"]])
        ids = InferInput("metadata", [2], "BYTES", ["a", "b"])
        request = InferRequest("brightness", [image, ids], request_id="42")
        tensors = await rest["v2"].infer(served.url, request, model_name="brightness")
        return rows, tensors, await rest["v2"].is_model_ready(served.url, "brightness")

    rows, tensors, ready = asyncio.run(ask())
    assert rows["predictions"][0]["label"] == "dark"
    assert ready
    assert tensors.id == "42"
    outputs = {output.name: output for output in tensors.outputs}
    assert outputs["label"].data == ["dark", "light"]
    assert outputs["metadata"].data == ["a", "b"]
    np.testing.assert_allclose(
        outputs["novelty"].as_numpy(), [prediction.novelty for prediction in expected], rtol=1e-5
    )
    scores = [[prediction.classes[name] for name in ("dark", "light")] for prediction in expected]
    np.testing.assert_allclose(outputs["classes"].as_numpy(), scores, rtol=1e-5)


def test_the_binary_form_of_v2_takes_the_bytes_of_images(served):
    packed = b"".join(struct.pack("<I", len(x)) + x for x in (gray(250), gray(10)))
    tensor = {"name": "input", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(packed)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer = served.http.post(INFER, content=head + packed, headers=headers).json()
    assert answer["outputs"][1]["data"] == ["light", "dark"]
    for cut in (1, len(packed) - 3):  # in the last element, and in the first length
        refused = served.http.post(INFER, content=(head + packed)[:-cut], headers=headers)
        assert (refused.status_code, "binary_data_size" in refused.json()["error"]) == (400, True)


TRITON = """
import sys
import numpy as np
from tritonclient import http

images = http.InferInput("input", [2], "BYTES")
images.set_data_from_numpy(np.array([open(name, "rb").read() for name in sys.argv[2:]], object))
with http.InferenceServerClient(sys.argv[1]) as client:
    for outputs in (None, [http.InferRequestedOutput("label")]):
        for packed in (None, "gzip"):
            answer = client.infer("brightness", [images], outputs=outputs, request_compression_algorithm=packed)
            print(answer.as_numpy("label").tolist())
"""


def test_tritons_client_by_http_is_answered_in_binary(served, tmp_path):
    names = [tmp_path / "light.png", tmp_path / "dark.png"]
    for name, value in zip(names, (250, 10), strict=True):
        name.write_bytes(gray(value))
    address = str(served.http.base_url).removeprefix("http://")
    command = [sys.executable, "-c", TRITON, address, *names]  # gevent's loop is not for a process with others
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout.splitlines() == ["[b'light', b'dark']"] * 4, done.stderr


def test_the_server_describes_the_model(served):
    status = served.http.get("/v1/models/brightness").json()
    assert status["ready"] is True
    assert status["model_version_status"][0]["version"] == "7"
    described = served.http.get("/v1/models/brightness/metadata").json()
    assert described["labels"] == ["dark", "light"]
    assert set(described["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]) == {
        "input",
        "metadata",
    }
    described = served.http.get("/v2/models/brightness").json()
    assert [x["name"] for x in described["inputs"]] == ["input", "metadata"]
    assert [x["name"] for x in described["outputs"]] == ["classes", "label", "score", "metadata", "novelty"]
    assert served.http.get("/alive").status_code == 200
    assert served.http.get("/v1/models").json() == {"models": ["brightness"]}
    assert served.http.get("/v2").json() == {
        "name": "imagepipe",
        "version": imagepipe.__version__,
        "extensions": ["binary_tensor_data"],
    }


def large_png(height: int) -> bytes:
    return encode_image(Image.new("RGB", (10_000, height)), "PNG")


REFUSALS = {
    "no JSON": (b"{", 400, "the body is not JSON"),
    "deep JSON": (b"[" * 100_000, 400, "the body is not JSON"),
    "no object": ([1], 400, "expected an object"),
    "an unknown field": ({"instances": [], "x": 1}, 400, "'x' is not known"),
    "both formats": ({"instances": [], "inputs": {}}, 400, "either 'instances'"),
    "another signature": ({"instances": [], "signature_name": "x"}, 400, "'signature_name' has to be serving_default"),
    "no instances": ({"instances": []}, 400, "nothing to predict"),
    "a long unknown field": ({"x" * 2**20: 1}, 400, "xxx"),
    "too many instances": ({"instances": [instance(b"")] * 129}, 400, "at most 128"),
    "no list": ({"instances": {}}, 400, "'instances' has to be a list"),
    "no input": ({"instances": [instance(gray(1)), {"metadata": "x"}]}, 400, "instance 1: 'input' is missing"),
    "an unknown feature": ({"instances": [instance(gray(1), x=1)]}, 400, "instance 0: 'x' is not known; the model"),
    "metadata of a wrong type": ({"instances": [instance(gray(1), metadata=1)]}, 400, "'metadata' has to be a string"),
    "input of a wrong type": ({"instances": [{"input": "text"}]}, 400, "instance 0: 'input' has to be an object"),
    "bad base64": ({"instances": [{"input": {"b64": "é"}}]}, 400, "instance 0: 'input' is not valid base64"),
    "no image": ({"instances": [instance(b"text")]}, 400, "instance 0: not an image"),
    "an empty image": ({"instances": [instance(b"")]}, 400, "instance 0: empty file"),
    "a cut image": ({"instances": [instance(gray(1)), instance(gray(1, "JPEG")[:-9])]}, 400, "instance 1: truncated"),
    "an image that only decoders find broken": (
        {"instances": [instance(gray(1)), instance(break_quantization_table(gray(1, "JPEG")))]},
        400,
        "instance 1: broken",
    ),
    "a huge image": (
        {"instances": [instance(large_png(5_001))]},
        400,
        "instance 0: over the limit of 50 megapixels: it has 50.0",
    ),
    "columns of different lengths": ({"inputs": {"input": [], "metadata": [""]}}, 400, "different lengths"),
    "columns without input": ({"inputs": {"metadata": [""]}}, 400, "'input' is missing"),
    "no columns": ({"inputs": 1}, 400, "'inputs' has to be an object"),
    "a name that is no text": (
        {"instances": [instance(gray(1), metadata="\ud800")]},
        400,
        "the body is not JSON",
    ),
    "a field that is no text": (b'{"\\ud800": 1}', 400, "the body is not JSON"),
    "many large images": ({"instances": [instance(large_png(5_000))] * 9}, 400, "at most 400 are taken at once"),
    "a large body": (b" " * (limits.MAX_BODY_BYTES + 1), 413, "the body is larger than 64 MiB"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_request_is_refused_with_its_reason(served, case):
    body, status, words = REFUSALS[case]
    response = served.http.post(PREDICT, content=body if isinstance(body, bytes) else json.dumps(body).encode())
    assert (response.status_code, words in response.json()["error"]) == (status, True), response.text
    assert len(response.json()["error"]) <= limits.MAX_ERROR_CHARACTERS  # whatever it quotes


def test_a_large_body_without_a_length_is_refused_on_the_way(served):
    response = served.http.post(PREDICT, content=(bytes(2**20) for _ in range(65)))
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([], "'input' is missing"),
        ([{"name": "input", "shape": [2], "datatype": "BYTES", "data": ["x"]}], "expected [n]"),
        ([{"name": "input", "shape": [1, 3], "datatype": "BYTES", "data": ["x"]}], "expected [n]"),
        ([{"name": "input", "shape": [1], "datatype": "FP32", "data": [1.0]}], "'input' has to be of BYTES"),
        ([{"name": "input", "shape": [1], "datatype": "BYTES", "data": [1]}], "a value that is no BYTES: 1"),
        ([{"name": "input", "shape": [1], "datatype": "BYTES"}], "inputs.0: 'data' is missing"),
        ([{"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": -1}}], "doesn't fit"),
    ],
)
def test_a_bad_request_of_v2_is_refused_with_its_reason(served, tensors, words):
    response = served.http.post(INFER, json={"inputs": tensors})
    assert response.status_code == 400
    assert words in response.json()["error"]


@pytest.mark.parametrize("kind", [ValueError, NotImplementedError, MemoryError])
@pytest.mark.parametrize("method", ["check", "answer"])
def test_an_unexpected_error_is_not_told_to_the_caller(served, kind, method, monkeypatch, caplog):
    def fail(*_, **__):
        raise kind("secret")

    monkeypatch.setattr(engine.Engine, method, fail)
    for path, asked in (
        (PREDICT, {"instances": [instance(gray(10))]}),
        (INFER, {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [b64(gray(10))["b64"]]}]}),
    ):
        answer = httpx.post(served.url + path, json=asked, timeout=60)  # the connection is closed after such an answer
        assert (answer.status_code, answer.json()) == (
            500,
            {"error": "the model could not answer; see the server's log"},
        )
    assert "a request could not be answered" in caplog.text
    assert "secret" in caplog.text


def test_it_answers_to_the_name_that_it_was_given_and_to_the_address_of_it(served):
    status = {name: served.http.get("/v1/models", headers={"Host": name}).status_code for name in ("127.1", "127.2")}
    assert status == {"127.1": 200, "127.2": 400}


def test_other_models_and_versions_are_not_found(served):
    for path in ("/v1/models/x:predict", "/v1/models/brightness/versions/8:predict"):
        response = served.http.post(path, json={"instances": [instance(gray(1))]})
        assert response.status_code == 404
        assert "brightness" in response.json()["error"] or "version 7" in response.json()["error"]
    assert served.http.get("/x").json() == {"error": "Not Found"}
    assert served.http.post("/v1/models/brightness:explain", content=b"{").status_code == 404
    assert served.http.post("/v2/repository/models/brightness/unload").status_code == 403
    assert served.http.get("/v1/models/brightness").status_code == 200


def test_a_version_is_asked_for_by_its_number_whatever_zeros_its_folder_has():
    live = SimpleNamespace(version="007")
    asked_of = handler.Handler(SimpleNamespace(engine=live), "m", SimpleNamespace())  # type: ignore[arg-type]
    for version in (None, "7", "007"):
        assert asked_of.find_engine("m", version) is live
    for version in ("8", "-7", "x", "", "9" * 5000):
        with pytest.raises(HTTPException):
            asked_of.find_engine("m", version)


@pytest.fixture
def slow(served, tmp_path):
    """The server has a network that takes longer to answer than requests take to come."""

    def wait_for(version: int) -> None:
        deadline = time.monotonic() + 60
        while f"imagepipe_model_version {version}.0" not in served.http.get("/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    (served.folder / "8").symlink_to(save_brightness(tmp_path / "8", tmp_path / "assets", rounds=5))
    wait_for(8)
    yield served
    (served.folder / "8").unlink()
    wait_for(7)


def test_requests_at_the_same_time_share_batches_and_a_bad_one_fails_alone(slow):
    def ask(number: int) -> tuple[int, str]:
        image = b"text" if number % 10 == 0 else gray(255 * (number % 2))
        response = slow.http.post(PREDICT, json={"instances": [instance(image, metadata=str(number))]})
        row = response.json().get("predictions", [{}])[0]
        assert row.get("metadata", str(number)) == str(number)
        return response.status_code, row.get("label", "")

    earlier = batches(slow)
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(200)))
    expected = [(400, "") if n % 10 == 0 else (200, "light" if n % 2 else "dark") for n in range(200)]
    assert answers == expected
    count, images = (now - then for now, then in zip(batches(slow), earlier, strict=True))
    assert images == 180
    assert count < 180


def batches(served) -> tuple[int, int]:
    lines = served.http.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return int(float(values["imagepipe_batch_size_count"])), int(float(values["imagepipe_batch_size_sum"]))


def test_metrics_count_requests_by_route_and_refusals_by_reason(served):
    served.http.post(PREDICT, json={"instances": [{}]})
    figures = served.http.get("/metrics").text
    assert 'imagepipe_requests_total{route="/v1/models/{name}:predict",status="400"}' in figures
    assert 'imagepipe_refused_total{reason="missing_input"}' in figures
    assert "imagepipe_model_version 7.0" in figures
    assert f'imagepipe_private_memory_bytes{{pid="{os.getpid()}"}}' in figures


KINDS = {
    "*/*": "text/plain; version=0.0.4; charset=utf-8",
    "application/openmetrics-text": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}


def test_metrics_are_read_beside_the_thread_that_answers_probes(served, monkeypatch):
    """The memory of the process takes the system 30 to 200 ms."""
    loops: list[asyncio.AbstractEventLoop | None] = []
    monkeypatch.setattr(telemetry, "read_private_memory", lambda _: loops.append(asyncio._get_running_loop()))
    answers = {accept: served.http.get("/metrics", headers={"Accept": accept}) for accept in KINDS}
    kinds = {accept: answer.headers["content-type"] for accept, answer in answers.items()}
    assert loops == [None] * len(KINDS)
    assert kinds == KINDS


def read_figures(served) -> dict[str, float]:
    lines = served.http.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_every_refusal_counts_with_its_request(served):
    own = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    asked = [
        ("GET", "/v1/models", {"Host": "other.example"}, b"", 400, "unknown_host"),
        ("POST", PREDICT, own, b"", 403, "foreign_page"),
        ("POST", PREDICT, {}, b"{", 400, "not_json"),
        ("POST", "/v2/repository/models/brightness/load", {}, b"", 403, "status_403"),
        ("POST", "/v1/models/brightness:explain", {}, b"", 404, "status_404"),
        ("GET", INFER, {}, b"", 405, "status_405"),
        ("GET", "/nothing", {}, b"", 404, "status_404"),
        ("POST", PREDICT, {"Content-Encoding": "br"}, b"x", 415, "status_415"),
    ]
    earlier = read_figures(served)
    for method, path, headers, content, status, reason in asked:
        answer = served.http.request(method, path, headers=headers, content=content)
        assert (answer.status_code, "error" in answer.json()) == (status, True), path
        figures = read_figures(served)
        new = {name: value - earlier.get(name, 0) for name, value in figures.items() if value != earlier.get(name, 0)}
        assert {name for name in new if name.startswith("imagepipe_refused_total")} == {
            f'imagepipe_refused_total{{reason="{reason}"}}'
        }
        assert [name for name in new if name.startswith("imagepipe_requests_total") and f'status="{status}"' in name]
        earlier = figures


def test_every_answer_has_the_requests_id(served, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError

    body = {"instances": [instance(gray(10))]}
    for method, path, json_body, headers, status in (
        ("POST", PREDICT, body, {}, 200),
        ("POST", PREDICT, {}, {}, 400),
        ("GET", "/v1/models", None, {"Host": "other.example"}, 400),
        ("POST", PREDICT, body, {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", "/nothing", None, {}, 404),
        ("GET", "/v2/health/ready", None, {}, 200),
    ):
        with caplog.at_level("INFO", "imagepipe.access"):
            caplog.clear()
            answer = served.http.request(method, path, json=json_body, headers=headers | {"X-Request-Id": "trace-1"})
            assert (answer.status_code, answer.headers.get_list("X-Request-Id")) == (status, ["trace-1"]), path
            wait_until(lambda: list_logged(caplog))
            assert [line["request_id"] for line in list_logged(caplog)] == ["trace-1"]
    monkeypatch.setattr(engine.Engine, "check", fail)
    answer = httpx.post(served.url + PREDICT, json=body, headers={"X-Request-Id": "trace-2"}, timeout=60)
    assert (answer.status_code, answer.headers.get_list("X-Request-Id")) == (500, ["trace-2"])
    assert len(served.http.get("/v1/models").headers["X-Request-Id"]) == 32


def list_logged(caplog) -> list[dict]:
    """The lines of the access log, which are written after the answers."""
    return [record.fields for record in caplog.records if record.name == "imagepipe.access"]


def wait_until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_head_is_answered_as_get_is_without_the_content(served):
    for path in ("/", "/docs", "/v2/health/live", "/v2/health/ready", "/alive", "/v1/models/brightness", "/v2"):
        answer, whole = served.http.head(path), served.http.get(path)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert answer.headers["Content-Length"] == str(len(whole.content)), path
    assert served.http.head(INFER).status_code == 405
    assert served.http.head("/nothing").status_code == 404


def test_the_log_has_a_line_per_request_without_its_content(served, caplog):
    with caplog.at_level("INFO", "imagepipe.access"):
        served.http.post(f"{PREDICT}?secret=1", json={"instances": [instance(gray(1))] * 3})
        wait_until(lambda: list_logged(caplog))
    (fields,) = list_logged(caplog)
    assert {name: fields[name] for name in ("method", "path", "status", "instances")} == {
        "method": "POST",
        "path": PREDICT,
        "status": 200,
        "instances": 3,
    }
    assert "secret" not in json.dumps(fields)


def test_the_client_takes_paths_and_bytes_and_passes_on_the_servers_reasons(served, tmp_path):
    (tmp_path / "a.png").write_bytes(gray(250))
    with Client(served.url) as client:
        light, dark, missing = client.predict([tmp_path / "a.png", gray(10), str(tmp_path / "none.png")])
    assert isinstance(light, Prediction)
    assert (light.id, light.label, light.labels) == (str(tmp_path / "a.png"), "light", ("light",))
    assert isinstance(dark, Prediction)
    assert (dark.id, list(dark.classes)) == ("1", ["dark", "light"])
    assert isinstance(missing, Failure)
    with Client(f"{served.url}/v1/models/brightness:predict") as client:
        refused, answered = client.predict_requests([Request("x", b"text"), Request("y", gray(1), {"width": 1})])
    assert isinstance(refused, Failure)
    assert refused.error.startswith("status 400: instance 0: not an image")
    assert isinstance(answered, Prediction)  # the model does not take all that ingest writes into an Example


def test_the_api_asks_a_server_about_paths_bytes_and_arrays_and_closes_its_connections(served, tmp_path):
    (tmp_path / "a.png").write_bytes(gray(250))
    array = np.asarray(Image.open(tmp_path / "a.png"))
    with imagepipe.Client(served.url) as client:
        answers = client.predict([str(tmp_path / "a.png"), gray(250), array, array[..., 0]])
    assert [answer.id for answer in answers] == [str(tmp_path / "a.png"), "1", "2", "3"]
    light, *others, failed = answers
    assert isinstance(light, Prediction)
    assert [dataclasses.replace(other, id=light.id) for other in others] == [light] * 2
    assert failed == Failure("3", "expected an array uint8 [height, width, 3], not uint8 [20, 20]")
    with pytest.raises(RuntimeError, match="closed"):
        client.predict([gray(250)])


def test_a_full_queue_is_reported_and_no_accepted_request_is_lost(served, monkeypatch):
    monkeypatch.setattr(handler, "MAX_WAITING", 40)
    body = {"instances": [instance(gray(250))] * 20}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: served.http.post(PREDICT, json=body), range(32)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    assert all(answer.headers["Retry-After"] == "1" and "waiting" in answer.json()["error"] for answer in refused)
    taken = [answer for answer in answers if answer.status_code == 200]
    assert len(taken) + len(refused) == 32
    assert taken
    assert all([row["label"] for row in answer.json()["predictions"]] == ["light"] * 20 for answer in taken)


def test_versions_come_and_go_and_a_broken_one_is_refused(model, tmp_path):
    folder = tmp_path / "brightness"
    folder.mkdir()
    (folder / "7").symlink_to(model)
    served_model = engine.ServedModel(folder, "brightness", lambda size: None)
    old = served_model.engine
    ask = [Request("x", gray(250))]

    (folder / "8").mkdir()
    (folder / "8" / "saved_model.pb").write_bytes(b"no model")
    shutil.copytree(model, folder / "9")
    index = folder / "9" / "variables" / "variables.index"
    index.write_bytes(index.read_bytes()[:-20])  # TensorFlow has an exception of its own for that
    look_twice(served_model)
    assert served_model.engine is old

    shutil.rmtree(folder / "9")
    save_brightness(folder / "9", tmp_path / "assets", ("night", "day"))
    look_twice(served_model)
    assert (served_model.engine.version, served_model.engine.ask(ask).labels) == ("9", ["day"])
    with ThreadPoolExecutor(8) as pool:  # both at once: neither is given the other's images
        labels = list(pool.map(lambda n: (served_model.engine if n % 2 else old).ask(ask).labels[0], range(200)))
    assert labels == ["light", "day"] * 100

    (folder / "9").rename(tmp_path / "gone")
    look_twice(served_model)
    assert (served_model.engine.version, served_model.engine.ask(ask).labels) == ("7", ["light"])


def test_a_version_is_loaded_when_its_copy_is_complete_and_its_growth_is_no_error(model, tmp_path, caplog):
    folder, copy = tmp_path / "brightness", tmp_path / "brightness" / "8"
    folder.mkdir()
    (folder / "7").symlink_to(model)
    served_model = engine.ServedModel(folder, "brightness", lambda size: None)
    files = sorted(file for file in model.rglob("*") if file.is_file())
    for file in files:
        target = copy / file.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        for part in (file.read_bytes()[:10], file.read_bytes()):
            target.write_bytes(part)
            served_model.refresh()
            assert served_model.engine.version == "7"
    served_model.refresh()
    assert served_model.engine.version == "8"
    assert "is refused" not in caplog.text


def test_a_copy_whose_files_are_renamed_at_this_moment_is_still_under_way(tmp_path, monkeypatch):
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / ".saved_model.pb.x7").touch()
    monkeypatch.setattr(Path, "lstat", lambda file: os.lstat(file.with_suffix("")))
    assert versions.describe_files(tmp_path / "8") != versions.describe_files(tmp_path / "8")


def test_at_the_start_the_newest_version_is_served_that_can_be(model, tmp_path, caplog):
    folder = tmp_path / "brightness"
    (folder / "9").mkdir(parents=True)  # a copy under way
    (folder / "7").symlink_to(model)
    served_model = engine.ServedModel(folder, "brightness", lambda size: None)
    assert served_model.engine.version == "7"
    for version in ("8", "10"):
        (folder / version).mkdir()
        look_twice(served_model)
    assert served_model.engine.version == "7"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert caplog.text.count("9 has no graph yet, and is passed over") == 1


def test_the_live_version_stays_while_its_graph_is_replaced(model, tmp_path, caplog):
    folder = tmp_path / "brightness"
    folder.mkdir()
    (folder / "6").symlink_to(model)
    shutil.copytree(model, folder / "7")
    served_model = engine.ServedModel(folder, "brightness", lambda size: None)
    (folder / "7" / "saved_model.pb").rename(tmp_path / "aside")
    look_twice(served_model)
    assert served_model.engine.version == "7"
    (folder / "6").unlink()
    look_twice(served_model)
    assert served_model.engine.version == "7"
    assert "refused" not in caplog.text


def test_a_refusal_passes_all_that_adds_to_answers(served):
    names = [middleware.cls.__name__ for middleware in server.app.user_middleware]
    assert names == ["AccessLog", "Guard", "LateAnswers", "BodyLimit", "ExceptionMiddleware"]


def test_a_versions_own_folder_is_served_by_its_number(model):
    assert engine.ServedModel(model, "brightness", lambda size: None).engine.version == "7"


def test_a_folder_without_a_model_that_works_is_refused(tmp_path):
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(ModelError, match="8 can't be loaded"):
        engine.ServedModel(tmp_path, "x", lambda size: None)
    with pytest.raises(ModelError, match="neither a SavedModel"):
        engine.ServedModel(Path(tmp_path / "8" / "none"), "x", lambda size: None)


def test_no_request_is_timed_for_a_log_that_nobody_reads(served):
    assert "TimingMiddleware" not in {middleware.cls.__name__ for middleware in server.app.user_middleware}
