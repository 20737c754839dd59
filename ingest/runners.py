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

# Without this, Beam may hand the work to a runner that it downloads as a binary.
_LOCAL: dict[str, OptionValue] = {"direct_running_mode": "in_memory", "direct_num_workers": 1}

_NEEDED: dict[RunnerName, tuple[str, ...]] = {"dataflow": ("project", "region", "temp_location")}


def check(runner: RunnerName, options: dict[str, OptionValue | list[OptionValue]]) -> None:
    """Finds what a runner can't do without.

    Raises:
        ValueError: if an option is missing, or is one that has a key of its own.
    """
    if "runner" in options:
        raise ValueError("options.runner: it is the key beam.runner")
    if missing := [name for name in _NEEDED.get(runner, ()) if not options.get(name)]:
        raise ValueError(f"options: {runner} needs {', '.join(missing)}")


def arguments(runner: RunnerName, options: dict[str, OptionValue | list[OptionValue]]) -> list[str]:
    """A runner and its options as Beam's arguments.

    Args:
        runner: which one.
        options: by name; a list gives an option several times, ``true`` without a value, ``false`` not at all.

    Returns:
        The arguments. Workers of a cluster install this project's packages: ``--setup_file`` names the project's
        ``setup.py``, where there is one beside the packages and the options name none.
    """
    given: dict[str, OptionValue | list[OptionValue]] = {}
    if runner == "direct":
        given.update(_LOCAL)
    elif (setup := Path(__file__).parent.parent / "setup.py").is_file():
        given["setup_file"] = str(setup)
    given.update(options)
    listed = [f"--runner={_RUNNERS[runner]}"]
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                listed.append(f"--{name}")
            elif one is not False:
                listed.append(f"--{name}={one}")
    return listed
