"""What each container of a compiled pipeline runs: TFX's own entrypoint, with what is missing on open-source Kubeflow.

``python -m pipeline.kubeflow.entrypoint`` takes the arguments that TFX's compiler gives its own
``tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor``. Around that one it

- gives artifacts the types that the component declares: Kubeflow's driver passes inputs on without, and of outputs that
  are shown on its page the compiled pipeline says kfp's;
- leaves out the output that Kubeflow adds of its own: the log;
- replaces URIs of object stores that TFX can't open (``minio://``, ``s3://``) by the paths at which Kubeflow's launcher
  puts inputs and looks for outputs, and in what the executor leaves behind the other way round;
- runs ImportExampleGen's driver, which Vertex AI runs by itself and Kubeflow doesn't;
- tells Beam where this container has the project's ``setup.py``, for the workers of a cluster.

With ``gs://`` on Vertex AI, artifacts pass as they are.
(Launcher and driver: kubeflow/pipelines, backend/src/v2/component/launcher_v2.go and backend/src/v2/metadata.)
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from typing import Any

from imagepipe.base.beam_options import add_setup_file

_LOCAL_PATHS = {"minio://": "/minio/", "s3://": "/s3/"}
_KFPS_OWN = "system."


def local(uri: str) -> str:
    """The path at which Kubeflow's launcher has an object that TFX can't open; other URIs as they are."""
    for scheme, folder in _LOCAL_PATHS.items():
        if uri.startswith(scheme):
            return folder + uri.removeprefix(scheme)
    return uri


def with_uris(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """An executor's input or output, the URIs of its artifacts changed.

    Args:
        message: ``ExecutorInput`` or ``ExecutorOutput`` as JSON.
        change: makes the new URI of the old one.
    """
    changed = copy.deepcopy(message)
    for artifact in _artifacts(changed):
        if "uri" in artifact:
            artifact["uri"] = change(artifact["uri"])
    return changed


def _artifacts(message: dict[str, Any]) -> list[dict[str, Any]]:
    listed = [message.get("artifacts", {}), *(message.get(side, {}).get("artifacts", {}) for side in _SIDES)]
    return [artifact for by_key in listed for one in by_key.values() for artifact in one.get("artifacts", [])]


_SIDES = ("inputs", "outputs")


def with_types(executor_input: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """An executor's input, whose artifacts have types that TFX knows, and its inputs names.

    Args:
        executor_input: ``ExecutorInput`` as JSON.
        spec: the component's ``ComponentInputsSpec`` as JSON: what it declares.
    """
    changed = copy.deepcopy(executor_input)
    for key, one in changed.get("inputs", {}).get("artifacts", {}).items():
        for artifact in one.get("artifacts", []):
            artifact["type"] = spec["artifacts"][key]["artifactType"]
            artifact.setdefault("name", artifact.get("uri", key))  # TFX's Evaluator remembers models by name
    for one in changed.get("outputs", {}).get("artifacts", {}).values():
        for artifact in one["artifacts"]:
            title = artifact["type"].get("schemaTitle", "")
            if title.startswith(_KFPS_OWN):  # TFX takes a title that it doesn't know for the path of a class
                artifact["type"] = {"schemaTitle": f"components.model_report.component.{title.removeprefix(_KFPS_OWN)}"}
    return changed


def without_log(executor_input: dict[str, Any]) -> dict[str, Any]:
    """An executor's input without the output to which the launcher writes what the container prints."""
    changed = copy.deepcopy(executor_input)
    changed.get("outputs", {}).get("artifacts", {}).pop("executor-logs", None)
    return changed


def with_driver_output(executor_input: dict[str, Any], driver_output: dict[str, Any]) -> dict[str, Any]:
    """An executor's input, whose output artifacts have the metadata (span, version, fingerprint) that a driver gave."""
    changed = copy.deepcopy(executor_input)
    for key, one in driver_output.get("artifacts", {}).items():
        for artifact, given in zip(changed["outputs"]["artifacts"][key]["artifacts"], one["artifacts"], strict=True):
            artifact["metadata"] = artifact.get("metadata", {}) | given.get("metadata", {})
    return changed


def without_nulls(executor_output: dict[str, Any]) -> dict[str, Any]:
    """An executor's output without metadata that are null, which Kubeflow's launcher takes for an error."""
    changed = copy.deepcopy(executor_output)
    for artifact in _artifacts(changed):
        artifact["metadata"] = {key: value for key, value in artifact.get("metadata", {}).items() if value is not None}
    return changed


def with_figures_only(executor_output: dict[str, Any], executor_input: dict[str, Any]) -> dict[str, Any]:
    """An executor's output, whose metrics have numbers only: Kubeflow's page shows all metadata, TFX's version too."""
    changed = copy.deepcopy(executor_output)
    for key, one in executor_input["outputs"].get("artifacts", {}).items():
        if one["artifacts"][0]["type"].get("schemaTitle") == f"{_KFPS_OWN}Metrics":
            for artifact in changed["artifacts"][key]["artifacts"]:
                figures = {name: each for name, each in artifact["metadata"].items() if isinstance(each, int | float)}
                artifact["metadata"] = figures
    return changed


def main(arguments: list[str]) -> None:
    """Runs an executor.

    Args:
        arguments: those that TFX's compiler gives a container.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--executor_class_path", required=True)
    parser.add_argument("--json_serialized_invocation_args", required=True)
    parser.add_argument("--json_serialized_inputs_spec_args", required=True)
    given, beam_args = parser.parse_known_args(arguments)
    asked = json.loads(given.json_serialized_invocation_args)
    spec = json.loads(given.json_serialized_inputs_spec_args)
    executor_input = with_types(without_log(with_uris(asked, local)), spec)

    from tfx.dsl.io import fileio
    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor as tfx_entrypoint
    from tfx.orchestration.kubeflow.v2.file_based_example_gen import driver

    output_file = asked["outputs"]["outputFile"]
    parameters = asked.get("inputs", {}).get("parameterValues", {})  # what is empty is left out
    if "input_base" in parameters and not fileio.exists(output_file):
        driver.main(_with_input(given, executor_input))
        executor_input = with_driver_output(executor_input, _read(output_file))
    tfx_entrypoint.main((_with_input(given, executor_input), add_setup_file(beam_args)))

    outputs = with_figures_only(without_nulls(_read(output_file)), asked)
    remote = {local(artifact["uri"]): artifact["uri"] for artifact in _artifacts(asked) if "uri" in artifact}
    with fileio.open(output_file, "w") as file:
        file.write(json.dumps(with_uris(outputs, lambda uri: remote.get(uri, uri))))


def _with_input(given: argparse.Namespace, executor_input: dict[str, Any]) -> argparse.Namespace:
    return argparse.Namespace(**vars(given) | {"json_serialized_invocation_args": json.dumps(executor_input)})


def _read(path: str) -> dict[str, Any]:
    from tfx.dsl.io import fileio

    with fileio.open(path, "r") as file:
        return json.loads(file.read())


if __name__ == "__main__":
    main(sys.argv[1:])
