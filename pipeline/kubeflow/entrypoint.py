"""Entrypoint of the containers of a compiled pipeline: TFX's own, plus what open-source Kubeflow lacks.

``python -m pipeline.kubeflow.entrypoint`` takes the arguments that TFX's compiler gives its own
``tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor``. Around that one it

- gives artifacts the types that the component declares: Kubeflow's driver passes inputs on without types, and for
  outputs that are shown on its page the compiled pipeline has kfp's;
- drops the output that Kubeflow adds to each task: the log;
- replaces URIs of object stores that TFX can't open (``minio://``, ``s3://``) by the paths at which Kubeflow's launcher
  puts inputs and expects outputs, and does the reverse in the executor's output;
- copies TFRecords that TFX can't open, such as those of a dataset in ``s3://``, into the container;
- runs ImportExampleGen's driver, which Vertex AI runs itself and Kubeflow doesn't;
- with ``--cluster kubeflow``, leaves an empty folder for each output that the executor has not written, where the
  launcher looks: from 3.0 on that takes a missing one for a failure, Champion's if nothing is live, and every one that
  was written to ``gs://`` directly.

With ``gs://`` on Vertex AI, artifacts pass unchanged.
(Launcher and driver: kubeflow/pipelines, backend/src/v2/component/launcher_v2.go and backend/src/v2/metadata.)
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.signals import Stopped, end_on_signals
from pipeline.source import Source
from pipeline.staging import stage_examples

_LOCAL_PATHS = {"minio://": "/minio/", "s3://": "/s3/"}
_MOUNTED_PATHS = {"gs://": "/gcs/"}  # the launcher has these too, but TFX opens them itself
_KFP_TYPES = "system."
_ARTIFACTS = "components.kfp_artifacts"  # our artifacts of kfp's types


def to_local_path(uri: str, folders: dict[str, str] = _LOCAL_PATHS) -> str:
    """Returns the path at which Kubeflow's launcher has an object that TFX can't open; other URIs unchanged."""
    for scheme, folder in folders.items():
        if uri.startswith(scheme):
            return folder + uri.removeprefix(scheme)
    return uri


def replace_uris(message: dict[str, Any], replace: Callable[[str], str]) -> dict[str, Any]:
    """Returns an executor's input or output with other URIs of its artifacts.

    Args:
        message: ``ExecutorInput`` or ``ExecutorOutput`` as JSON.
        replace: returns the new URI for an old one.
    """
    changed = copy.deepcopy(message)
    for artifact in _list_artifacts(changed):
        if "uri" in artifact:
            artifact["uri"] = replace(artifact["uri"])
    return changed


def _list_artifacts(message: dict[str, Any]) -> list[dict[str, Any]]:
    sides = (message, message.get("inputs", {}), message.get("outputs", {}))
    lists = (entry for side in sides for entry in side.get("artifacts", {}).values())
    return [artifact for entry in lists for artifact in entry.get("artifacts", [])]


def add_types(executor_input: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Returns an executor's input whose artifacts have types that TFX knows, and whose inputs have names.

    Args:
        executor_input: ``ExecutorInput`` as JSON.
        spec: the component's ``ComponentInputsSpec`` as JSON: what it declares.
    """
    changed = copy.deepcopy(executor_input)
    for key, entry in changed.get("inputs", {}).get("artifacts", {}).items():
        for artifact in entry.get("artifacts", []):
            artifact["type"] = spec["artifacts"][key]["artifactType"]
            artifact.setdefault("name", artifact.get("uri", key))  # TFX's Evaluator remembers models by name
    for entry in changed.get("outputs", {}).get("artifacts", {}).values():
        for artifact in entry["artifacts"]:
            title = artifact["type"].get("schemaTitle", "")
            if title.startswith(_KFP_TYPES):  # TFX takes a title that it doesn't know for the path of a class
                artifact["type"] = {"schemaTitle": f"{_ARTIFACTS}.{title.removeprefix(_KFP_TYPES)}"}
    return changed


def drop_log(executor_input: dict[str, Any]) -> dict[str, Any]:
    """Returns an executor's input without the output to which the launcher writes what the container prints."""
    changed = copy.deepcopy(executor_input)
    changed.get("outputs", {}).get("artifacts", {}).pop("executor-logs", None)
    return changed


def add_driver_metadata(executor_input: dict[str, Any], driver_output: dict[str, Any]) -> dict[str, Any]:
    """Returns an executor's input whose output artifacts have the driver's metadata (span, version, fingerprint)."""
    changed = copy.deepcopy(executor_input)
    for key, entry in driver_output.get("artifacts", {}).items():
        artifacts = changed["outputs"]["artifacts"][key]["artifacts"]
        for artifact, described in zip(artifacts, entry["artifacts"], strict=True):
            artifact["metadata"] = artifact.get("metadata", {}) | described.get("metadata", {})
    return changed


def drop_nulls(executor_output: dict[str, Any]) -> dict[str, Any]:
    """Returns an executor's output without metadata that are null, which are an error for Kubeflow's launcher."""
    changed = copy.deepcopy(executor_output)
    for artifact in _list_artifacts(changed):
        artifact["metadata"] = {key: value for key, value in artifact.get("metadata", {}).items() if value is not None}
    return changed


def keep_numbers(executor_output: dict[str, Any], executor_input: dict[str, Any]) -> dict[str, Any]:
    """Returns an executor's output whose metrics have numbers only: Kubeflow's page would show TFX's version too."""
    changed = copy.deepcopy(executor_output)
    for key, entry in executor_input["outputs"].get("artifacts", {}).items():
        if entry["artifacts"][0]["type"].get("schemaTitle") == f"{_KFP_TYPES}Metrics":
            for artifact in changed["artifacts"][key]["artifacts"]:
                metadata = artifact["metadata"].items()
                artifact["metadata"] = {name: value for name, value in metadata if isinstance(value, int | float)}
    return changed


def create_missing_outputs(executor_input: dict[str, Any]) -> None:
    """Creates an empty folder for each output that is not where Kubeflow's launcher looks for it.

    Args:
        executor_input: ``ExecutorInput`` as JSON, with the launcher's URIs and without the log.
    """
    for artifact in _list_artifacts({"outputs": executor_input["outputs"]}):
        path = Path(to_local_path(artifact["uri"], _LOCAL_PATHS | _MOUNTED_PATHS))
        if not path.exists():
            path.mkdir(parents=True)


def stage_input(executor_input: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the input of ImportExampleGen with a folder that TFX can open; that of other components unchanged.

    Args:
        executor_input: ``ExecutorInput`` as JSON.
        folder: for copies of the TFRecords, if TFX can't open where they are.
    """
    changed = copy.deepcopy(executor_input)
    parameters = changed.get("inputs", {}).get("parameterValues", {})
    if "input_base" in parameters:
        splits = json.loads(parameters["input_config"])["splits"]
        source = Source(parameters["input_base"], {split["name"]: split["pattern"] for split in splits})
        parameters["input_base"] = stage_examples(source, folder).base
    return changed


def main(arguments: list[str]) -> None:
    """Runs an executor.

    Args:
        arguments: the arguments that TFX's compiler gives a container, and ``--cluster``.
    """
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--executor_class_path", required=True)
    parser.add_argument("--json_serialized_invocation_args", required=True)
    parser.add_argument("--json_serialized_inputs_spec_args", required=True)
    parser.add_argument("--cluster", required=True)
    options, beam_args = parser.parse_known_args(arguments)
    invocation = drop_log(json.loads(options.json_serialized_invocation_args))
    spec = json.loads(options.json_serialized_inputs_spec_args)
    executor_input = add_types(replace_uris(invocation, to_local_path), spec)
    executor_input = stage_input(executor_input, Path(tempfile.gettempdir(), "imagepipe-examples"))

    from tfx.orchestration.kubeflow.v2.container import kubeflow_v2_run_executor as tfx_entrypoint
    from tfx.orchestration.kubeflow.v2.file_based_example_gen import driver

    output_file = invocation["outputs"]["outputFile"]
    parameters = invocation.get("inputs", {}).get("parameterValues", {})  # missing if there are none
    if "input_base" in parameters and not filesystem.exists(output_file):
        driver.main(_set_input(options, executor_input))
        executor_input = add_driver_metadata(executor_input, json.loads(filesystem.read_text(output_file)))
    tfx_entrypoint.main((_set_input(options, executor_input), beam_args))

    outputs = keep_numbers(drop_nulls(json.loads(filesystem.read_text(output_file))), invocation)
    remote = {
        to_local_path(artifact["uri"]): artifact["uri"] for artifact in _list_artifacts(invocation) if "uri" in artifact
    }
    outputs = replace_uris(outputs, lambda uri: remote.get(uri, uri))
    filesystem.write_whole(output_file, json.dumps(outputs).encode())
    if options.cluster == "kubeflow":
        create_missing_outputs(invocation)


def _set_input(options: argparse.Namespace, executor_input: dict[str, Any]) -> argparse.Namespace:
    return argparse.Namespace(**vars(options) | {"json_serialized_invocation_args": json.dumps(executor_input)})


if __name__ == "__main__":
    try:
        with end_on_signals():  # as the first process of a container it would not even be ended by SIGTERM
            main(sys.argv[1:])
    except Stopped as stopped:
        sys.exit(stopped.status)
