"""Makes concurrent calls share batches, for an engine that doesn't do so itself.

Sizes of batches are powers of two: OpenVINO keeps some 10 MB of InceptionV3 for each size that it has met.
"""

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


def list_sizes(max_size: int) -> list[int]:
    """Returns the sizes of batches, the largest first, for at most ``max_size`` images, a power of two."""
    return [1 << exponent for exponent in reversed(range(max_size.bit_length()))]


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
            max_size: images in a batch, at most; a power of two.
            observe: called with the size of each batch.
        """
        self._sizes = list_sizes(max_size)
        self._queue: deque[_Part | None] = deque()
        self._changed = threading.Condition()
        for compute in computes:
            arguments = (self._queue, self._changed, compute, self._sizes, observe)
            threading.Thread(target=_compute_forever, args=arguments, name="batches", daemon=True).start()
        weakref.finalize(self, _end, self._queue, self._changed, len(computes))

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the outputs for images, in their order; for at least one image."""
        count = len(next(iter(inputs.values())))
        parts = []
        first = 0
        while first < count:
            size = next(size for size in self._sizes if size <= count - first)
            parts.append(_Part({name: array[first : first + size] for name, array in inputs.items()}, size))
            first += size
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
    sizes: Sequence[int],
    observe: Callable[[int], None],
) -> None:
    while parts := _take(queue, changed, sizes):
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


def _take(queue: "deque[_Part | None]", changed: threading.Condition, sizes: Sequence[int]) -> list[_Part]:
    """Waits for images, and takes those of as many calls as make a batch; none at the end."""
    with changed:
        changed.wait_for(lambda: queue)
        parts: list[_Part] = []
        total = taken = 0
        for part in queue:
            if part is None or total + part.size > sizes[0]:
                break
            parts.append(part)
            total += part.size
            if total in sizes:
                taken = len(parts)
        for _ in range(max(taken, 1)):
            queue.popleft()
        return parts[:taken]
