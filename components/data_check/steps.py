"""Has steps that read Examples done: on this machine one after the other, or by Beam's workers."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam

from imagepipe.base import filesystem
from imagepipe.base.beam_options import LOCAL_RUNNER


@dataclass(frozen=True)
class Place:
    """Where steps are done.

    Attributes:
        folder: on this machine, for the files that they write.
        shared: folder that Beam's workers reach, for the same files on their way here.
        make_pipeline: returns a new pipeline for a cluster's runner; None if the steps are done on this machine.
    """

    folder: Path
    shared: str = ""
    make_pipeline: Callable[[], beam.Pipeline] | None = None


def is_local(beam_args: Sequence[str]) -> bool:
    """Returns whether Beam's arguments name no cluster: then its runner would only cost time and memory."""
    return f"--runner={LOCAL_RUNNER}" in beam_args or not any(arg.startswith("--runner") for arg in beam_args)


def run_steps(step: Callable[..., None], tasks: Sequence[tuple[Any, ...]], place: Place) -> list[str]:
    """Does a step for each task.

    No row of an Example goes through Beam: what a step makes of a file is in a file.

    Args:
        step: a function of a module; gets the path of the file that it writes, and the rest of its task.
        tasks: name of the file that is written, and further arguments.
        place: where.

    Returns:
        The paths of the files on this machine, in the order of the tasks.
    """
    files = [str(place.folder / name) for name, *_ in tasks]
    if place.make_pipeline is None:
        for file, (_, *arguments) in zip(files, tasks, strict=True):
            step(file, *arguments)
        return files
    shared = [f"{place.shared}/{name}" for name, *_ in tasks]
    with _removed(place.shared):
        with place.make_pipeline() as pipeline:
            (
                pipeline
                | "Files" >> beam.Create([(file, *task[1:]) for file, task in zip(shared, tasks, strict=True)])
                | "Spread" >> beam.Reshuffle()
                | "Read" >> beam.MapTuple(partial(_attempt, step))
            )
        for file, path in zip(shared, files, strict=True):
            filesystem.copy(file, path)
    return files


def _attempt(step: Callable[..., None], file: str, *arguments: Any) -> None:
    """Does a step for a file that is seen whole or not at all: Beam may try it twice, and at the same time."""
    own = f"{file}.{uuid.uuid4().hex}"
    step(own, *arguments)
    filesystem.rename(own, file)


@contextmanager
def _removed(folder: str) -> Iterator[None]:
    try:
        yield
    finally:
        filesystem.delete_folder(folder)
