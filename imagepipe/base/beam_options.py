"""Beam's runners, this machine or a cluster: their options and their log."""

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any, Literal

from imagepipe.base.errors import USER_ERRORS, UnavailableError

RunnerName = Literal["direct", "dataflow", "portable"]
OptionValue = bool | int | float | str

LOCAL_RUNNER = "imagepipe.base.runners.LocalRunner"

SERVER_RUNNER = "imagepipe.base.runners.ServerRunner"

LOCAL_ARGUMENTS = (f"--runner={LOCAL_RUNNER}", "--no_pipeline_type_check")
"""For steps of our own on this machine: Beam's checks of their types, always the same ones, cost 0.15 s a run."""

_RUNNERS: dict[RunnerName, str] = {
    "direct": LOCAL_RUNNER,
    "dataflow": "DataflowRunner",
    "portable": SERVER_RUNNER,
}

# Beam's own images can't install this project: uv.lock overrides what tfx asks for (pyproject.toml), and pip doesn't.
_NEEDED: dict[RunnerName, tuple[str, ...]] = {
    "dataflow": ("project", "region", "temp_location", "sdk_container_image"),
    "portable": ("job_endpoint",),
}

_SERVER: dict[str, OptionValue] = {"job_server_timeout": 60}
"""Seconds until no answer is an error: Beam's 300 are silent ones."""

_SIDECAR: dict[str, OptionValue] = {"environment_type": "EXTERNAL", "environment_config": "localhost:50000"}
"""Workers that a container beside each of the cluster's starts: its pool listens at this port of the pod."""


def check_options(runner: RunnerName, options: dict[str, OptionValue | list[OptionValue]]) -> None:
    """Checks that a runner has the options that it needs.

    Raises:
        ValueError: an option is missing, or is one that has a key of its own.
    """
    if "runner" in options:
        raise ValueError("options.runner: it is the key beam.runner")
    if missing := [name for name in _NEEDED.get(runner, ()) if not options.get(name)]:
        raise ValueError(f"options: {runner} needs {', '.join(missing)}")


def make_arguments(runner: RunnerName, options: dict[str, OptionValue | list[OptionValue]]) -> list[str]:
    """Returns a runner and its options as command-line arguments of Beam.

    Args:
        runner: the runner's name in the configuration.
        options: by name; a list gives an option several times, ``true`` without a value, ``false`` not at all. For
            ``portable``, workers are those of a pool at localhost:50000 unless ``environment_type`` is among them.
    """
    if runner == "portable":
        options = {**_SERVER, **({} if "environment_type" in options else _SIDECAR), **options}
    arguments = [f"--runner={_RUNNERS[runner]}"]
    for name, option in options.items():
        for value in option if isinstance(option, list) else [option]:
            if value is not False:
                arguments.append(f"--{name}" if value is True else f"--{name}={value}")
    return arguments


@contextlib.contextmanager
def hide_step_errors() -> Iterator[None]:
    """Hides what Beam adds to an error: in a step that runs here, a traceback in the log, and to ours the step's name.

    Raises:
        UnavailableError: the job was given to a server, and failed there, or the server doesn't answer.
    """
    import grpc  # not above: it takes long to import

    try:
        with _hide_log("apache_beam.runners.common"):
            yield
    except USER_ERRORS as error:
        raise type(error)(str(error).partition(" [while running '")[0]) from error
    except (grpc.RpcError, grpc.FutureTimeoutError) as error:
        reason = error.details() if isinstance(error, grpc.Call) else "no connection in time"
        raise UnavailableError(
            f"Beam's job server does not answer ({reason}): is it at beam.options.job_endpoint, and up?"
        ) from error
    except RuntimeError as error:
        if not (failed := re.fullmatch(r"Pipeline \S+ failed in state \w+: (.*)", str(error), re.DOTALL)):
            raise
        reason = failed[1].strip().splitlines()[-1] if failed[1].strip() else "without a reason"
        raise UnavailableError(
            f"The job failed on Beam's job server ({reason}), whose log has the rest. Run it again."
        ) from error


@contextlib.contextmanager
def explain_job_errors(runner: str | None, remedy: str) -> Iterator[None]:
    """Turns what runners raise further into one message: workers' errors here, and those of a cloud's clients.

    Args:
        runner: its name, as Beam's options have it.
        remedy: a sentence that says what to do.

    Raises:
        UnavailableError: if a job or a worker fails, or nobody answers. An error in a step that runs in this process
            is none of these: it goes on unchanged.
    """
    is_here = runner == LOCAL_RUNNER
    try:
        # On a cloud it logs the traceback of each error, which is then raised.
        with contextlib.nullcontext() if is_here else _hide_log("apache_beam"):
            yield
    except (*USER_ERRORS, OSError):
        raise
    except Exception as error:
        if is_here and not isinstance(error, RuntimeError):  # as which a worker's error arrives
            raise
        *_, reason = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        where = "" if is_here else f"The job on {runner} failed: "
        reason = reason.partition(" [while running '")[0].rstrip(".")
        raise UnavailableError(f"{where}{reason}. {remedy}") from error


@contextlib.contextmanager
def _hide_log(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def query_metrics(job: Any) -> tuple[int, int]:
    """Returns how many images are read and done by the metrics of a remote ingest; 0 before there are any."""
    totals = {"read": 0, "done": 0}
    with contextlib.suppress(Exception):  # progress is a nicety; the job goes on if it can't be asked for
        for counter in job.metrics().query()["counters"]:
            metric = counter.key.metric
            if metric.namespace == "ingest":  # each step has its own of the name
                totals[metric.name] += counter.attempted
    return totals["read"], totals["done"]
