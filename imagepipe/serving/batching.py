"""Makes requests that come at the same time share batches, of decoding and of the network.

Nothing waits for a batch to fill: that would leave a CPU idle, and cost a lone caller time. A batch is what came while
others were computed.
"""

import itertools
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
        own = [_Part(inputs, len(next(iter(inputs.values()))))]
        if parts := self._wait_for_turn(own[0]):
            try:
                _compute(parts, self._compute_observed)
            finally:
                with self._changed:
                    self._free += 1
                    self._changed.notify_all()
        return own.pop().outputs.result()  # an error that is raised holds this frame, and so what is in it

    def _wait_for_turn(self, own: _Part[Arrays]) -> list[_Part[Arrays]]:
        """Returns the parts to be computed with a caller's own; none once another caller has computed that."""
        with self._changed:
            self._waiting.append(own)
            self._changed.wait_for(lambda: own.outputs.done() or self._is_turn_of(own))
            if own.outputs.done():
                return []
            self._free -= 1
            parts = _take(self._waiting, self._sizes[-1], self._sizes)
            self._changed.notify_all()  # the next one's turn may have come, too
            return parts

    def _compute_observed(self, inputs: Arrays) -> Arrays:
        outputs = self._compute(inputs)
        self._observe(len(next(iter(inputs.values()))))
        return outputs

    def _is_turn_of(self, part: _Part[Arrays]) -> bool:
        return self._free > 0 and bool(self._waiting) and self._waiting[0] is part


class SharedThreads:
    """Threads that answer requests from many callers in batches."""

    def __init__(
        self,
        prepare: Callable[[Sequence[Request]], Arrays],
        network: Callable[[Arrays], Arrays],
        count: int,
        at_once: int,
        sizes: Sequence[int],
    ):
        """Starts the threads; they end with this object.

        Args:
            prepare: makes the network's inputs for a batch, in several threads at once.
            network: makes the outputs of these.
            count: of threads.
            at_once: number of batches among which requests are divided: as many as the network computes at once.
            sizes: numbers of images that a batch may have, ascending from 1.
        """
        self._queue = _Queue(at_once, sizes)
        for _ in range(count):
            arguments = (self._queue, prepare, network)
            threading.Thread(target=_answer_forever, args=arguments, name="batches", daemon=True).start()
        weakref.finalize(self, self._queue.close)

    def __call__(self, requests: Sequence[Request], pixels: int) -> Arrays:
        """Returns the outputs for requests, at least one, in their order.

        Args:
            requests: of one caller.
            pixels: of all their images.

        Raises:
            Exception: what ``prepare`` raises about these requests, without which the others of a batch are answered;
                or ``network`` about a batch.
        """
        parts, started = self._queue.divide(requests, pixels), list[_Part[Sequence[Request]]]()
        outputs = []
        while parts or started:
            # No more of one caller's wait at once: others would have to wait for all of them.
            while parts and len(started) <= self._queue.at_once:
                started.append(parts.popleft())
                self._queue.add(started[-1])
            outputs.append(started.pop(0).outputs.result())
        return _join(outputs)


class _Queue:
    """Requests that wait for a thread."""

    def __init__(self, at_once: int, sizes: Sequence[int]):
        self.at_once, self.sizes = at_once, sizes
        self._taken = 0  # batches that are being computed
        self._waiting: deque[_Part[Sequence[Request]]] = deque()
        self._is_closed = False
        self._changed = threading.Condition()

    def close(self) -> None:
        """Ends the threads that take batches."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def divide(self, requests: Sequence[Request], pixels: int) -> deque[_Part[Sequence[Request]]]:
        """Returns one caller's requests in parts of which each has a size that a batch may have."""
        most = self._choose_size(len(requests), self.at_once)
        parts = deque[_Part[Sequence[Request]]]()
        first = 0
        while first < len(requests):
            size = max(size for size in self.sizes if size <= min(most, len(requests) - first))
            parts.append(_Part(requests[first : first + size], size, pixels * size / len(requests)))
            first += size
        return parts

    def add(self, part: _Part[Sequence[Request]]) -> None:
        """Appends a part."""
        with self._changed:
            self._waiting.append(part)
            self._changed.notify()

    def take(self) -> list[_Part[Sequence[Request]]]:
        """Waits for requests, and takes a batch, of which it leaves as much to others; none at the end.

        ``release`` says when it is computed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                return []
            waiting = sum(part.size for part in self._waiting)
            most = self._choose_size(waiting, max(1, self.at_once - self._taken))
            self._taken += 1
            return _take(self._waiting, most, self.sizes)

    def release(self) -> None:
        """Counts a batch as computed."""
        with self._changed:
            self._taken -= 1

    def _choose_size(self, count: int, batches: int) -> int:
        share = math.ceil(count / batches)
        return next((size for size in self.sizes if size >= share), self.sizes[-1])


def _answer_forever(
    queue: _Queue, prepare: Callable[[Sequence[Request]], Arrays], network: Callable[[Arrays], Arrays]
) -> None:
    while parts := queue.take():
        try:
            prepared = _prepare(parts, prepare)
            while prepared:
                _compute(_take(prepared, queue.sizes[-1], queue.sizes), network)
        except BaseException as error:
            _refuse(parts, error)
        finally:
            parts.clear()  # while it waits, nothing of them is held
            queue.release()


def _prepare(
    parts: list[_Part[Sequence[Request]]], prepare: Callable[[Sequence[Request]], Arrays]
) -> deque[_Part[Arrays]]:
    """Prepares a batch. What fails is refused, and the others are returned."""
    try:
        inputs = prepare([request for part in parts for request in part.inputs])
        divided = zip(parts, _divide(inputs, parts), strict=True)
        return deque(_Part(own, part.size, outputs=part.outputs) for part, own in divided)
    except BaseException as error:
        if len(parts) == 1:
            _refuse(parts, error)
            parts.clear()  # the error holds this frame
            return deque()
    # One by one, so that only those of the caller who sent a broken image fail.
    return deque(prepared for part in parts for prepared in _prepare([part], prepare))


def _compute(parts: list[_Part[Arrays]], network: Callable[[Arrays], Arrays]) -> None:
    """Lets a network compute a batch, and hands its outputs out, or its error."""
    try:
        _hand_out(_divide(network(_join([part.inputs for part in parts])), parts), parts)
    except BaseException as error:
        _refuse(parts, error)
    finally:
        parts.clear()  # the error holds this frame


def _hand_out(outputs: Sequence[Arrays], parts: Sequence[_Part[Arrays]]) -> None:
    for part, own in zip(parts, outputs, strict=True):
        part.outputs.set_result(own)


def _refuse(parts: Sequence[_Part[_Inputs]], error: BaseException) -> None:
    for part in parts:
        if not part.outputs.done():
            part.outputs.set_exception(error)


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


def _divide(arrays: Arrays, parts: Sequence[_Part[_Inputs]]) -> list[Arrays]:
    ends = itertools.accumulate(part.size for part in parts)
    return [
        {name: array[end - part.size : end] for name, array in arrays.items()}
        for part, end in zip(parts, ends, strict=True)
    ]
