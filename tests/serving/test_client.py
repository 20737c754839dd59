"""The client, against a server with scripted answers."""

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
import tenacity
from PIL import Image
from typer.testing import CliRunner

from imagepipe.base.errors import ModelError
from imagepipe.deploy.deployment import Address
from imagepipe.serving import client
from imagepipe.serving.client import Client
from imagepipe.serving.shrinking import shrink_image
from imagepipe.serving.types import Failure, Prediction, Request
from pipeline.cli import app
from tests.conftest import encode_image

ROW = {"classes": [0.25, 0.75], "label": "b", "score": 0.75, "metadata": "x"}
ANSWER = (200, {"predictions": [ROW]})

HEADERS: list[tuple[str | None, str]] = []
DESCRIBED = {"/v1/models/m/metadata": {"labels": ["a", "b"]}}


@pytest.fixture
def scripted():
    """A server's URL; a list of (status, body) to answer with, one per POST; and the requests that it got."""
    answers: list[tuple[int, object]] = []
    asked: list[tuple[str, object]] = []
    HEADERS.clear()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, DESCRIBED.get(self.path, {"models": ["m", "n"]}))

        def do_POST(self):
            HEADERS.append((self.headers["Authorization"], self.headers["Host"]))
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.answer(*answers.pop(0))

        def answer(self, status, body):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", answers, asked
        server.shutdown()


def ask(url: str) -> Prediction | Failure:
    with Client(f"{url}/v1/models/m") as model_client:
        (answer,) = model_client.predict_requests([Request("x", b"image", {"weight": 2})])
    return answer


def test_a_busy_server_is_asked_again_and_the_answer_is_by_name(scripted):
    url, answers, asked = scripted
    answers += [(503, {"error": "busy"}), (503, b"no JSON"), ANSWER]
    assert ask(url) == Prediction("x", "b", 0.75, {"b": 0.75, "a": 0.25}, ("b",))
    body = {"instances": [{"input": {"b64": "aW1hZ2U="}, "metadata": "x", "weight": 2}]}
    assert asked == [("/v1/models/m:predict", body)] * 3


def test_the_novelty_of_an_answer_is_passed_on_and_an_unknown_image_has_no_labels(scripted):
    url, answers, _ = scripted
    answers += [(200, {"predictions": [ROW | {"novelty": 0.995, "label": ""}]})]
    assert ask(url) == Prediction("x", "", 0.75, {"b": 0.75, "a": 0.25}, (), 0.995)


def test_scores_have_the_names_of_the_version_that_gave_them(scripted, monkeypatch):
    url, answers, asked = scripted
    path = "/v1/models/swapped"
    monkeypatch.setitem(DESCRIBED, f"{path}/metadata", {"model_spec": {"version": "1"}, "labels": ["a", "b"]})
    model_client = Client(url + path)
    monkeypatch.setitem(DESCRIBED, f"{path}/metadata", {"model_spec": {"version": "2"}, "labels": ["b", "c"]})
    answers += [(404, {"error": "version 1 is not served"}), (200, {"predictions": [ROW | {"label": "c"}]})]
    (answer,) = model_client.predict_requests([Request("x", b"image")])
    assert answer == Prediction("x", "c", 0.75, {"c": 0.75, "b": 0.25}, ("c",))
    assert [asked_path for asked_path, _ in asked] == [f"{path}/versions/1:predict", f"{path}/versions/2:predict"]


def test_a_server_that_stays_busy_is_given_up_with_its_reason(scripted):
    url, answers, asked = scripted
    answers += [(503, {"error": "256 images are waiting already"})] * 10
    assert ask(url) == Failure("x", "status 503: 256 images are waiting already")
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, {"error": "instance 0: truncated image"}, "status 400: instance 0: truncated image"),
        (403, {"error": {"code": 403, "message": "no right to", "status": "X"}}, "status 403: no right to"),
        (500, b"<html>", "status 500: Internal Server Error"),
        (200, b"<html>", "status 200: the answer is no object of JSON"),
        (200, {"predictions": []}, "not that of a model of this pipeline"),
        (200, {"predictions": [ROW | {"classes": [1.0]}]}, "not that of a model of this pipeline"),
    ],
)
def test_nothing_else_is_asked_again(scripted, status, body, words):
    url, answers, asked = scripted
    answers.append((status, body))
    failure = ask(url)
    assert isinstance(failure, Failure)
    assert words in failure.error
    assert len(asked) == 1


def test_a_server_of_several_models_needs_the_models_name(scripted):
    with pytest.raises(ModelError, match=r"serves m, n: give its URL"):
        Client(scripted[0])


def test_a_server_without_names_gives_numbers_and_the_label(scripted):
    url, answers, _ = scripted
    answers.append((200, {"predictions": [ROW]}))
    (answer,) = Client(f"{url}/v1/models/n").predict_requests([Request("x", b"")])
    assert isinstance(answer, Prediction)
    assert (answer.classes, answer.labels) == ({"b": 0.75, "0": 0.25}, ("b",))


class Token(httpx.Auth):
    def auth_flow(self, request):
        request.headers["Authorization"] = "Bearer secret"
        yield request


def test_a_service_that_describes_nothing_is_asked_with_given_credentials_and_names(scripted):
    url, answers, asked = scripted
    answers += [(429, {"error": {"message": "quota"}}), ANSWER]
    address = Address(f"{url}/v1/endpoints/5", Token(), ["a", "b"], {"Host": "digits.example"}, {"input": "string"})
    with Client.from_address(address) as model_client:
        (answer,) = model_client.predict_requests([Request("x", b"image", {"width": 2})])
    assert answer == Prediction("x", "b", 0.75, {"b": 0.75, "a": 0.25}, ("b",))
    assert asked == [("/v1/endpoints/5:predict", {"instances": [{"input": {"b64": "aW1hZ2U="}}]})] * 2
    assert HEADERS == [("Bearer secret", "digits.example")] * 2


def test_a_busy_server_is_asked_again_when_it_says_but_within_bounds():
    waits = []
    for attempt, retry_after in ((1, "1"), (2, "1"), (2, None), (5, "60"), (1, "soon")):
        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = attempt
        state.set_result(httpx.Response(503, headers={"Retry-After": retry_after} if retry_after else {}))
        waits.append(client._compute_wait(state))
    assert all(0 <= wait - least <= 0.1 for wait, least in zip(waits, (1, 2, 1, 10, 0.5), strict=True))


@pytest.mark.parametrize("names", [["a", "c"], ["a", "b", "c"], []])
def test_names_of_another_version_are_not_given_to_the_scores(scripted, names):
    url, answers, _ = scripted
    answers.append(ANSWER)
    (answer,) = Client(f"{url}/v1/endpoints/5", labels=names).predict_requests([Request("x", b"image")])
    assert answer == Prediction("x", "b", 0.75, {"b": 0.75, "0": 0.25}, ("b",))


def test_a_value_is_named_by_its_target():
    assert client._split_label("3.5", {"price": 3.5}) == ("price",)
    assert client._split_label("b|a", {"a": 0.9, "b": 0.8, "c": 0.1}) == ("a", "b")
    assert client._split_label("", {"a": 0.1}) == ()


def noise(side: int) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)
    return encode_image(Image.fromarray(pixels), "JPEG", quality=90)


def test_images_that_are_shrunk_at_the_same_time_are_all_counted():
    class SlowNumber(int):
        def __add__(self, other):
            time.sleep(0.01)
            return SlowNumber(int(self) + other)

    model_client = Client("http://127.0.0.1:1", labels=["a", "b"], max_bytes=10_000, image_size=(10, 10))
    model_client.shrunk = SlowNumber()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(model_client._fit, [Request("x", noise(200))] * 8))
    assert model_client.shrunk == 8


def test_a_photo_that_a_service_does_not_take_is_shrunk_but_not_below_what_the_model_sees(scripted):
    url, answers, asked = scripted
    answers += [ANSWER] * 3
    address = Address(f"{url}/v1/endpoints/5", labels=["a", "b"], max_bytes=100_000, image_size=(200, 150))
    small, large = noise(100), noise(900)
    assert len(large) > 500_000
    with Client.from_address(address) as model_client:
        requests = [Request(name, image) for name, image in (("small", small), ("large", large))]
        assert all(isinstance(answer, Prediction) for answer in model_client.predict_requests(requests))
        assert model_client.shrunk == 1
        demanding = Client.from_address(replace(address, image_size=(600, 100)))
        (failure,) = demanding.predict_requests([Request("x", large)])
        unknown = Client.from_address(replace(address, image_size=None))
        (other,) = unknown.predict_requests([Request("x", large)])
    images = sorted((base64.b64decode(body["instances"][0]["input"]["b64"]) for _, body in asked), key=len)
    assert images[0] == small
    assert 50_000 < len(images[1]) * 4 / 3 < 100_000
    with Image.open(io.BytesIO(images[1])) as shrunk:
        assert min(shrunk.size) >= 200
        assert shrunk.width == shrunk.height
    for refused in (failure, other):
        assert isinstance(refused, Failure)
        assert "and 100,000 are taken: too large" in refused.error


def test_a_photo_is_upright_after_shrinking():
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encode_image(Image.effect_noise((600, 400), 80).convert("RGB"), "JPEG", exif=exif, quality=95)
    shrunk = shrink_image(photo, 30_000, (50, 50))
    assert shrunk
    with Image.open(io.BytesIO(shrunk)) as image:
        assert image.width / image.height == pytest.approx(400 / 600, rel=0.02)
        assert image.getexif().get(0x0112, 1) == 1


def test_a_manifest_is_asked_in_the_types_that_the_server_describes(scripted, monkeypatch, tmp_path):
    url, answers, asked = scripted
    inputs = {
        "input": "DT_STRING",
        "metadata": "DT_STRING",
        "iso": "DT_INT64",
        "weight": "DT_FLOAT",
        "camera": "DT_STRING",
    }
    signature = {"inputs": {name: {"dtype": kind} for name, kind in inputs.items()}}
    described = {"labels": ["a", "b"], "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}}
    monkeypatch.setitem(DESCRIBED, "/v1/models/m/metadata", described)
    (tmp_path / "a.png").write_bytes(encode_image(Image.new("RGB", (2, 2)), "PNG"))
    (tmp_path / "t.csv").write_text("path,iso,weight,camera,id\na.png,100,NA,7,1\na.png,high,1,x,2\n")
    answers.append(ANSWER)
    result = CliRunner().invoke(app, ["predict", "--endpoint", f"{url}/v1/models/m", f"{tmp_path}/t.csv"])
    assert result.exit_code == 1, result.output
    assert "line 3: 'iso' is 'high'; the model needs a whole number there" in " ".join(result.stderr.split())
    assert "Passed over: columns that the model does not take: id" in result.stderr
    ((_, body),) = asked
    (row,) = body["instances"]
    assert {name: row[name] for name in inputs if name != "input"} == {
        "metadata": "a.png",
        "iso": 100,
        "weight": None,
        "camera": "7",
    }
