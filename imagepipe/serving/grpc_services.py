"""gRPC's own services, health and reflection: their messages are taken and bounded as those of all others."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from imagepipe.serving.bodies import TooBusyError
from imagepipe.serving.messages import Messages, check_plain
from imagepipe.serving.types import RequestError


def bound_method(method: Any, messages: Messages) -> Any:
    """Returns a method of gRPC's own services, as a server takes it, that reads a message when there is a place for it.

    Args:
        method: the handler that gRPC has of it, whose messages gRPC itself would read at once.
        messages: those that arrive at the port.
    """

    async def answer_one(stream: AsyncIterator[bytes], context: Any) -> Any:
        async with aclosing(_read(method, messages, stream, context)) as requests:
            async for request in requests:
                return await (method.unary_stream or method.unary_unary)(request, context)
        return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")

    async def answer_each(stream: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        async with aclosing(_read(method, messages, stream, context)) as requests:
            async for answer in method.stream_stream(requests, context):
                yield answer

    if not method.response_streaming:
        return grpc.stream_unary_rpc_method_handler(answer_one, None, method.response_serializer)
    serve = answer_each if method.request_streaming else answer_one
    return grpc.stream_stream_rpc_method_handler(serve, None, method.response_serializer)


async def _read(
    method: Any, messages: Messages, stream: AsyncIterator[bytes], context: Any
) -> AsyncGenerator[Any, None]:
    """Yields the messages of a call; each is held until the next is asked for."""
    while True:
        try:
            message = await messages.read(stream.__anext__)
        except StopAsyncIteration:
            return
        except TooBusyError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        try:
            try:
                check_plain(message)
            except RequestError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            yield method.request_deserializer(message)
        finally:
            messages.release(message)
