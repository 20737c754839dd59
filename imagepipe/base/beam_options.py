"""What runs Beam's pipelines: this machine or a cluster. Imports nothing."""

from pathlib import Path
from typing import Literal

RunnerName = Literal["direct", "dataflow", "flink", "spark"]
OptionValue = bool | int | float | str

_RUNNERS: dict[RunnerName, str] = {
    "direct": "DirectRunner",
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}

_NEEDED: dict[RunnerName, tuple[str, ...]] = {"dataflow": ("project", "region", "temp_location")}


def check_options(runner: RunnerName, options: dict[str, OptionValue | list[OptionValue]]) -> None:
    """Finds what a runner can't do without.

    Raises:
        ValueError: if an option is missing, or is one that has a key of its own.
    """
    if "runner" in options:
        raise ValueError("options.runner: it is the key beam.runner")
    if missing := [name for name in _NEEDED.get(runner, ()) if not options.get(name)]:
        raise ValueError(f"options: {runner} needs {', '.join(missing)}")


def make_arguments(runner: RunnerName, options: dict[str, OptionValue | list[OptionValue]]) -> list[str]:
    """A runner and its options as Beam's arguments.

    Args:
        runner: which one.
        options: by name; a list gives an option several times, ``true`` without a value, ``false`` not at all.
    """
    listed = [f"--runner={_RUNNERS[runner]}"]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not False:
                listed.append(f"--{name}" if one is True else f"--{name}={one}")
    return listed


def add_setup_file(args: list[str]) -> list[str]:
    """Beam's arguments, by which workers of a cluster install this project's packages.

    Args:
        args: what ``arguments`` gave, perhaps on another machine.

    Returns:
        The same, and for a cluster ``--setup_file``, the project's ``setup.py``; unless it is given, or the packages
        are not beside it here: then they have to be in the workers' image.
    """
    setup = Path(__file__).parents[2] / "setup.py"
    given = any(arg.startswith(("--setup_file", "--sdk_container_image")) for arg in args)
    if f"--runner={_RUNNERS['direct']}" in args or given or not setup.is_file():
        return args
    return [*args, f"--setup_file={setup}"]
