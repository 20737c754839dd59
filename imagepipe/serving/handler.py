"""Answers requests of any protocol: parsed, checked and computed in threads, with a bound on what waits."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import joblib
from starlette.exceptions import HTTPException

from imagepipe.deploy.versions import is_same_version
from imagepipe.serving.answered import Recorder
from imagepipe.serving.bodies import TooBusyError
from imagepipe.serving.engine import Engine, ServedModel, count_request_pixels
from imagepipe.serving.limits import LARGE_BODY_BYTES, LARGE_PIXELS, MAX_WAITING, SMALL_BODY_BYTES
from imagepipe.serving.tensors import check_outputs
from imagepipe.serving.types import Answers, Request

_Parsed = TypeVar("_Parsed")

Parse = Callable[[bytes], tuple[list[Request], Callable[[Answers], Any]]]
"""Makes requests of a body, and says how their answers are formatted."""


class Handler:
    """Answers requests of any protocol."""

    def __init__(self, served: ServedModel, name: str, recorder: Recorder):
        """Makes a handler.

        Args:
            served: the model.
            name: the model's name, for callers.
            recorder: counts the answers, and may capture them.
        """
        self._served, self.name, self._recorder = served, name, recorder
        self._waiting = 0
        # Pools of their own: a refusal need not wait for decoders, nor a common request for the parsing of a large one.
        self._parsers = {is_large: ThreadPoolExecutor(1, "parse") for is_large in (False, True)}
        self._askers = ThreadPoolExecutor(MAX_WAITING, "ask")  # a thread per request, which waits for its batch
        # What the model can't decode as it is, is converted there. A large request takes time of a CPU from common
        # ones, but never a place.
        self._checking = {is_large: threading.BoundedSemaphore(joblib.cpu_count()) for is_large in (False, True)}

    def find_engine(self, name: str, version: str | None = None) -> Engine:
        """Returns the live version.

        Raises:
            HTTPException: 404 if this is not the model, or not the version that is live.
        """
        engine = self._served.engine
        if name != self.name:
            raise HTTPException(404, f"there is no model '{name}' here, only '{self.name}'")
        if version is not None and not is_same_version(version, engine.version):
            raise HTTPException(404, f"version {version} is not served; version {engine.version} is")
        return engine

    async def answer(self, body: bytes, parse: Parse, engine: Engine, request_id: str = "") -> tuple[Any, int]:
        """Answers a request.

        Args:
            body: of the request.
            parse: reads it.
            engine: answers it.
            request_id: for captured traffic; '' for none.

        Returns:
            What ``parse`` makes of the answers, and the number of images.

        Raises:
            RequestError: if it can't be answered; the message gives the reason.
            TooBusyError: if too many are waiting.
        """
        requests, format_answers = await self.parse(body, parse, request_id, engine, SMALL_BODY_BYTES)
        return format_answers(await self.ask(requests, engine, request_id)), len(requests)

    async def parse(
        self,
        body: bytes,
        parse: Callable[[bytes], _Parsed],
        request_id: str,
        engine: Engine | None = None,
        max_bytes_here: int = 0,
    ) -> _Parsed:
        """Parses a body in a thread, where a common one waits for no large one.

        Args:
            body: of the request.
            parse: reads it.
            request_id: for captured traffic.
            engine: that is asked; None if the body says it.
            max_bytes_here: size up to which it is parsed at once, in the thread that answers probes.

        Raises:
            RequestError: if it is no request; the message gives the reason.
            TooBusyError: if too many images are waiting.
        """
        with self._record_failure(engine, request_id):
            self._check_room(1)
            if len(body) <= max_bytes_here:
                return parse(body)
            run = asyncio.get_running_loop().run_in_executor
            return await run(self._parsers[len(body) > LARGE_BODY_BYTES], parse, body)

    async def ask(
        self, requests: list[Request], engine: Engine, request_id: str, wanted: Collection[str] = ()
    ) -> Answers:
        """Answers the requests of one body.

        Args:
            requests: of the body.
            engine: answers them.
            request_id: for captured traffic.
            wanted: names of the outputs that the caller asks for.

        Raises:
            RequestError: if one can't be answered; the message gives the reason.
            TooBusyError: if too many are waiting.
        """
        with self._record_failure(engine, request_id):
            check_outputs(wanted, engine.model.has_novelty)
            self._check_room(len(requests))
            self._waiting += len(requests)
            try:
                run = asyncio.get_running_loop().run_in_executor
                return await run(self._askers, self._ask, engine, requests, request_id)
            finally:
                self._waiting -= len(requests)

    @contextlib.contextmanager
    def _record_failure(self, engine: Engine | None, request_id: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._recorder.record_failure(error, (engine or self._served.engine).version, request_id)
            raise

    def _ask(self, engine: Engine, requests: list[Request], request_id: str) -> Answers:
        start = time.perf_counter()
        pixels = count_request_pixels(requests)
        with contextlib.ExitStack() as turn:
            turn.enter_context(self._checking[pixels > LARGE_PIXELS])
            checked = engine.check(requests)
            if all(one.image is sent.image for one, sent in zip(checked, requests, strict=True)):
                turn.close()  # what was converted takes memory, and is answered before others are
            answers = engine.answer(checked, pixels, is_alone=self._waiting == len(requests))
        self._recorder.record(requests, checked, answers, engine.model.task, request_id, time.perf_counter() - start)
        return answers

    def _check_room(self, images: int) -> None:
        if self._waiting + images > MAX_WAITING:
            raise TooBusyError(f"{self._waiting} images are waiting already")
