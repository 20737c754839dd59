"""Push to a folder in TensorFlow Serving's layout, so that a reader never sees half a model."""

import time
from typing import Any

from tfx.components.pusher import executor
from tfx.dsl.io import fileio
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, proto_utils

from serving.versions import same_model, version_folders


class Executor(executor.Executor):
    """Copies a blessed model to ``base_directory/<version>/`` under another name first, and renames it when complete.

    TFX's own executor copies into the version folder itself: a server that looks in meanwhile, or a machine that stops
    there, finds a model in part. Model servers ignore folders whose name isn't a number.
    """

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Pushes the model if it is blessed; see TFX's executor for the arguments."""
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination)
        folder, version = push(self.GetModelPath(input_dict), destination.filesystem.base_directory)
        self._MarkPushed(pushed, pushed_destination=folder, pushed_version=version)


def push(model: str, serving_dir: str) -> tuple[str, str]:
    """Copies a SavedModel into a new version folder, atomically.

    Args:
        model: the SavedModel's folder.
        serving_dir: the folder with the version folders; made if missing.

    Returns:
        The folder and its version: seconds since 1970, or one more than the last version if that is later. If the
        newest version is this very model already, nothing is copied, and it is that one.
    """
    fileio.makedirs(serving_dir)
    versions = version_folders(serving_dir)
    if versions and same_model(model, versions[-1]):
        return str(versions[-1]), versions[-1].name
    version = str(max(int(time.time()), int(versions[-1].name) + 1 if versions else 0))
    partial, folder = f"{serving_dir}/.partial-{version}", f"{serving_dir}/{version}"
    io_utils.copy_dir(model, partial)
    fileio.rename(partial, folder)
    return folder, version
