"""Parsers of requests: what a body may cost, whatever is in it."""

import base64
import contextlib
import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from tritonclient import http as triton
from tritonclient.utils import np_to_triton_dtype

from imagepipe.serving import limits, protocols
from imagepipe.serving.protocols import format_rows, format_tensors, parse_rest, parse_v2
from imagepipe.serving.types import Answers, Request, RequestError

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


@pytest.mark.parametrize(
    ("datatype", "item", "shape"),
    [("INT64", "1", [60_000]), ("BYTES", '""', [40_000]), ("INT64", "[1]", [30_000, 1]), ("INT64", "1", [1] * 60_000)],
)
def test_more_values_than_images_can_have_are_refused_before_they_are_looked_at(monkeypatch, datatype, item, shape):
    monkeypatch.setattr(protocols.tensors, "check_values", lambda *_: pytest.fail("their values were checked"))
    data = f"[{','.join([item] * shape[0])}]" if len(shape) < 3 else "[1, 1]"
    head = json.dumps({"name": "x", "shape": shape, "datatype": datatype}, separators=(",", ":"))
    body = f'{{"inputs": [{head[:-1]}, "data": {data}}}]}}'.encode()
    assert len(body) < limits.SMALL_BODY_BYTES * 1.1
    with pytest.raises(RequestError, match=r"at most 128|has shape") as refused:
        parse_v2(body)
    assert len(str(refused.value)) < 200


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


ANSWERS = Answers(
    np.array([[0.25, 0.75], [1, 0]], np.float32), ["ü", ""], np.array([0.75, 1]), None, ["x", "y"], "m", "1"
)


def binary(inputs: dict[str, np.ndarray]) -> list[triton.InferInput]:
    tensors = [triton.InferInput(name, list(x.shape), np_to_triton_dtype(x.dtype)) for name, x in inputs.items()]
    for tensor, values in zip(tensors, inputs.values(), strict=True):
        tensor.set_data_from_numpy(values)
    return tensors


def ask_as_triton(
    inputs: dict[str, np.ndarray], outputs: list | None = None
) -> tuple[list[Request], triton.InferResult]:
    """Returns the requests that Triton's client sends, all in binary as it does by default, and the answer it reads."""
    body = triton.InferenceServerClient.generate_request_body(binary(inputs), outputs=outputs)
    requests, format_answers = parse_v2(*body)
    body = format_answers(ANSWERS)
    head = json.dumps(body.header).encode()
    return requests, triton.InferenceServerClient.parse_response_body(head + body.data, header_length=len(head))


def test_tritons_client_sends_numbers_in_binary():
    numbers = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16}
    numbers |= {f"{kind.upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
    inputs = {name: np.array([[1], [0]], kind) for name, kind in numbers.items()}
    inputs["weight"] = np.array([0.5, np.nan], np.float32)
    inputs["input"], inputs["metadata"] = np.array([b"\xff", b""], object), np.array([b"a", b"b"], object)
    (first, second), _ = ask_as_triton(inputs)
    assert (first.image, first.id, second.id) == (b"\xff", "a", "b")
    assert first.side == dict.fromkeys(numbers, 1) | {"weight": 0.5}
    assert second.side == dict.fromkeys(numbers, 0) | {"weight": None}  # missing


def test_tritons_client_is_answered_in_the_form_that_it_asks_for():
    asked = {"input": np.array([b"a", b"b"], object)}
    _, answer = ask_as_triton(asked)  # all in binary
    assert [tensor["name"] for tensor in answer.get_response()["outputs"]] == ["classes", "label", "score", "metadata"]
    assert answer.as_numpy("classes").tolist() == ANSWERS.classes.tolist()
    assert answer.as_numpy("label").tolist() == ["ü".encode(), b""]
    _, answer = ask_as_triton(
        asked, [triton.InferRequestedOutput("score"), triton.InferRequestedOutput("label", False)]
    )
    score, label = answer.get_response()["outputs"]
    assert (score["parameters"], label["data"]) == ({"binary_data_size": 8}, ["ü", ""])
    assert answer.as_numpy("score").tolist() == [0.75, 1]
    for outputs, words in (
        ([triton.InferRequestedOutput("logits")], "no output 'logits'"),
        ([triton.InferRequestedOutput("novelty")], "no output 'novelty'"),  # of another model
        ([triton.InferRequestedOutput("label")] * 2, "the output 'label' is asked for twice"),
        ([triton.InferRequestedOutput("classes", class_count=2)], "'classification' is not known"),
    ):
        with pytest.raises(RequestError, match=words):  # before the model is asked
            parse_v2(*triton.InferenceServerClient.generate_request_body(binary(asked), outputs=outputs))
    for extension in ("classification", "shared_memory_region"):
        images = make_tensor() | {"parameters": {extension: 1}}
        with pytest.raises(RequestError, match=f"inputs.0: '{extension}' is not known"):
            parse_v2(json.dumps({"inputs": [images]}).encode())


@pytest.mark.parametrize(
    ("datatype", "contents", "reason"),
    [
        ("FP32", bytes(5), "5 bytes don't fit"),
        ("INT8", bytes(129), "129 bytes don't fit"),
        ("FP32", b"", "shape"),
        ("FP31", bytes(4), "unknown datatype: 'FP31'"),
    ],
)
def test_numbers_in_binary_have_to_fit(datatype, contents, reason):
    numbers = {**tensor("weight", 1, len(contents)), "datatype": datatype}
    body, length = join_v2([tensor("input", 1, 5), numbers], b"\x01\0\0\0x" + contents)
    with pytest.raises(RequestError, match=reason):
        parse_v2(body, length)


@pytest.mark.parametrize("fields", [{"outputs": [1]}, {"outputs": {"a": 1}}, {"outputs": [{"name": 1}]}])
def test_what_is_no_list_of_outputs_is_refused(fields):
    inputs = [{"name": "input", "shape": [1], "datatype": "BYTES", "data": [""]}]
    with pytest.raises(RequestError, match="outputs"):
        parse_v2(json.dumps({"inputs": inputs, **fields}).encode())


def make_tensor(data: object = ("",), datatype: str = "BYTES", shape: object = None, name: str = "input") -> dict:
    """A tensor of v2 in JSON; by default the image of a request."""
    return {"name": name, "shape": [len(data)] if shape is None else shape, "datatype": datatype, "data": data}


def parse_number(data: list, datatype: str, shape: object = None) -> list:
    """Returns the values of a tensor in JSON beside images."""
    asked = [make_tensor([""] * len(data)), make_tensor(data, datatype, shape, "weight")]
    return [request.side["weight"] for request in parse_v2(json.dumps({"inputs": asked}).encode())[0]]


def test_data_is_taken_flat_or_nested_as_the_shape_says():
    for nested, shape in ((["YQ==", "Yg=="], [2]), (["YQ==", "Yg=="], [2, 1]), ([["YQ=="], ["Yg=="]], [2, 1])):
        requests, _ = parse_v2(json.dumps({"inputs": [make_tensor(nested, shape=shape)]}).encode())
        assert [request.image for request in requests] == [b"a", b"b"]
    assert parse_number([[1], [2]], "INT8", [2, 1]) == [1, 2]
    for data, shape in (
        ([["YQ=="], ["Yg=="]], [2]),
        ([["YQ=="], "Yg=="], [2, 1]),
        ([["YQ==", "Yg=="]], [2, 1]),
        ([["YQ=="], []], [2, 1]),
        ([[["YQ=="]], [["Yg=="]]], [2, 1]),
        ([["YQ=="]], [2, 1]),
    ):
        with pytest.raises(RequestError, match="'input' has"):
            parse_v2(json.dumps({"inputs": [make_tensor(data, shape=shape)]}).encode())


def test_a_tensor_is_given_once():
    twice = [make_tensor(), make_tensor([1], "INT64", name="weight"), make_tensor([2], "INT64", name="weight")]
    with pytest.raises(RequestError, match="'weight' is given twice"):
        parse_v2(json.dumps({"inputs": twice}).encode())


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT64", [-(2**63) + 1, 2**63 - 1]),
        ("INT8", [-128, 127]),
        ("uint8", [0, 255]),
        ("INT64", [1.0]),  # as pandas writes whole numbers
        ("FP32", [1, 1.5, -2]),
        ("FP64", [None]),
        ("INT64", [1, None]),  # of a feature that isn't of whole numbers
        ("BYTES", ["a", ""]),
    ],
)
def test_values_of_a_datatype_are_taken(datatype, data):
    assert parse_number(data, datatype) == data


@pytest.mark.parametrize(
    ("datatype", "data", "words"),
    [
        ("JUNK", [1], "unknown datatype: 'JUNK'"),
        ("INT64", [1.5], "no INT64: 1.5"),
        ("UINT8", [1, 300], "no UINT8: 300"),
        ("UINT8", [-1], "no UINT8: -1"),
        ("INT64", [2**63], "no INT64: 9223372036854775808"),
        ("INT8", [True], "no INT8: True"),
        ("BOOL", [1], "no BOOL: 1"),
        ("FP32", [True], "no FP32: True"),
        ("FP32", ["1"], "no FP32: str"),
        ("FP32", [{"a": 1}], "no FP32: dict"),
        ("BYTES", [1], "no BYTES: 1"),
        ("BYTES", ["a", None], "no BYTES: None"),
        ("BYTES", ["a", ["x" * 9999]], "no BYTES: list"),
    ],
)
def test_values_of_another_datatype_are_refused(datatype, data, words):
    with pytest.raises(RequestError, match=f"'weight' has .*{words}") as refused:
        parse_number(data, datatype)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("shape", [[True], [1.0], [1, True], ["1"], [[1]], [], [1, 1, 1], [-1]])
def test_a_shape_has_whole_numbers(shape):
    with pytest.raises(RequestError, match=r"'weight' has (a )?shape"):
        parse_number([1], "INT64", shape)


# A request of each protocol in which any value may be another one, and one whose contents are binary.
REST_BODY = {"instances": [{"input": {"b64": "aGk="}, "metadata": "a", "x": 1}], "signature_name": "serving_default"}
COLUMNS_BODY = {"inputs": {"input": [{"b64": "aGk="}], "x": [1]}}
V2_BODY = {
    "id": "a",
    "parameters": {"binary_data_output": False},
    "outputs": [{"name": "label", "parameters": {"binary_data": False}}],
    "inputs": [
        {"name": "input", "shape": [1], "datatype": "BYTES", "data": ["aGk="], "parameters": {}},
        {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["hi"], "parameters": {"content_type": "str"}},
    ],
}
BINARY_BODY = {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 0}}]}


def replace_each(value, by):
    """Yields a value with one of what is in it replaced, for all that is in it."""
    yield by
    for key in range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ():
        for changed in replace_each(value[key], by):
            copy = value.copy()
            copy[key] = changed
            yield copy


@pytest.mark.parametrize(
    ("parse", "body"),
    [(parse_rest, REST_BODY), (parse_rest, COLUMNS_BODY), (parse_v2, V2_BODY), (parse_v2, BINARY_BODY)],
)
def test_deeply_nested_values_are_refused_wherever_they_are(parse, body):
    mark, deep = "@", ("[" * 1000 + "]" * 1000).encode()
    for changed in replace_each(body, mark):
        data = json.dumps(changed).encode().replace(b'"@"', deep)
        with contextlib.suppress(RequestError):  # what nobody reads may be there
            parse(data)
