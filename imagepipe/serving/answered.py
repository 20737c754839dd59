"""Keeps of answered requests counts for ``/metrics`` and, if the user wants it, rows of captured traffic."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import get_args

from imagepipe.base.features import LABEL_SEPARATOR
from imagepipe.capture.rows import Answered, CaptureOptions, Failed
from imagepipe.capture.writer import Capture, Outcome
from imagepipe.serving.bodies import TooBusyError
from imagepipe.serving.shadow import Question
from imagepipe.serving.shadow_follower import FindShadow, ShadowFollower
from imagepipe.serving.telemetry import ANSWERS, CAPTURED, NOVELTY, SCORES
from imagepipe.serving.types import Answers, Request, RequestError

_MAX_ID = 128  # characters


REQUEST_ID = "x-request-id"
"""The header with a request's id."""


def choose_request_id(given: str | None) -> str:
    """Returns a request's id: the one that the caller gave, if it is short and printable, or a new one."""
    return given if given and len(given) <= _MAX_ID and given.isascii() and given.isprintable() else uuid.uuid4().hex


class Recorder:
    """Counts answers, and hands those over that are captured. For many threads."""

    def __init__(self, options: CaptureOptions | None = None, find_shadow: FindShadow | None = None):
        """Starts the capture.

        Args:
            options: of the capture; None for no capture.
            find_shadow: finds the version that is asked what is captured, too; None for none.

        Raises:
            UnavailableError: if the capture's folder can't be used.
        """
        self._capture = (
            Capture(options, lambda outcome, images: CAPTURED.labels(outcome).inc(images)) if options else None
        )
        for outcome in get_args(Outcome) if options else ():
            CAPTURED.labels(outcome)  # at 0: of a series that begins with its first loss, no alert sees an increase
        self._shadow = ShadowFollower(find_shadow, self._capture_shadow) if find_shadow else None

    def record(
        self,
        requests: Sequence[Request],
        prepared: Sequence[Request],
        answers: Answers,
        task: str,
        request_id: str,
        seconds: float,
    ) -> None:
        """Records the answers to one request.

        Args:
            requests: its images, as the caller sent them.
            prepared: the same, as the model decoded them.
            answers: to them.
            task: of the model.
            request_id: of the request.
            seconds: time that answering took.
        """
        _count_answers(answers, task)
        if self._capture and self._capture.draw():
            self._capture.offer(_list_answered(requests, prepared, answers, request_id, 1000 * seconds))
            if self._shadow:
                self._shadow.offer(Question(requests, answers.labels, task, request_id), answers.version)

    def record_failure(self, error: Exception, version: str, request_id: str) -> None:
        """Records that a request was not answered.

        Args:
            error: why.
            version: of the model.
            request_id: of the request.
        """
        if self._capture and self._capture.draw():
            self._capture.offer([Failed(time.time(), request_id, version, _name_failure(error))])

    def close(self) -> None:
        """Writes what is captured and not in a file yet."""
        if self._shadow:
            self._shadow.close()
        if self._capture:
            self._capture.close()

    def _capture_shadow(self, question: Question, answers: Answers, seconds: float) -> None:
        if self._capture:
            requests = question.requests
            listed = _list_answered(requests, requests, answers, question.request_id, 1000 * seconds)
            self._capture.offer(replace(answered, in_shadow=True) for answered in listed)


def _name_failure(error: Exception) -> str:
    """Returns as one word why a request was not answered."""
    match error:
        case RequestError():
            return error.kind
        case TooBusyError():
            return "too_busy"
        case _:
            return "failed"


def _count_answers(answers: Answers, task: str) -> None:
    if answers.novelty is not None:
        novelty = NOVELTY.labels(answers.version)
        for value in answers.novelty.tolist():
            novelty.observe(value)
    if task == "regression":  # a value has a range of its own, and its text is no class
        return
    scores = SCORES.labels(answers.version)
    for score, label in zip(answers.scores.tolist(), answers.labels, strict=True):
        scores.observe(score)
        for name in label.split(LABEL_SEPARATOR) if task == "multilabel" else [label]:
            ANSWERS.labels(answers.version, name).inc()


def _list_answered(
    requests: Sequence[Request], prepared: Sequence[Request], answers: Answers, request_id: str, milliseconds: float
) -> Iterator[Answered]:
    now = time.time()
    for row, (sent, decoded) in enumerate(zip(requests, prepared, strict=True)):
        yield Answered(
            now,
            request_id,
            sent.id,
            answers.version,
            answers.labels[row],
            float(answers.scores[row]),
            answers.classes[row],
            None if answers.novelty is None else float(answers.novelty[row]),
            None if answers.embedding is None else answers.embedding[row],
            sent.image,
            decoded.image,
            milliseconds,
        )
