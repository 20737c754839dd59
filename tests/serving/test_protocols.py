"""Parsers of requests: what a body may cost, whatever is in it."""

import base64
import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from imagepipe.serving import limits
from imagepipe.serving.protocols import format_rows, format_tensors, parse_rest, parse_v2
from imagepipe.serving.types import Answers, RequestError

FULL = limits.MAX_BODY_BYTES
SECONDS = 1.0  # of CPU, on a busy machine; other threads can't run for a part of it


pytestmark = pytest.mark.usefixtures("frozen_garbage")


@contextmanager
def bounded(is_parsed: bool = False) -> Iterator[None]:
    """Fails if the block takes more than SECONDS of CPU, or as much memory as a full body."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        yield
        assert time.thread_time() - start < SECONDS
        # orjson asks for 12 times a text's size, and fills what the values need: nothing that could be measured here.
        assert is_parsed or tracemalloc.get_traced_memory()[1] < FULL
    finally:
        tracemalloc.stop()


def fill(item: bytes, size: int = FULL) -> bytes:
    return item * (size // len(item))


FLOODS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty objects": (lambda: b'{"instances":[' + fill(b"{},") + b"{}]}", "too_many_values"),
    "empty lists": (lambda: b'{"instances":[' + fill(b"[],") + b"[]]}", "too_many_values"),
    "lists in lists": (lambda: fill(b"["), "too_many_values"),
    "objects in objects": (lambda: fill(b'{"a":'), "too_many_values"),
    "fields": (lambda: b"{" + b",".join(b'"%d":0' % n for n in range(FULL // 20)) + b"}", "too_many_values"),
    "long numbers": (lambda: b"[" + fill(b"1" * 4000 + b",") + b"0]", "not_json"),
    "a long number": (lambda: b"[0." + fill(b"1") + b"]", "wrong_type"),
    "a long string": (lambda: b'["' + fill(b"\\n") + b'"]', "wrong_type"),
    "spaces": (lambda: b"[" + fill(b" ") + b"]", "wrong_type"),
    "commas in a string": (lambda: b'["' + fill(b",") + b'"]', "too_many_values"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_body_of_any_content_is_refused_before_it_costs_much(name):
    build, kind = FLOODS[name]
    body = build()
    for parse in (parse_rest, parse_v2):
        with bounded(kind != "too_many_values"), pytest.raises(RequestError) as refused:
            parse(body)
        assert refused.value.kind == kind


def tensor(name: str, count: int, size: int) -> dict:
    return {"name": name, "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": size}}


def join_v2(tensors: list, contents: bytes) -> tuple[bytes, int]:
    head = json.dumps({"inputs": tensors}, separators=(",", ":")).encode()
    return head + contents, len(head)


def test_binary_tensors_are_parsed_in_linear_time():
    count, size = 500, 100_000
    contents = struct.pack("<I", size) + b"x" * size
    body, length = join_v2([tensor(str(n), 1, len(contents)) for n in range(count)], contents * count)
    start = time.thread_time()
    with pytest.raises(RequestError, match="'input' is missing"):
        parse_v2(body, length)
    assert time.thread_time() - start < SECONDS  # 4 s, as long as the rest of the body was copied for each


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ([tensor("input", 1, FULL)], "too_many_instances"),
        ([tensor(str(n), 128, 512) for n in range(10_000)], "too_many_features"),
        ([tensor(str(n), 128, 512) for n in range(514)], "wrong_type"),
        ([0] * 100_000, "wrong_type"),
        ([{}] * 50_000, "too_many_features"),
        ([{"name": "input", "shape": ["x"] * 100_000, "datatype": "BYTES", "data": ["x"]}], "wrong_type"),
    ],
)
def test_many_tensors_or_elements_are_refused_before_they_cost_much(tensors, kind):
    body, length = join_v2(tensors, bytes(FULL))
    with bounded(), pytest.raises(RequestError) as refused:
        parse_v2(body, length)
    assert refused.value.kind == kind


def test_what_is_allowed_fits_into_the_limits():
    """The maximum of images with hundreds of side features each, by all protocols."""
    image, names = base64.b64encode(b"image").decode(), [f"side-{n}" for n in range(500)]
    row = {"input": {"b64": image}, "metadata": "é" * limits.MAX_TEXT_CHARACTERS, **dict.fromkeys(names, 1.5)}
    rows, _ = parse_rest(json.dumps({"instances": [row] * limits.MAX_INSTANCES}).encode())
    assert [len(request.side) for request in rows] == [500] * limits.MAX_INSTANCES
    shape = [limits.MAX_INSTANCES]
    tensors = [{"name": name, "shape": shape, "datatype": "FP32", "data": [1.5] * shape[0]} for name in names]
    images = {"name": "input", "shape": shape, "datatype": "BYTES", "data": [image] * shape[0]}
    requests, _ = parse_v2(json.dumps({"inputs": [images, *tensors]}).encode("utf-8-sig"))
    assert [request.side for request in requests] == [dict.fromkeys(names, 1.5)] * limits.MAX_INSTANCES


def test_more_features_than_models_have_are_refused_before_their_values_are_read():
    """A body of a size that waits for no large one, in the thread that all common ones share."""
    names = [f"a{n}" for n in range(900)]
    images, zeros = [{"b64": ""}] * limits.MAX_INSTANCES, [0] * limits.MAX_INSTANCES
    row = {"input": images[0], **dict.fromkeys(names, 0)}
    kinds = {"shape": [limits.MAX_INSTANCES], "datatype": "INT64", "data": zeros}
    for parse, asked in (
        (parse_rest, {"inputs": {"input": images, **dict.fromkeys(names, zeros)}}),
        (parse_rest, {"instances": [row] * 100}),
        (parse_v2, {"inputs": [{"name": name, **kinds} for name in names]}),
    ):
        body = json.dumps(asked, separators=(",", ":")).encode()
        assert len(body) < limits.LARGE_BODY_BYTES * 2
        start = time.thread_time()
        with pytest.raises(RequestError, match="at most 512 side features") as refused:
            parse(body)
        assert refused.value.kind == "too_many_features"
        assert time.thread_time() - start < SECONDS / 10


@pytest.mark.parametrize("changes", [{"metadata": "x" * 4097}, {"side": "x" * 4097}, {"x" * 4097: 1}])
def test_texts_that_are_too_long_are_refused(changes):
    body = json.dumps({"instances": [{"input": {"b64": ""}} | changes]}).encode()
    with pytest.raises(RequestError, match="4,097 characters, and at most 4,096 are taken"):
        parse_rest(body)


def test_novelty_is_in_an_answer_only_if_the_model_has_it():
    answers = Answers(np.array([[0.25, 0.75]]), ["b"], np.array([0.75]), None, ["x"], "m", "1")
    row = {"classes": [0.25, 0.75], "label": "b", "score": 0.75, "metadata": "x"}
    assert format_rows(answers) == {"predictions": [row]}
    assert "novelty" not in [tensor["name"] for tensor in format_tensors(answers)["outputs"]]
    novel = replace(answers, novelty=np.array([0.5]))
    assert format_rows(novel) == {"predictions": [row | {"novelty": 0.5}]}
    tensor = {"name": "novelty", "shape": [1], "datatype": "FP32", "data": [0.5]}
    assert format_tensors(novel)["outputs"][-1] == tensor
