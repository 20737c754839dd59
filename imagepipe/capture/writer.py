"""Captures answers in the background: a bounded queue, and a thread that measures images and writes files.

Whoever answers requests hands over and goes on: nothing here waits for it, and nothing that fails here reaches it. If
the queue is full, images are dropped; if a file can't be written, its rows are lost; both are counted.
"""

import logging
import os
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from imagepipe.base import filesystem
from imagepipe.base.errors import UnavailableError, describe_error
from imagepipe.base.stores import connect
from imagepipe.capture.files import delete_old, split_rows, write_part
from imagepipe.capture.rows import Answered, CaptureOptions, Failed, build_row

Outcome = Literal["written", "dropped", "lost"]
"""The end of an image, one of each: it is in a file; the queue was full; its file could not be written, or not in time.
"""

_QUEUE_IMAGES, _QUEUE_BYTES, _QUEUE_SECONDS = 4096, 20 * 2**20, 15.0
_FILE_BYTES, _FILE_SECONDS = 8 * 2**20, 35.0  # with the queue's less than a minute: what SIGKILL may lose
_NICE = 10  # of the thread: a tenth of the share of one that answers requests, where they compete
_CLOSE_SECONDS = 10.0

_log = logging.getLogger("imagepipe.capture")


class Capture:
    """Writes answers to files, in a thread of its own."""

    def __init__(self, options: CaptureOptions, count: Callable[[Outcome, int], None]):
        """Starts the thread.

        Args:
            options: what is captured, and where to.
            count: called with what became of images, and their number.

        Raises:
            UnavailableError: if a local folder can't be made, or the URI names no store that can be written.
        """
        self._options, self._count = options, count
        self._folder = filesystem.absolute(options.folder)
        _check_folder(self._folder)
        self._queue: deque[tuple[float, Answered | Failed]] = deque()
        self._bytes = 0
        self._unsettled = 0  # images that were taken over, and whose end is not counted yet
        self._changed = threading.Condition()
        self._is_closing = False
        self._cleaned: date | None = None
        self._failure: tuple[type[Exception], int | None] | None = None  # the last one, which is logged once
        self._thread = threading.Thread(target=self._write_forever, name="capture", daemon=True)
        self._thread.start()

    def draw(self) -> bool:
        """Returns whether a request is among those to be captured."""
        return random.random() < self._options.rate  # noqa: S311 (a sample, no secret)

    def offer(self, images: Iterable[Answered | Failed]) -> None:
        """Takes over images that were answered, or a request that failed; drops them without room, or once closed."""
        now, dropped = time.monotonic(), 0
        with self._changed:
            is_late = bool(self._queue) and now - self._queue[0][0] > _QUEUE_SECONDS
            takes_none = is_late or self._is_closing
            for image in images:
                if takes_none or len(self._queue) >= _QUEUE_IMAGES or self._bytes + image.size > _QUEUE_BYTES:
                    dropped += 1
                else:
                    self._queue.append((now, image))
                    self._bytes += image.size
                    self._unsettled += 1
            self._changed.notify()
        if dropped:
            self._count("dropped", dropped)

    def close(self) -> None:
        """Writes what was offered, for at most some seconds; what is left then is lost, and counted.

        A file that is being written at that moment counts as lost, though it may still appear.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)
        with self._changed:
            late, self._unsettled = self._unsettled, 0
            self._queue.clear()
        if late:
            _log.error("the last %d captured images are lost: there was no time to write them", late)
            self._count("lost", late)

    def _write_forever(self) -> None:
        with suppress(OSError):  # where a sandbox forbids it
            os.nice(_NICE)  # on Linux, of the thread alone
        rows: list[dict[str, Any]] = []
        size, due = 0, 0.0
        while True:
            image = self._take(due - time.monotonic() if rows else None)
            if image:
                try:
                    row = build_row(image, self._options.images)
                except Exception as error:  # whatever it is: the next ones may be sound
                    self._lose(1, error)
                    continue
                due = due if rows else time.monotonic() + _FILE_SECONDS
                rows.append(row)
                size += len(row["image"] or b"") + 4096  # for scores and an embedding
            if rows and (not image or size >= _FILE_BYTES or time.monotonic() >= due):
                self._write(rows)
                rows, size = [], 0
            if not image and self._is_closing:
                return

    def _take(self, seconds: float | None) -> Answered | Failed | None:
        """Waits for an image; None if there is none within so many seconds, or no further one before the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closing, seconds)
            if not self._queue:
                return None
            _, image = self._queue.popleft()
            self._bytes -= image.size
            return image

    def _write(self, rows: list[dict[str, Any]]) -> None:
        for where, part in split_rows(rows).items():
            try:
                write_part(self._folder, where, part, uuid.uuid4().hex)
            except Exception as error:  # the store is away or full, or its client fails in a way of its own
                self._lose(len(part), error)
            else:
                self._failure = None
                self._settle("written", len(part))
        if self._cleaned != (today := datetime.now(UTC).date()):
            self._cleaned = today
            try:
                delete_old(self._folder, self._options.days, today)
            except Exception as error:  # as above
                _log.error("captured images of old days can't be deleted: %s", describe_error(error))

    def _lose(self, images: int, error: Exception) -> None:
        """Counts images that can't be captured, and logs why, once until a file is written again."""
        failure = (type(error), getattr(error, "errno", None))  # not the text, which names a file of its own each time
        if failure != self._failure:
            self._failure = failure
            own = None if isinstance(error, OSError) else error  # else it may be our mistake
            _log.error("%d captured images are lost: %s", images, describe_error(error), exc_info=own)
        self._settle("lost", images)

    def _settle(self, outcome: Outcome, images: int) -> None:
        """Counts the end of images, unless ``close`` has waited for them in vain."""
        with self._changed:
            images = min(images, self._unsettled)
            self._unsettled -= images
        if images:
            self._count(outcome, images)


def _check_folder(folder: str) -> None:
    try:
        if filesystem.is_uri(folder):
            connect(folder)
        else:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"{folder}: answers can't be captured there: {error.strerror or error}. Give another --capture"
        ) from error
