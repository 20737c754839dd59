"""Beam's runners, this machine or a cluster: their options and their log."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from imagepipe.base.errors import USER_ERRORS

RunnerName = Literal["direct", "dataflow", "flink", "spark"]
OptionValue = bool | int | float | str

LOCAL_RUNNER = "imagepipe.base.local_runner.LocalRunner"

LOCAL_ARGUMENTS = (f"--runner={LOCAL_RUNNER}", "--no_pipeline_type_check")
"""For steps of our own on this machine: Beam's checks of their types, always the same ones, cost 0.15 s a run."""

_RUNNERS: dict[RunnerName, str] = {
    "direct": LOCAL_RUNNER,
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}

_NEEDED: dict[RunnerName, tuple[str, ...]] = {"dataflow": ("project", "region", "temp_location")}


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
        options: by name; a list gives an option several times, ``true`` without a value, ``false`` not at all.
    """
    arguments = [f"--runner={_RUNNERS[runner]}"]
    for name, option in options.items():
        for value in option if isinstance(option, list) else [option]:
            if value is not False:
                arguments.append(f"--{name}" if value is True else f"--{name}={value}")
    return arguments


def add_setup_file(args: list[str]) -> list[str]:
    """Adds the argument by which workers of a cluster install this project's packages.

    Args:
        args: from ``make_arguments``, perhaps on another machine.

    Returns:
        The same, and for a cluster ``--setup_file``, the project's ``setup.py``; unless it is given, or the packages
        are not beside it here: then they have to be in the workers' image.
    """
    setup = Path(__file__).parents[2] / "setup.py"
    has_packages = any(arg.startswith(("--setup_file", "--sdk_container_image")) for arg in args)
    if f"--runner={LOCAL_RUNNER}" in args or has_packages or not setup.is_file():
        return args
    return [*args, f"--setup_file={setup}"]


@contextlib.contextmanager
def hide_step_errors() -> Iterator[None]:
    """Hides what Beam adds to an error in a step that runs here: a traceback in the log; to ours the step's name."""
    logger = logging.getLogger("apache_beam.runners.common")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except USER_ERRORS as error:
        raise type(error)(str(error).partition(" [while running '")[0]) from error
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
