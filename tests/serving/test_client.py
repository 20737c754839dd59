"""The client, against a server that answers as it is told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from imagepipe.base.errors import ModelError
from imagepipe.serving import client
from imagepipe.serving.types import Failure, Prediction, Request

ROW = {"classes": [0.25, 0.75], "label": "b", "score": 0.75, "metadata": "x"}
ANSWER = (200, {"predictions": [ROW]})

HEADERS: list[tuple[str | None, str]] = []
DESCRIBED = {"/v1/models/m/metadata": {"labels": ["a", "b"]}}


@pytest.fixture
def told():
    """A list of (status, body) to answer with, one a POST; and what was asked."""
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
    (answer,) = client.Client(f"{url}/v1/models/m").predict_requests([Request("x", b"image", {"weight": 2})])
    return answer


def test_a_busy_server_is_asked_again_and_the_answer_is_by_name(told):
    url, answers, asked = told
    answers += [(503, {"error": "busy"}), (503, b"no JSON"), ANSWER]
    assert ask(url) == Prediction("x", "b", 0.75, {"b": 0.75, "a": 0.25}, ("b",))
    body = {"instances": [{"input": {"b64": "aW1hZ2U="}, "metadata": "x", "weight": 2}]}
    assert asked == [("/v1/models/m:predict", body)] * 3


def test_scores_have_the_names_of_the_version_that_gave_them(told, monkeypatch):
    url, answers, asked = told
    path = "/v1/models/swapped"
    monkeypatch.setitem(DESCRIBED, f"{path}/metadata", {"model_spec": {"version": "1"}, "labels": ["a", "b"]})
    endpoint = client.Client(url + path)
    monkeypatch.setitem(DESCRIBED, f"{path}/metadata", {"model_spec": {"version": "2"}, "labels": ["b", "c"]})
    answers += [(404, {"error": "version 1 is not served"}), (200, {"predictions": [ROW | {"label": "c"}]})]
    (answer,) = endpoint.predict_requests([Request("x", b"image")])
    assert answer == Prediction("x", "c", 0.75, {"c": 0.75, "b": 0.25}, ("c",))
    assert [where for where, _ in asked] == [f"{path}/versions/1:predict", f"{path}/versions/2:predict"]


def test_a_server_that_stays_busy_is_given_up_with_its_words(told):
    url, answers, asked = told
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
def test_nothing_else_is_asked_again(told, status, body, words):
    url, answers, asked = told
    answers.append((status, body))
    failure = ask(url)
    assert isinstance(failure, Failure)
    assert words in failure.error
    assert len(asked) == 1


def test_a_server_of_several_models_wants_to_be_told_which(told):
    with pytest.raises(ModelError, match=r"serves m, n: give its URL"):
        client.Client(told[0])


def test_a_server_without_names_has_numbers_and_the_label_that_it_says(told):
    url, answers, _ = told
    answers.append((200, {"predictions": [ROW]}))
    (answer,) = client.Client(f"{url}/v1/models/n").predict_requests([Request("x", b"")])
    assert isinstance(answer, Prediction)
    assert (answer.classes, answer.labels) == ({"b": 0.75, "0": 0.25}, ("b",))


class Token(httpx.Auth):
    def auth_flow(self, request):
        request.headers["Authorization"] = "Bearer secret"
        yield request


def test_a_service_that_describes_nothing_is_asked_with_credentials_and_names_that_are_given(told):
    url, answers, asked = told
    answers += [(429, {"error": {"message": "quota"}}), ANSWER]
    endpoint = client.Client(f"{url}/v1/endpoints/5", Token(), ["a", "b"], {"Host": "digits.example"}, ["input"])
    (answer,) = endpoint.predict_requests([Request("x", b"image", {"width": 2})])
    assert answer == Prediction("x", "b", 0.75, {"b": 0.75, "a": 0.25}, ("b",))
    assert asked == [("/v1/endpoints/5:predict", {"instances": [{"input": {"b64": "aW1hZ2U="}}]})] * 2
    assert HEADERS == [("Bearer secret", "digits.example")] * 2


@pytest.mark.parametrize("names", [["a", "c"], ["a", "b", "c"], []])
def test_names_of_another_version_than_the_one_that_answered_are_not_given_to_its_scores(told, names):
    url, answers, _ = told
    answers.append(ANSWER)
    (answer,) = client.Client(f"{url}/v1/endpoints/5", labels=names).predict_requests([Request("x", b"image")])
    assert answer == Prediction("x", "b", 0.75, {"b": 0.75, "0": 0.25}, ("b",))


def test_a_value_is_said_by_the_targets_name():
    assert client._split_label("3.5", {"price": 3.5}) == ("price",)
    assert client._split_label("b|a", {"a": 0.9, "b": 0.8, "c": 0.1}) == ("a", "b")
    assert client._split_label("", {"a": 0.1}) == ()
