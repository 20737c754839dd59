"""Makes requests that come at the same time share batches, of decoding and of the network.

Nothing waits for a batch to fill: that would leave a CPU idle, and cost a lone caller time. A batch is what came while
others were computed.
"""

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from imagepipe.serving.limits import MAX_BATCH_PIXELS
from imagepipe.serving.loaded_model import Arrays
from imagepipe.serving.types import Request

_Inputs = TypeVar("_Inputs")


@dataclass
class _Part(Generic[_Inputs]):
    """One caller's question, or a part of it."""

    inputs: _Inputs
    size: int
    pixels: float = 0
    outputs: "Future[Arrays]" = field(default_factory=Future)


class SharedNetwork:
    """Calls of a network from many threads; one of those that wait computes the next batch for others, too."""

    def __init__(
        self,
        compute: Callable[[Arrays], Arrays],
        at_once: int,
        sizes: Sequence[int],
        observe: Callable[[int], None],
    ):
        """Makes it.

        Args:
            compute: makes the outputs for a batch, in several threads at once.
            at_once: how many.
            sizes: numbers of images that a batch may have, ascending from 1.
            observe: called with the size of each batch.
        """
        self._compute, self._free, self._sizes, self._observe = compute, at_once, sizes, observe
        self._waiting: deque[_Part[Arrays]] = deque()
        self._changed = threading.Condition()

    def __call__(self, inputs: Arrays) -> Arrays:
        """Returns the outputs for images, of which there are as many as a batch may have.

        Raises:
            Exception: what ``compute`` raises about them, or about those that share their batch.
        """
        own = _Part(inputs, len(next(iter(inputs.values()))))
        with self._changed:
            self._waiting.append(own)
            self._changed.wait_for(lambda: own.outputs.done() or self._is_turn_of(own))
            if own.outputs.done():
                return own.outputs.result()
            self._free -= 1
            parts = _take(self._waiting, self._sizes[-1], self._sizes)
            self._changed.notify_all()  # the next one's turn may have come, too
        try:
            outputs = self._compute(_join([part.inputs for part in parts]))
            self._observe(sum(part.size for part in parts))
            _hand_out(outputs, parts)
        except BaseException as error:
            for part in parts:
                part.outputs.set_exception(error)
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
        return own.outputs.result()

    def _is_turn_of(self, part: _Part[Arrays]) -> bool:
        return self._free > 0 and bool(self._waiting) and self._waiting[0] is part


class SharedThreads:
    """Threads that answer requests from many callers in batches."""

    def __init__(self, compute: Callable[[Sequence[Request]], Arrays], count: int, at_once: int, sizes: Sequence[int]):
        """Starts the threads; they end with this object.

        Args:
            compute: makes the outputs for a batch, in several threads at once.
            count: of threads.
            at_once: number of batches among which requests are divided: as many as the network computes at once.
            sizes: numbers of images that a batch may have, ascending from 1.
        """
        self._queue = _Queue(at_once, sizes)
        for _ in range(count):
            threading.Thread(target=_answer_forever, args=(self._queue, compute), name="batches", daemon=True).start()
        weakref.finalize(self, self._queue.close)

    def __call__(self, requests: Sequence[Request], pixels: int) -> Arrays:
        """Returns the outputs for requests, at least one, in their order.

        Args:
            requests: of one caller.
            pixels: of all their images.

        Raises:
            Exception: what ``compute`` raises about these requests; others are answered without them.
        """
        return _join([part.outputs.result() for part in self._queue.add(requests, pixels)])


class _Queue:
    """Requests that wait for a thread."""

    def __init__(self, at_once: int, sizes: Sequence[int]):
        self._at_once, self._sizes = at_once, sizes
        self._taken = 0  # batches that are being computed
        self._waiting: deque[_Part[Sequence[Request]]] = deque()
        self._is_closed = False
        self._changed = threading.Condition()

    def close(self) -> None:
        """Ends the threads that take batches."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def add(self, requests: Sequence[Request], pixels: int) -> list[_Part[Sequence[Request]]]:
        """Appends requests, divided."""
        most = self._choose_size(len(requests), self._at_once)
        parts = []
        first = 0
        while first < len(requests):
            size = max(size for size in self._sizes if size <= min(most, len(requests) - first))
            parts.append(_Part(requests[first : first + size], size, pixels * size / len(requests)))
            first += size
        with self._changed:
            self._waiting.extend(parts)
            self._changed.notify(len(parts))
        return parts

    def take(self) -> list[_Part[Sequence[Request]]]:
        """Waits for requests, and takes a batch, of which it leaves as much to others; none at the end.

        ``release`` says when it is computed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return []
            waiting = sum(part.size for part in self._waiting)
            most = self._choose_size(waiting, max(1, self._at_once - self._taken))
            self._taken += 1
            return _take(self._waiting, most, self._sizes)

    def release(self) -> None:
        """Counts a batch as computed."""
        with self._changed:
            self._taken -= 1

    def _choose_size(self, count: int, batches: int) -> int:
        share = math.ceil(count / batches)
        return next((size for size in self._sizes if size >= share), self._sizes[-1])


def _answer_forever(queue: _Queue, compute: Callable[[Sequence[Request]], Arrays]) -> None:
    while parts := queue.take():
        _answer(parts, compute)
        queue.release()
        del parts  # while it waits, nothing of them is held


def _answer(parts: Sequence[_Part[Sequence[Request]]], compute: Callable[[Sequence[Request]], Arrays]) -> None:
    try:
        _hand_out(compute([request for part in parts for request in part.inputs]), parts)
    except BaseException as error:
        if len(parts) == 1:
            parts[0].outputs.set_exception(error)
            return
        for part in parts:  # one by one, so that only those of the caller who sent a broken image fail
            _answer([part], compute)


def _take(waiting: deque[_Part[_Inputs]], most: int, sizes: Sequence[int]) -> list[_Part[_Inputs]]:
    """Removes the first ones that together have a size that a batch may have; the first one in any case."""
    size = taken = 0
    pixels = 0.0
    for count, part in enumerate(waiting, 1):
        size, pixels = size + part.size, pixels + part.pixels
        if size > most or pixels > MAX_BATCH_PIXELS:
            break
        if size in sizes:
            taken = count
    return [waiting.popleft() for _ in range(max(taken, 1))]


def _join(arrays: Sequence[Arrays]) -> Arrays:
    if len(arrays) == 1:
        return arrays[0]
    return {name: np.concatenate([some[name] for some in arrays]) for name in arrays[0]}


def _hand_out(outputs: Arrays, parts: Sequence[_Part[_Inputs]]) -> None:
    first = 0
    for part in parts:
        part.outputs.set_result({name: array[first : first + part.size] for name, array in outputs.items()})
        first += part.size
