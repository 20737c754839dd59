"""Plays Docker for ``kfp.local``, and Kubeflow's launcher: starts the commands of a compiled pipeline's containers.

Each container is a process of its own, which runs the very command of the compiled file. To import TFX takes a process
20 s of two cores; so one process imports it, and forks for each container. (What runs in it is unchanged: it is given
the command line, and runs the module that it names as ``__main__``.)
"""

import contextlib
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BUCKET = "mlpipeline/v2/artifacts"

Launcher = Callable[[list[str], Callable[[list[str]], int]], int]
"""Runs a container's command by a function that runs commands; returns the exit status."""


class Containers:
    """Starts containers; remembers the commands and what they printed.

    Attributes:
        commands: command of each container, in the order in which they were started.
        logs: what each container printed.
    """

    def __init__(self, folder: Path):
        self.commands: list[list[str]] = []
        self.logs: list[str] = []
        self._folder = folder
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.kubeflow.containers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: list[str]) -> int:
        """Runs a command and returns its exit status."""
        assert self._parent.stdin
        assert self._parent.stdout
        log = self._folder / f"{len(self.commands)}.log"
        self.commands.append(command)
        self._parent.stdin.write(json.dumps({"command": command, "log": str(log)}) + "\n")
        self._parent.stdin.flush()
        status = int(self._parent.stdout.readline())
        self.logs.append(log.read_text(errors="replace"))
        return status

    def close(self) -> None:
        assert self._parent.stdin
        self._parent.stdin.close()
        self._parent.wait(timeout=60)


@contextlib.contextmanager
def replace_docker(launch: Callable[[list[str]], int]) -> Iterator[None]:
    """Lets ``kfp.local`` start its containers here, and take results from its cache as Kubeflow does.

    Args:
        launch: called with a container's command; returns its exit status.
    """
    import docker
    import pytest
    from kfp.local import cache, docker_task_handler

    def run_docker_container(client: Any, image: str, command: list[str], volumes: Any, **rest: Any) -> int:
        return launch(command)

    class NoEngine:
        def info(self) -> dict[str, Any]:
            return {}

        def close(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker, "from_env", NoEngine)
        patch.setattr(docker_task_handler, "run_docker_container", run_docker_container)
        patch.setattr(cache.LocalCache, "compute_key", compute_kubeflows_key)
        patch.setattr(cache, "_is_remote_uri", lambda uri: True)  # Kubeflow doesn't look whether it is still there
        yield


def compute_kubeflows_key(
    cache: Any,
    component_name: str,
    image: str,
    full_command: list[str],
    arguments: dict[str, Any],
    env_vars: dict[str, str],
    custom_cache_key: str | None,
) -> str:
    """Returns the key of a task in Kubeflow's cache.

    It has the ids of input artifacts (here each has a URI of its own), the values of parameters, image, command and
    environment; and what outputs are declared, which here follows from the command. Not the content of artifacts, and
    not the tasks that it waits for. (kubeflow/pipelines, backend/src/v2/cacheutils/cache.go)
    """
    from kfp import dsl

    assert custom_cache_key is None, "which only later versions know"
    inputs = {name: value.uri if isinstance(value, dsl.Artifact) else value for name, value in arguments.items()}
    return hashlib.sha256(json.dumps([inputs, image, full_command, env_vars], sort_keys=True).encode()).hexdigest()


def launch_unchanged(command: list[str], run: Callable[[list[str]], int]) -> int:
    """Runs a command; artifacts are folders on this machine."""
    return run(command)


def create_launcher(root: Path, disk: Path) -> Launcher:
    """Returns a launcher that does what Kubeflow's does: artifacts are in MinIO, which a container can't reach.

    Args:
        root: plays the bucket: ``minio://mlpipeline/v2/artifacts/x`` is ``root/x``.
        disk: where the launcher puts objects in a container: ``/minio``; emptied after each.
    """

    def uri(path: str) -> str:
        return f"minio://{BUCKET}/{Path(path).relative_to(root)}"

    def on_disk(path: str) -> Path:
        return disk / BUCKET / Path(path).relative_to(root)

    def launch(command: list[str], run: Callable[[list[str]], int]) -> int:
        if "--json_serialized_invocation_args" not in command:  # it has no artifacts
            return run(command)
        place = command.index("--json_serialized_invocation_args") + 1
        invocation = json.loads(command[place])
        inputs = _list_artifacts(invocation["inputs"])
        outputs = _list_artifacts(invocation["outputs"])
        for artifact in inputs:
            if (source := Path(artifact["uri"])).exists():  # of an empty folder a bucket has no object
                shutil.copytree(source, on_disk(artifact["uri"]))
            del artifact["type"]  # Kubeflow's driver says none
            artifact["uri"] = uri(artifact["uri"])
        # Where logs are published, as a stock installation does, each task has one more output.
        log = {"uri": str(Path(invocation["outputs"]["outputFile"]).parent / "executor-logs")}
        log["type"] = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
        invocation["outputs"].setdefault("artifacts", {})["executor-logs"] = {"artifacts": [log]}
        outputs.append(log)
        for artifact in outputs:
            on_disk(artifact["uri"]).parent.mkdir(parents=True, exist_ok=True)
            artifact["uri"] = uri(artifact["uri"])
        status = run([*command[:place], json.dumps(invocation), *command[place + 1 :]])
        if status == 0:
            *declared, logs = [
                disk / BUCKET / artifact["uri"].removeprefix(f"minio://{BUCKET}/") for artifact in outputs
            ]
            assert all(map(Path.exists, declared)), declared  # from 3.0 on, what is missing is an error
            assert not logs.exists()  # it is the launcher's to write
            _upload(root, disk, Path(invocation["outputs"]["outputFile"]))
        shutil.rmtree(disk / BUCKET)
        return status

    return launch


def _list_artifacts(side: dict[str, Any]) -> list[dict[str, Any]]:
    return [artifact for entry in side.get("artifacts", {}).values() for artifact in entry["artifacts"]]


def _upload(root: Path, disk: Path, output_file: Path) -> None:
    output = json.loads(output_file.read_text())
    for artifact in _list_artifacts(output):
        assert artifact["uri"].startswith(f"minio://{BUCKET}/"), artifact
        assert None not in artifact.get("metadata", {}).values(), artifact
        name = artifact["uri"].removeprefix(f"minio://{BUCKET}/")
        folder = disk / BUCKET / name
        for file in (folder, *folder.rglob("*")):
            if file.is_file():  # a bucket has no empty folders
                target = root / name / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        artifact["uri"] = str(root / name)
    output_file.write_text(json.dumps(output))


def _serve_forever() -> None:
    """Reads commands from standard input, a line of JSON each, and forks for each; writes exit statuses."""
    from tfx import components  # noqa: F401
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if child := os.fork():
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, flush=True)
            continue
        log = os.open(request["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        python, flag, module, *arguments = request["command"]
        assert (python, flag) == ("python", "-m"), request["command"]
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit(0)


if __name__ == "__main__":
    _serve_forever()
