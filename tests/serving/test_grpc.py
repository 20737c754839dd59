"""The gRPC port: by its own clients as they come, with the answers, limits and metrics of the HTTP port."""

import asyncio
import base64
import contextlib
import importlib
import subprocess
import sys
import threading
import time
from functools import partial
from random import Random

import grpc
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from kserve.protocol.grpc import grpc_predict_v2_pb2 as v2
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from prometheus_client import REGISTRY
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from imagepipe.base.errors import ConfigError, ModelError
from imagepipe.serving import engine, grpc_port, grpc_protocols, handler, limits, messages
from imagepipe.serving.access import Access
from imagepipe.serving.answered import Recorder
from imagepipe.serving.bodies import TooBusyError
from imagepipe.serving.connections import PortHolder
from imagepipe.serving.types import RequestError
from tests.serving.test_server import INFER, PREDICT, gray, instance, list_logged, read_figures, wait_until

NAME = "brightness"


@pytest.fixture(scope="module")
def channel(served):
    with grpc.insecure_channel(served.grpc, [("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def inference(channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)


def make_infer(*images: bytes, **fields) -> v2.ModelInferRequest:
    request = v2.ModelInferRequest(model_name=NAME, **fields)
    for name, values in {"input": images, "metadata": [b"a", b"b", b"c"][: len(images)]}.items():
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
        tensor.contents.bytes_contents.extend(values)
    return request


def make_predict(*images: bytes) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = NAME
    request.inputs["input"].CopyFrom(tf.make_tensor_proto(list(images), shape=[len(images)]))
    return request


def refusal(call, request) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module")
def predictions(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def test_it_answers_the_open_inference_protocol_as_http_does(served, inference):
    images = gray(10), gray(250, "JPEG")
    asked = make_infer(*images, id="42")
    answer, call = inference.ModelInfer.with_call(asked, timeout=60, metadata=[("x-request-id", "trace-1")])
    assert dict(call.trailing_metadata())["x-request-id"] == "trace-1"
    assert (answer.model_name, answer.model_version, answer.id) == (NAME, "7", "42")
    outputs = {output.name: output for output in answer.outputs}
    assert list(outputs["label"].contents.bytes_contents) == [b"dark", b"light"]
    assert list(outputs["metadata"].contents.bytes_contents) == [b"a", b"b"]
    rows = served.http.post(PREDICT, json={"instances": [instance(image) for image in images]}).json()["predictions"]
    assert list(outputs["classes"].shape) == [2, 2]
    assert list(outputs["classes"].contents.fp32_contents) == pytest.approx(rows[0]["classes"] + rows[1]["classes"])
    assert list(outputs["novelty"].contents.fp32_contents) == pytest.approx([row["novelty"] for row in rows])
    chosen = make_infer(*images)
    chosen.outputs.add(name="score")
    assert [output.name for output in inference.ModelInfer(chosen, timeout=60).outputs] == ["score"]


TRITON = """
import sys
import numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
images = [open(name, "rb").read() for name in sys.argv[2:]]
inputs = [triton.InferInput("input", [2], "BYTES"), triton.InferInput("metadata", [2], "BYTES")]
inputs[0].set_data_from_numpy(np.array(images, object))
inputs[1].set_data_from_numpy(np.array([b"a", b"b"], object))
answer = client.infer("brightness", inputs, request_id="42", outputs=[
    triton.InferRequestedOutput(name) for name in ("label", "classes", "metadata")])
print(client.is_server_live(), client.is_server_ready(), client.is_model_ready("brightness", "7"))
print([tensor.name for tensor in client.get_model_metadata("brightness").inputs], client.get_server_metadata().name)
print(answer.as_numpy("label").tolist(), answer.as_numpy("metadata").tolist(), answer.as_numpy("classes").shape)
"""


def test_tritons_client_is_answered(served, tmp_path):
    names = [tmp_path / "dark.png", tmp_path / "light.png"]
    for name, value in zip(names, (10, 250), strict=True):
        name.write_bytes(gray(value))
    command = [sys.executable, "-c", TRITON, served.grpc, *names]  # its messages have the names of KServe's
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stdout.splitlines() == [
        "True True True",
        "['input', 'metadata'] imagepipe",
        "[b'dark', b'light'] [b'a', b'b'] (2, 2)",
    ], done.stderr


def test_tensorflow_servings_client_is_answered(channel, predictions):
    request = make_predict(gray(10), gray(250, "JPEG"))
    request.model_spec.version.value = 7
    answer = predictions.Predict(request, timeout=60)
    assert tf.make_ndarray(answer.outputs["label"]).tolist() == [b"dark", b"light"]
    assert tf.make_ndarray(answer.outputs["classes"]).shape == (2, 2)
    assert (answer.model_spec.name, answer.model_spec.version.value) == (NAME, 7)
    assert set(answer.outputs) == {"classes", "label", "score", "metadata", "novelty"}
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = NAME
    signatures = get_model_metadata_pb2.SignatureDefMap()
    predictions.GetModelMetadata(asked, timeout=60).metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def["serving_default"].inputs) == {"input", "metadata"}
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = NAME
    (state,) = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(asked, timeout=60).model_version_status
    assert (state.version, state.state) == (7, get_model_status_pb2.ModelVersionStatus.AVAILABLE)


def test_health_and_reflection_are_answered_as_probes_and_grpcurl_ask(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService"):
        asked = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(asked, timeout=60).status == health_pb2.HealthCheckResponse.SERVING
    described = ProtoReflectionDescriptorDatabase(channel)
    assert {"inference.GRPCInferenceService", "tensorflow.serving.ModelService"} <= set(described.get_services())
    file = described.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert "ModelInfer" in [method.name for method in file.service[0].method]


def change(**fields) -> v2.ModelInferRequest:
    request = make_infer(gray(250))
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def make_raw(*raw: bytes) -> v2.ModelInferRequest:
    request = v2.ModelInferRequest(model_name=NAME, raw_input_contents=raw)
    request.inputs.add(name="input", datatype="BYTES", shape=[1])
    return request


def make_tensor(**fields) -> v2.ModelInferRequest:
    request = make_infer(gray(250))
    request.inputs.add(**fields)
    return request


def ask_for(*names: str, **parameters: int) -> v2.ModelInferRequest:
    request = make_infer(gray(250))
    for name in names:
        output = request.outputs.add(name=name)
        for parameter, value in parameters.items():
            output.parameters[parameter].int64_param = value
    return request


def make_shared() -> v2.ModelInferRequest:
    request = make_infer(gray(250))
    request.inputs[0].parameters["shared_memory_region"].string_param = "x"
    return request


REFUSALS = {
    "another model": (change(model_name="x"), "NOT_FOUND", "only 'brightness'"),
    "another version": (change(model_version="8"), "NOT_FOUND", "version 7 is"),
    "no image": (make_infer(b"text"), "INVALID_ARGUMENT", "instance 0: not an image"),
    "no images": (make_infer(), "INVALID_ARGUMENT", "nothing to predict"),
    "too many images": (make_infer(*[b""] * 129), "INVALID_ARGUMENT", "at most 128"),
    "raw contents for other inputs": (make_raw(b"", b""), "INVALID_ARGUMENT", "1 inputs, and"),
    "raw contents that are cut": (make_raw(b"\x09\0\0\0abc"), "INVALID_ARGUMENT", "in the middle of an element"),
    "an unknown datatype": (make_tensor(name="x", datatype="é"), "INVALID_ARGUMENT", "unknown datatype"),
    "an unknown feature": (
        make_tensor(name="x", datatype="FP32", shape=[1], contents={"fp32_contents": [float("nan")]}),
        "INVALID_ARGUMENT",
        "'x' is not known",
    ),
    "a number that the datatype doesn't hold": (
        make_tensor(name="x", datatype="INT8", shape=[1], contents={"int_contents": [300]}),
        "INVALID_ARGUMENT",
        "'x' has a value that is no INT8: 300",
    ),
    "a tensor twice": (
        make_tensor(name="input", datatype="BYTES", shape=[1], contents={"bytes_contents": [b"x"]}),
        "INVALID_ARGUMENT",
        "'input' is given twice",
    ),
    "an output that there is not": (ask_for("label", "logits"), "INVALID_ARGUMENT", "there is no output 'logits'"),
    "an output without a name": (ask_for(""), "INVALID_ARGUMENT", "there is no output ''"),
    "an output twice": (ask_for("label", "label"), "INVALID_ARGUMENT", "'label' is asked for twice"),
    "Triton's classes": (ask_for("label", classification=2), "INVALID_ARGUMENT", "'classification' is not known"),
    "shared memory": (make_shared(), "INVALID_ARGUMENT", "inputs.0: 'shared_memory_region' is not known"),
    "a long name of 4 bytes a letter": (change(model_name="\U0001d11e" * 5000), "NOT_FOUND", "there is no model"),
    "more values than a request has": (make_infer(*[b""] * 140_000), "INVALID_ARGUMENT", "more than 131,072 values"),
    "a large message": (make_infer(bytes(limits.MAX_MESSAGE_BYTES)), "RESOURCE_EXHAUSTED", "larger than max"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_call_is_refused_with_its_reason(inference, case):
    request, status, words = REFUSALS[case]
    code, details = refusal(inference.ModelInfer, request)
    assert (code, words in details) == (status, True), details


def test_an_output_that_there_is_not_is_refused_before_the_model_is_asked(served, inference, predictions, monkeypatch):
    asked = []
    monkeypatch.setattr(engine.Engine, "check", lambda *_: asked.append(1))
    by_tensorflow = make_predict(gray(250))
    by_tensorflow.output_filter.append("logits")
    image = {"name": "input", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(gray(250)).decode()]}
    answer = served.http.post(INFER, json={"inputs": [image], "outputs": [{"name": "logits"}]})
    assert (answer.status_code, "no output 'logits'" in answer.json()["error"]) == (400, True)
    for call, request in ((inference.ModelInfer, ask_for("logits")), (predictions.Predict, by_tensorflow)):
        code, details = refusal(call, request)
        assert (code, "no output 'logits'" in details) == ("INVALID_ARGUMENT", True)
    assert not asked


def test_tensors_of_every_type_of_tensorflow_are_read_or_refused(predictions):
    for kind in types_pb2.DataType.values():
        for fields in ({}, {"tensor_content": bytes(16)}, {"int_val": [1], "float_val": [1], "string_val": [b"a"]}):
            tensor = tensor_pb2.TensorProto(dtype=kind, **fields)
            tensor.tensor_shape.dim.add(size=1)
            for name in ("metadata", "input"):
                request = make_predict(gray(250))
                request.inputs[name].CopyFrom(tensor)
                with contextlib.suppress(RequestError):
                    grpc_protocols.parse_predict(request.SerializeToString())
    resource = make_predict(gray(250))
    resource.inputs["metadata"].CopyFrom(tensor_pb2.TensorProto(dtype="DT_RESOURCE", tensor_content=bytes(16)))
    resource.inputs["metadata"].tensor_shape.dim.add(size=1)
    code, details = refusal(predictions.Predict, resource)
    assert (code, "'metadata' can't be read: its values are of the type resource" in details) == (
        "INVALID_ARGUMENT",
        True,
    ), details


@pytest.mark.parametrize(
    ("dtype", "field", "value"),
    [
        *((dtype, "int_val", 70_000) for dtype in (tf.uint8, tf.int8, tf.int16, tf.uint16)),
        (tf.half, "half_val", 2**31 - 1),
        (tf.bfloat16, "half_val", 2**31 - 1),
    ],
)
def test_numbers_that_their_type_does_not_hold_are_refused(dtype, field, value):
    request = make_predict(gray(250))
    tensor = request.inputs["iso"]
    tensor.dtype = dtype.as_datatype_enum
    tensor.tensor_shape.dim.add().size = 1
    getattr(tensor, field).append(value)
    with pytest.raises(RequestError, match="'iso' can't be read"):
        grpc_protocols.parse_predict(request.SerializeToString())


def test_truth_values_are_refused_as_what_they_are(predictions):
    request = make_predict(gray(250))
    request.inputs["iso"].CopyFrom(tf.make_tensor_proto([True]))
    code, details = refusal(predictions.Predict, request)
    assert (code, "'iso' has to be a number" in details) == ("INVALID_ARGUMENT", True), details


def test_tensors_of_tensorflow_are_not_taken_by_the_size_that_they_claim(predictions):
    request = make_predict(gray(250))
    request.inputs["metadata"].CopyFrom(tf.make_tensor_proto(["x"]))
    request.inputs["metadata"].tensor_shape.dim[0].size = 2**40
    code, details = refusal(predictions.Predict, request)
    assert (code, "expected [n]" in details) == ("INVALID_ARGUMENT", True), details


def test_bytes_that_are_no_message_are_refused(channel):
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for body in (b"\xff" * 20, b"\x2a\x7f", b"\x0b"):
        assert refusal(call, body)[0] == "INVALID_ARGUMENT"


def test_damaged_messages_are_read_or_refused_with_a_message():
    random = Random(1)  # noqa: S311 (the same damage each time)
    seeds = {
        grpc_protocols.parse_infer: make_infer(gray(250), id="42").SerializeToString(),
        grpc_protocols.parse_predict: make_predict(gray(250)).SerializeToString(),
    }
    for parse, seed in seeds.items():
        assert len(parse(seed).requests) == 1
        for _ in range(300):
            at, length = random.randrange(len(seed)), random.randrange(8)
            damaged = seed[:at] + random.choice([random.randbytes(length), seed[:64] * 9, b""]) + seed[at + length :]
            with contextlib.suppress(RequestError):
                parse(damaged)


def test_calls_count_in_the_metrics_and_wait_with_those_by_http(served, inference, monkeypatch):
    inference.ModelInfer(make_infer(gray(250)))
    monkeypatch.setattr(handler, "MAX_WAITING", 2)
    code, details = refusal(inference.ModelInfer, make_infer(*[gray(250)] * 3))
    assert (code, "waiting" in details) == ("UNAVAILABLE", True)
    figures = served.http.get("/metrics").text
    route = 'route="/inference.GRPCInferenceService/ModelInfer"'
    assert f'imagepipe_requests_total{{{route},status="UNAVAILABLE"}}' in figures
    assert f'imagepipe_requests_total{{{route},status="OK"}}' in figures


def test_a_refused_call_counts_and_is_logged_as_the_caller_sees_it(served, channel, caplog):
    unknown = channel.unary_unary("/nothing.Here/X"), b""
    silent = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer"), iter(())
    for (call, request), status, reason, route in (
        (unknown, "UNIMPLEMENTED", "status_404", "other"),
        (silent, "INVALID_ARGUMENT", "wrong_type", "/inference.GRPCInferenceService/ModelInfer"),
    ):
        earlier = read_figures(served)
        with caplog.at_level("INFO", "imagepipe.access"):
            caplog.clear()
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=60, metadata=[("x-request-id", "trace-1")])
            wait_until(lambda: any(line["method"] == "gRPC" for line in list_logged(caplog)))
        assert caught.value.code().name == status
        (line,) = (line for line in list_logged(caplog) if line["method"] == "gRPC")
        assert (line["status"], line["request_id"]) == (status, "trace-1")
        figures = read_figures(served)
        for name in (
            f'imagepipe_requests_total{{route="{route}",status="{status}"}}',
            f'imagepipe_refused_total{{reason="{reason}"}}',
        ):
            assert figures[name] == earlier.get(name, 0) + 1, name


def send_too_much(channel) -> grpc.StatusCode:
    code, _ = refusal(GRPCInferenceServiceStub(channel).ModelInfer, make_infer(bytes(limits.MAX_MESSAGE_BYTES)))
    return grpc.StatusCode[code]


def give_up(channel, cancels: bool) -> grpc.StatusCode:
    """Sends nothing until its deadline, or until it is cancelled."""

    def send_late():
        time.sleep(2)
        yield b""

    call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
    future = call.future(send_late(), timeout=60 if cancels else 0.3)
    if cancels:
        time.sleep(0.3)
        future.cancel()
        return grpc.StatusCode.CANCELLED
    with pytest.raises(grpc.RpcError) as caught:
        future.result()
    return caught.value.code()


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        (send_too_much, "RESOURCE_EXHAUSTED"),
        (partial(give_up, cancels=False), "DEADLINE_EXCEEDED"),
        (partial(give_up, cancels=True), "CANCELLED"),
    ],
    ids=["too large", "deadline", "cancelled"],
)
def test_a_call_that_ends_before_its_message_counts_as_unfinished_whoever_ended_it(served, channel, ask, status):
    """gRPC doesn't tell a message that is too large from a caller who left."""
    earlier = read_figures(served)
    assert ask(channel).name == status
    names = (
        'imagepipe_requests_total{route="/inference.GRPCInferenceService/ModelInfer",status="CANCELLED"}',
        'imagepipe_refused_total{reason="unfinished"}',
    )
    wait_until(lambda: all(read_figures(served).get(name, 0) == earlier.get(name, 0) + 1 for name in names))
    assert read_figures(served).get(TOO_LARGE) == earlier.get(TOO_LARGE)


TOO_LARGE = 'imagepipe_refused_total{reason="body_too_large"}'


def test_a_message_that_does_not_come_ends_its_call(channel, inference, monkeypatch):
    monkeypatch.setattr(messages, "MAX_BODY_SECONDS", 0.2)
    ended = threading.Event()

    def send_nothing():
        ended.wait(60)
        yield from ()

    try:
        code, details = refusal(channel.stream_unary("/inference.GRPCInferenceService/ModelInfer"), send_nothing())
    finally:
        ended.set()
    assert (code, "slow" in details) == ("UNAVAILABLE", True), details
    monkeypatch.undo()
    assert inference.ServerLive(v2.ServerLiveRequest(), timeout=60).live


INFO = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


@pytest.mark.parametrize("route", [CHECK, WATCH, INFO])
def test_messages_of_health_and_reflection_are_bounded_as_all_others(channel, route, monkeypatch):
    def ask(messages) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(route)(messages, timeout=60))
        return caught.value.code().name, caught.value.details()

    code, details = ask(iter([b"\x0a\x80\x80\x06" + b"a" * 98_304]))
    assert (code, "98,308 bytes" in details) == ("INVALID_ARGUMENT", True)
    monkeypatch.setattr(messages, "MAX_BODY_SECONDS", 0.2)
    ended = threading.Event()
    try:
        code, details = ask(iter(lambda: ended.wait(60) or b"", b""))
    finally:
        ended.set()
    assert (code, "slow" in details) == ("UNAVAILABLE", True)


def test_without_the_token_health_is_told_without_a_message_being_read():
    async def run() -> list[int]:
        port = grpc_port.GrpcPort(handler.Handler(None, NAME, Recorder()), Access("secret"), holder.address)  # type: ignore[arg-type]
        await port.start()
        read, reading = [], messages.Messages.read

        async def watch(*arguments) -> bytes:
            read.append(message := await reading(*arguments))
            return message

        asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
        try:
            with pytest.MonkeyPatch.context() as monkeypatch:
                monkeypatch.setattr(messages.Messages, "read", watch)
                async with grpc.aio.insecure_channel(holder.address) as channel:
                    check = health_pb2_grpc.HealthStub(channel).Check
                    assert (await check(asked, timeout=60)).status == health_pb2.HealthCheckResponse.SERVING
                    sent = len(read)
                    answer = await check(asked, timeout=60, metadata=[("authorization", "Bearer secret")])
                    assert answer.status == health_pb2.HealthCheckResponse.SERVING
                    nothing = channel.stream_unary(CHECK)(timeout=60)  # whose message never comes
                    assert await nothing == answer.SerializeToString()
        finally:
            await port.stop()
        return [sent, len(read)]

    holder = PortHolder("127.0.0.1", 0)
    assert asyncio.run(run()) == [0, 1]


def test_the_slowest_message_makes_room_and_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr(messages, "MAX_MESSAGES", 2)
    monkeypatch.setattr(messages, "_PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(messages, "MAX_BODIES_BYTES", 10)

    async def run() -> None:
        places = messages.Messages()
        released = asyncio.Event()

        async def receive_slowly() -> bytes:
            await released.wait()
            return b"slow"

        async def receive() -> bytes:
            return b"123456"

        slow = [asyncio.ensure_future(places.read(receive_slowly)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await places.read(receive) == b"123456"
        with pytest.raises(TooBusyError, match="slow"):
            await slow[0]
        released.set()
        assert await slow[1] == b"slow"
        with pytest.raises(TooBusyError, match="being answered"):
            await places.read(receive)
        places.release(b"123456")
        assert await places.read(receive) == b"123456"

    asyncio.run(run())


def test_a_certificate_and_a_token_hold_for_grpc_too(certificates, tmp_path):
    async def run() -> list[str]:
        access = Access("secret", certificates / "own.pem", certificates / "own.key")
        port = grpc_port.GrpcPort(handler.Handler(None, NAME, Recorder()), access, holder.address)  # type: ignore[arg-type]
        await port.start()
        try:
            trusted = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
            async with grpc.aio.secure_channel(holder.address, trusted) as channel:
                live = GRPCInferenceServiceStub(channel).ServerLive
                health = health_pb2_grpc.HealthStub(channel)
                await health.Check(health_pb2.HealthCheckRequest(), timeout=60)
                outcomes, earlier = [], REGISTRY.get_sample_value(*refused) or 0
                for shown in ("", "Bearer wrong", "Bearer secret"):
                    try:
                        await live(v2.ServerLiveRequest(), timeout=60, metadata=[("authorization", shown)])
                        outcomes.append("answered")
                    except grpc.aio.AioRpcError as error:
                        outcomes.append(error.details() or "")
                assert REGISTRY.get_sample_value(*refused) == earlier + 2
                return outcomes
        finally:
            await port.stop()

    refused = (
        "imagepipe_requests_total",
        {"route": "/inference.GRPCInferenceService/ServerLive", "status": "UNAUTHENTICATED"},
    )
    holder = PortHolder("127.0.0.1", 0)
    assert asyncio.run(run()) == [
        "a token is needed: Authorization: Bearer TOKEN",
        "the token is wrong",
        "answered",
    ]


def test_a_port_that_is_taken_is_an_error(served):
    with pytest.raises(ModelError, match="--grpc-port"):
        PortHolder("127.0.0.1", int(served.grpc.rpartition(":")[2]), "--grpc-port")


def test_without_its_packages_the_port_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc_health", None)
    monkeypatch.delitem(sys.modules, "grpc_health.v1", raising=False)
    monkeypatch.delitem(sys.modules, grpc_port.__name__)
    with pytest.raises(ConfigError, match=r"imagepipe-tfx\[grpc\]"):
        importlib.import_module(grpc_port.__name__)
