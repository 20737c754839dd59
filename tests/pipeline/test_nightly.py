"""A night and the exit statuses of its steps: the script for cron and pods, and the DAG of Airflow."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "kubeflow"
REQUIREMENTS = Path(__file__).with_name("airflow.txt")  # all that Airflow needs, as its own constraints name it

STEPS = ["ingest", "run", "batch-predict"]


@pytest.fixture
def call(tmp_path):
    """Calls a command of a night, and returns its exit status and output, and the commands that it has called.

    In place of imagepipe stands a script, of which one step ends with the exit status given.
    """
    log, script = tmp_path / "log", tmp_path / "bin" / "imagepipe"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$*" >> {log}\n[ "$1" != "$STEP" ] || exit "$STATUS"\n')
    script.chmod(0o755)

    def run(command: list[str], step: str, status: int, **variables: str) -> tuple[int, str, list[list[str]]]:
        path = f"{script.parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "STEP": step, "STATUS": str(status)} | variables
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        calls = [shlex.split(line) for line in log.read_text().splitlines()]
        for name, *arguments in calls:
            get_command(app).commands[name].make_context(name, arguments)
        return ended.returncode, ended.stdout + ended.stderr, calls

    return run


@pytest.mark.parametrize(
    ("step", "status", "ends_with", "steps"),
    [
        ("none", 0, 0, STEPS),
        ("run", 3, 0, STEPS),  # not blessed: the one before answers
        ("run", 1, 1, STEPS[:2]),
        ("run", 2, 2, STEPS[:2]),
        ("ingest", 1, 1, STEPS[:1]),
        ("batch-predict", 1, 1, STEPS),
    ],
)
def test_a_night_ends_as_the_step_that_failed_and_a_model_that_is_not_blessed_is_no_failure(
    call, step, status, ends_with, steps
):
    ended, _, calls = call(["sh", str(FOLDER / "nightly.sh"), "/data/flowers"], step, status)
    assert (ended, [name for name, *_ in calls]) == (ends_with, steps)


def refuse_or_skip(reason: str) -> None:
    if os.environ.get("IMAGEPIPE_REQUIRE_AIRFLOW"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def airflow(tmp_path_factory) -> tuple[str, dict[str, str]]:
    """Airflow's command, in an environment of its own, and the variables by which it finds the DAG."""
    folder = tmp_path_factory.mktemp("airflow")
    uv, python = ROOT / ".uv" / "bin" / "uv", str(folder / "venv" / "bin" / "python")
    if not uv.is_file():
        refuse_or_skip("there is no .uv/bin/uv, which `make` installs: Airflow's DAG is not run")
    for arguments in (
        ["venv", "--quiet", "--python", "3.11", str(folder / "venv")],
        ["pip", "install", "--quiet", "--no-deps", "--python", python, "--requirements", str(REQUIREMENTS)],
    ):
        installed = subprocess.run([uv, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
        if installed.returncode:
            refuse_or_skip(f"Airflow can't be installed, so its DAG is not run: {installed.stderr[-500:]}")
    variables = {
        "AIRFLOW_HOME": str(folder / "home"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "docs" / "examples"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "IMAGEPIPE_FOLDER": "/data/flowers",
    }
    command = str(folder / "venv" / "bin" / "airflow")
    subprocess.run(  # noqa: S603
        [command, "db", "migrate"], env=os.environ | variables, check=True, capture_output=True
    )
    return command, variables


@pytest.mark.slow
def test_airflow_skips_a_run_whose_model_is_not_blessed_and_predicts_with_what_is_live(call, airflow):
    command, variables = airflow
    ended, output, calls = call([command, "dags", "test", "imagepipe_nightly", "2026-11-28"], "run", 3, **variables)
    assert (ended, [name for name, *_ in calls]) == (0, STEPS), output
    assert re.findall(r"new_state=(\w+)", output) == ["success", "skipped", "success"]
