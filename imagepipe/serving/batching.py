"""Makes concurrent calls share batches, for an engine that doesn't do so itself."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""Arrays by name, each with a row per image."""

Compute = Callable[[Arrays], Arrays]


@dataclass
class _Part:
    """The images of one call, or some of them."""

    inputs: Arrays
    size: int
    outputs: "Future[Arrays]" = field(default_factory=Future)


class Batches:
    """Calls of a network from many threads, in batches of those that came while it was busy.

    Waiting for more images would leave the CPU idle, and cost a lone caller time.
    """

    def __init__(self, computes: Sequence[Compute], max_size: int, observe: Callable[[int], None]):
        """Starts a thread per batch that may be computed at once; they end with this object.

        Args:
            computes: what computes a batch, each called by one thread.
            max_size: images in a batch, at most.
            observe: called with the size of each batch.
        """
        self._max_size = max_size
        self._queue: deque[_Part | None] = deque()
        self._changed = threading.Condition()
        for compute in computes:
            arguments = (self._queue, self._changed, compute, max_size, observe)
            threading.Thread(target=_compute_forever, args=arguments, name="batches", daemon=True).start()
        weakref.finalize(self, _end, self._queue, self._changed, len(computes))

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the outputs for images, in their order; for at least one image."""
        count = len(next(iter(inputs.values())))
        parts = []
        for first in range(0, count, self._max_size):
            some = {name: array[first : first + self._max_size] for name, array in inputs.items()}
            parts.append(_Part(some, min(self._max_size, count - first)))
        with self._changed:
            self._queue.extend(parts)
            self._changed.notify(len(parts))
        return _join([part.outputs.result() for part in parts])


def _join(parts: Sequence[Arrays]) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _end(queue: "deque[_Part | None]", changed: threading.Condition, threads: int) -> None:
    with changed:
        queue.extend([None] * threads)
        changed.notify_all()


def _compute_forever(
    queue: "deque[_Part | None]",
    changed: threading.Condition,
    compute: Compute,
    max_size: int,
    observe: Callable[[int], None],
) -> None:
    while parts := _take(queue, changed, max_size):
        try:
            outputs = compute(_join([part.inputs for part in parts]))
            observe(sum(part.size for part in parts))
            first = 0
            for part in parts:
                part.outputs.set_result({name: array[first : first + part.size] for name, array in outputs.items()})
                first += part.size
        except BaseException as error:
            for part in parts:
                if not part.outputs.done():
                    part.outputs.set_exception(error)
        del parts  # while it waits, nothing of them is held


def _take(queue: "deque[_Part | None]", changed: threading.Condition, max_size: int) -> list[_Part]:
    """Waits for images, and takes those of as many calls as a batch has room for; none at the end."""
    with changed:
        changed.wait_for(lambda: queue)
        parts: list[_Part] = []
        room = max_size
        while queue and (part := queue[0]) is not None and part.size <= room:
            parts.append(part)
            room -= part.size
            queue.popleft()
        if not parts:
            queue.popleft()
        return parts
