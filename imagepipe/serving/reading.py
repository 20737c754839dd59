"""Reads inputs into requests, in their order; those in a store ahead of the caller, so that it doesn't wait for each.

A store answers after some 30 ms however small the image is, and many at once as fast as one. Local files are read when
their turn comes: handing them from thread to thread would take longer than reading them.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from imagepipe.base import filesystem
from imagepipe.ingest.rows import RESERVED
from imagepipe.serving.inputs import Admit, read_image
from imagepipe.serving.instances import replace_surrogates
from imagepipe.serving.listing import MAX_COLUMNS, Item
from imagepipe.serving.request_files import read_requests
from imagepipe.serving.side import convert_value
from imagepipe.serving.types import Failure, Request, RequestError

_THREADS = 32  # of which each reads an image: some 500 images/s at 30 ms for its size and 30 ms for its bytes
_AHEAD_BYTES = 2**27  # of images that are read, or being read, and not taken yet; a larger one is read alone
_CHUNK_BYTES, _CHUNK_REQUESTS = 2**24, 1024  # of a file of requests, read at once

_Answer = Request | Failure


class _Waiting(NamedTuple):
    """An input that was not yielded yet: of a store with its future, of this machine without."""

    item: Item
    future: Future[tuple[_Answer, int]] | None


def read_items(
    items: Iterable[Item], types: Mapping[str, str], unused: dict[str, None] | None = None
) -> Iterator[Request | Failure]:
    """Reads inputs: one request or failure for each, in their order; for a file of requests as many as it holds.

    Args:
        items: the inputs.
        types: ``string``, ``float32`` or ``int64`` of each side feature; text for others.
        unused: gets what files of requests have beside these, as it goes on, such as a name that is misspelled; but for
            what every record of a dataset has.
    """
    waiting: deque[_Waiting] = deque()
    budget, tickets = _Budget(_AHEAD_BYTES), 0
    pool = ThreadPoolExecutor(_THREADS, "read")  # which starts no thread before it is needed

    def take() -> _Answer:
        item, future = waiting.popleft()
        if future is None:
            return _read_item(item, types)
        answer, size = future.result()
        budget.release(size)
        return answer

    try:
        for item in items:
            if item.is_request_file:
                while waiting:
                    yield take()
                answers = _read_ahead(pool, item.path) if filesystem.is_uri(item.path) else read_requests(item.path)
                for answer in answers:
                    if unused is not None and isinstance(answer, Request) and len(unused) < MAX_COLUMNS:
                        unused |= dict.fromkeys(sorted(answer.side.keys() - types.keys() - RESERVED))
                    yield answer
                continue
            future = None
            if not item.problem and filesystem.is_uri(item.part[0] if item.part else item.path):
                future = pool.submit(_read_admitted, item, types, budget, tickets)
                tickets += 1
            waiting.append(_Waiting(item, future))
            while waiting and (len(waiting) >= _THREADS or waiting[0].future is None):
                yield take()
        while waiting:
            yield take()
    finally:
        budget.close()
        pool.shutdown(cancel_futures=True)


class _Budget:
    """Bytes that may be held, which are granted in the order of tickets.

    So what waits for a grant waits for inputs before it, which the caller takes first.
    """

    def __init__(self, limit: int):
        self._limit, self._held, self._next, self._is_closed = limit, 0, 0, False
        self._changed = threading.Condition()

    def grant(self, ticket: int, size: int) -> None:
        """Waits until bytes may be held, or nobody wants them any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or (self._next == ticket and self._has_room(size)))
            if self._is_closed:
                raise InterruptedError("nobody waits for it")
            self._next += 1
            self._held += size
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._held or self._held + size <= self._limit

    def release(self, size: int) -> None:
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _read_admitted(item: Item, types: Mapping[str, str], budget: _Budget, ticket: int) -> tuple[_Answer, int]:
    """Reads an input once its bytes are granted; returns their number too."""
    granted: list[int] = []

    def admit(size: int) -> None:
        budget.grant(ticket, size)
        granted.append(size)

    answer = _read_item(item, types, admit)
    if not granted:  # it failed before
        admit(0)
    return answer, granted[0]


def _read_ahead(pool: ThreadPoolExecutor, path: str) -> Iterator[_Answer]:
    """Reads a file of requests, of which the next chunk is read while the caller works on one."""
    requests = read_requests(path)

    def read_chunk() -> list[_Answer]:
        chunk: list[_Answer] = []
        size = 0
        for request in requests:
            chunk.append(request)
            size += len(request.image) if isinstance(request, Request) else 0
            if size >= _CHUNK_BYTES or len(chunk) == _CHUNK_REQUESTS:
                break
        return chunk

    following = pool.submit(read_chunk)
    while chunk := following.result():
        following = pool.submit(read_chunk)
        yield from chunk


def _read_item(item: Item, types: Mapping[str, str], admit: Admit | None = None) -> _Answer:
    if item.problem:
        return Failure(replace_surrogates(item.id), item.problem)
    try:
        side = {name: convert_value(name, value, types.get(name, "string")) for name, value in item.side.items()}
    except RequestError as error:
        return Failure(replace_surrogates(item.id), f"line {item.line}: {error}")
    request = read_image(item.path, item.id, side, item.part, admit)
    if isinstance(request, Failure) and item.line is not None:
        return Failure(request.id, f"line {item.line}: {request.error}")
    return request
