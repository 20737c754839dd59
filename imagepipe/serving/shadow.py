"""Asks a second version what callers ask the live one: behind it, unseen, in a process of its own.

Whoever answers callers hands over and goes on: nothing here waits, and nothing that fails here reaches a caller. What
waits is bounded, and dropped beyond that; a version that can't be loaded, or whose process dies, is not asked again
before its files change. Images that were handed over = answered + dropped + failed.
"""

import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import joblib

from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.deploy.openvino_form import is_form_unused
from imagepipe.serving.limits import MAX_BODY_BYTES
from imagepipe.serving.shadow_process import Failed, Ready, Reply, ShadowVersion, answer_forever
from imagepipe.serving.telemetry import METRICS_FOLDER, SHADOW_AGREED, SHADOW_IMAGES, SHADOW_SECONDS
from imagepipe.serving.types import Answers, Request
from imagepipe.serving.workers import CPUS

Outcome = Literal["answered", "dropped", "failed"]
"""The end of an image: the shadow answered; too many were waiting; the shadow could not answer, or not any more."""

_MAX_REQUESTS, _MAX_BYTES = 32, MAX_BODY_BYTES  # that wait
_SHARE = 4  # one CPU in so many, and one at least, is what the shadow may use
_NICE = 10  # of the thread that hands over, as of capture's
_CLOSE_SECONDS = 2.0

_log = logging.getLogger("imagepipe.shadow")


@dataclass(frozen=True)
class Question:
    """A request that was answered by the live version.

    Attributes:
        requests: its images, as the caller sent them.
        labels: the live version's answers.
        task: of the live version.
        request_id: of the request.
    """

    requests: Sequence[Request]
    labels: Sequence[str]
    task: str
    request_id: str

    @property
    def size(self) -> int:
        """Bytes of the images."""
        return sum(len(request.image) for request in self.requests)


Keep = Callable[[Question, Answers, float], None]
"""Takes a question, the shadow's answers to it and the seconds that they took."""


class Shadow:
    """A version that is asked in shadow. For many threads."""

    def __init__(self, shadow: ShadowVersion, keep: Keep):
        """Starts to load the version, in the background.

        Args:
            shadow: the version.
            keep: called with its answers, in a thread of its own.
        """
        self._shadow, self._keep = shadow, keep
        self._queue: deque[Question] = deque()  # the first of them is being asked
        self._bytes = 0
        self._loaded: Ready | None = None
        self._changed = threading.Condition()
        self._is_closing = self._is_over = False
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        arguments = (theirs, shadow, _build_environment())
        self._process = spawn.Process(target=answer_forever, args=arguments, name="shadow", daemon=True)
        self._process.start()
        theirs.close()  # so that the other end is closed when the process dies
        self._thread = threading.Thread(target=self._ask_forever, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, question: Question, version: str) -> None:
        """Takes over a question, or drops it, if there is no room for it.

        Args:
            question: the question.
            version: that has answered it; if that is the shadow itself, which is live by now, it isn't asked again.
        """
        if version == self._shadow.version:
            return
        size = question.size
        with self._changed:
            if not self._is_over and len(self._queue) < _MAX_REQUESTS and self._bytes + size <= _MAX_BYTES:
                self._queue.append(question)
                self._bytes += size
                self._changed.notify()
                return
        self._count("failed" if self._is_over else "dropped", question)

    @property
    def is_over(self) -> bool:
        """Whether it can't be asked any more."""
        return self._is_over

    def has_unused_form(self) -> bool:
        """Returns whether it should be loaded again, see ``is_form_unused``; not before it is loaded."""
        return self._loaded is not None and is_form_unused(self._shadow.folder, *self._loaded)

    def close(self) -> None:
        """Asks nothing more; what waits is dropped."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._process.kill()
        self._thread.join(_CLOSE_SECONDS)

    def _ask_forever(self) -> None:
        os.nice(_NICE)  # on Linux, of the thread alone
        try:
            reason = self._ask_until_closed()
        except (EOFError, OSError):  # of the connection
            self._process.join(_CLOSE_SECONDS)
            reason = f"its process has ended (exit status {self._process.exitcode})"
        with self._changed:
            self._is_over = True
            waiting, self._queue = self._queue, deque()
        if not self._is_closing:
            _log.error(
                "version %s is not asked in shadow any more: %s. The live version goes on; this one is tried "
                "again when its files change or the server starts",
                self._shadow.version,
                reason,
            )
        for question in waiting:
            self._count("dropped" if self._is_closing else "failed", question)

    def _ask_until_closed(self) -> str:
        """Returns the reason why the version can't be loaded, or '' at the end.

        Raises:
            EOFError: if the process has died.
            OSError: the same.
        """
        loaded = self._connection.recv()
        if isinstance(loaded, Failed):
            return loaded.reason
        self._loaded = loaded
        fields = {"engine": loaded.engine} | ({"note": loaded.note} if loaded.note else {})
        _log.info("version %s answers in shadow", self._shadow.version, extra={"fields": fields})
        has_failed = False
        while question := self._wait_for_question():
            self._connection.send(question.requests)
            reply = self._connection.recv()
            if isinstance(reply, Reply):
                self._count("answered", question)
                self._measure(question, reply)
                self._keep(question, reply.answers, reply.seconds)
            else:
                self._count("failed", question)
                if not has_failed:  # the next ones may fail for the same reason
                    _log.error("version %s can't answer in shadow: %s", self._shadow.version, reply.reason)
                has_failed = True
            with self._changed:
                self._queue.popleft()
                self._bytes -= question.size
        return ""

    def _wait_for_question(self) -> Question | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closing)
            return None if self._is_closing else self._queue[0]

    def _measure(self, question: Question, reply: Reply) -> None:
        version = self._shadow.version
        SHADOW_SECONDS.labels(version).observe(reply.seconds)
        if question.task != "regression":  # a value is hardly ever the same
            pairs = zip(question.labels, reply.answers.labels, strict=True)
            same = sum(set(one.split(LABEL_SEPARATOR)) == set(other.split(LABEL_SEPARATOR)) for one, other in pairs)
            SHADOW_AGREED.labels(version).inc(same)

    def _count(self, outcome: Outcome, question: Question) -> None:
        SHADOW_IMAGES.labels(self._shadow.version, outcome).inc(len(question.requests))


def _build_environment() -> dict[str, str]:
    """Returns the environment of the process: with few CPUs, and without the folder of the server's metrics."""
    others = {name: value for name, value in os.environ.items() if name != METRICS_FOLDER}
    return others | {CPUS: str(max(1, joblib.cpu_count() // _SHARE))}
