"""The methods of the gRPC port, by service: each makes a message of a message."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from imagepipe.deploy.kserve_library import grpc_predict_v2_pb2 as v2
from imagepipe.serving.grpc_protocols import Question, decode, find_version, parse_infer, parse_predict
from imagepipe.serving.handler import Handler
from imagepipe.serving.messages import check_plain
from imagepipe.serving.openapi import SERVER, describe_tensors
from imagepipe.serving.types import RequestError

Method = Callable[[bytes, str], Awaitable[tuple[Message, int | None]]]
"""Makes an answer of a message and the request's id, and says how many images were in it."""


def build_methods(handler: Handler) -> dict[Any, dict[str, Method]]:
    """Returns the methods by their names, by the descriptor of their service."""
    infer = {"ModelInfer": partial(_ask, handler, parse_infer)}
    predict = {"Predict": partial(_ask, handler, parse_predict)}
    return {
        v2.DESCRIPTOR.services_by_name["GRPCInferenceService"]: infer
        | {
            "ServerLive": _reply(v2.ServerLiveRequest, lambda _: v2.ServerLiveResponse(live=True)),
            "ServerReady": _reply(v2.ServerReadyRequest, lambda _: v2.ServerReadyResponse(ready=True)),
            "ModelReady": _reply(v2.ModelReadyRequest, partial(_tell_ready, handler)),
            "ServerMetadata": _reply(v2.ServerMetadataRequest, _describe_server),
            "ModelMetadata": _reply(v2.ModelMetadataRequest, partial(_describe_model, handler)),
        },
        _declare_service(
            "PredictionService", predict_pb2.PredictRequest, get_model_metadata_pb2.GetModelMetadataRequest
        ): predict
        | {
            "GetModelMetadata": _reply(
                get_model_metadata_pb2.GetModelMetadataRequest, partial(_describe_signatures, handler)
            ),
        },
        _declare_service("ModelService", get_model_status_pb2.GetModelStatusRequest): {
            "GetModelStatus": _reply(get_model_status_pb2.GetModelStatusRequest, partial(_tell_status, handler)),
        },
    }


def _declare_service(name: str, *requests: Any) -> Any:
    """Returns the descriptor of one of TensorFlow Serving's services, with the methods that take these messages.

    Its own modules with these descriptors, written for older releases of protobuf, can't be imported.
    """
    files = [kind.DESCRIPTOR.file.name for kind in requests]
    file = descriptor_pb2.FileDescriptorProto(
        name=f"imagepipe/{name}.proto", package="tensorflow.serving", syntax="proto3", dependency=files
    )
    service = file.service.add(name=name)
    for kind in requests:
        request = f".{kind.DESCRIPTOR.full_name}"
        method = kind.DESCRIPTOR.name.removesuffix("Request")
        service.method.add(name=method, input_type=request, output_type=f"{request.removesuffix('Request')}Response")
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool.FindServiceByName(f"tensorflow.serving.{name}")


async def _ask(
    handler: Handler, parse: Callable[[bytes], Question], body: bytes, request_id: str
) -> tuple[Message, int]:
    question = await handler.parse(body, parse, request_id)
    engine = handler.find_engine(question.name, question.version)
    answers = await handler.ask(question.requests, engine, request_id, question.wanted)
    return question.format_answers(answers), len(question.requests)


def _reply(kind: Any, reply: Callable[[Any], Message]) -> Method:
    async def answer(body: bytes, _: str) -> tuple[Message, None]:
        check_plain(body)
        return reply(decode(kind, body)), None

    return answer


def _tell_ready(handler: Handler, message: Any) -> Message:
    handler.find_engine(message.name, message.version or None)
    return v2.ModelReadyResponse(ready=True)


def _describe_server(_: Any) -> Message:
    return v2.ServerMetadataResponse(**SERVER)


def _describe_model(handler: Handler, message: Any) -> Message:
    engine = handler.find_engine(message.name, message.version or None)
    return json_format.ParseDict(describe_tensors(engine), v2.ModelMetadataResponse())


def _describe_signatures(handler: Handler, message: Any) -> Message:
    if list(message.metadata_field) != ["signature_def"]:
        raise RequestError("unknown_field", "'metadata_field' has to be signature_def")
    engine = handler.find_engine(message.model_spec.name, find_version(message.model_spec))
    signatures = json_format.ParseDict(
        {"signature_def": engine.model.signatures}, get_model_metadata_pb2.SignatureDefMap()
    )
    answer = get_model_metadata_pb2.GetModelMetadataResponse()
    answer.model_spec.name, answer.model_spec.version.value = engine.name, int(engine.version)
    answer.metadata["signature_def"].Pack(signatures)
    return answer


def _tell_status(handler: Handler, message: Any) -> Message:
    engine = handler.find_engine(message.model_spec.name, find_version(message.model_spec))
    answer = get_model_status_pb2.GetModelStatusResponse()
    answer.model_version_status.add(
        version=int(engine.version), state=get_model_status_pb2.ModelVersionStatus.AVAILABLE
    )
    return answer
