"""Executors of Trainer and Tuner: TFX's, with settings that a run of a compiled pipeline can change.

They hold the folder of the states of interrupted trainings, in which ``trainer`` removes those that nothing continues.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tfx.components.trainer import executor as trainer_executor
from tfx.components.tuner import executor as tuner_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import json_utils, path_utils

from components.artifacts import local_outputs, read_statistics
from imagepipe.base.errors import TrainingError
from imagepipe.base.locks import lock_folder
from imagepipe.base.names import TRAIN_STATISTICS

SETTINGS = ("epochs", "batch_size")
"""Execution properties, whole numbers, that replace settings of the same name."""

_CUSTOM_CONFIG = standard_component_specs.CUSTOM_CONFIG_KEY


def insert_settings(exec_properties: dict[str, Any]) -> dict[str, Any]:
    """Returns the execution properties, with the values of SETTINGS in ``custom_config["trainer"]``."""
    custom = json_utils.loads(exec_properties[_CUSTOM_CONFIG])
    custom["trainer"] |= {name: exec_properties[name] for name in SETTINGS}
    return exec_properties | {_CUSTOM_CONFIG: json_utils.dumps(custom)}


def _lock_states(exec_properties: dict[str, Any]) -> AbstractContextManager[Any]:
    folder = json_utils.loads(exec_properties[_CUSTOM_CONFIG])["state_dir"]
    return lock_folder(folder, TrainingError(f"Another training is using {folder}. Wait for it."))


class TrainerExecutor(trainer_executor.GenericExecutor):
    """Trains in folders on this machine, and puts the training split's statistics into the SavedModel."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the model and its run; see TFX's executor for the arguments."""
        with _lock_states(exec_properties), local_outputs(output_dict):
            super().Do(input_dict, output_dict, insert_settings(exec_properties))
            model_uri = artifact_utils.get_single_uri(output_dict[standard_component_specs.MODEL_KEY])
            statistics = artifact_utils.get_single_instance(input_dict[standard_component_specs.STATISTICS_KEY])
            file = Path(path_utils.serving_model_path(model_uri)) / TRAIN_STATISTICS
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read_statistics(statistics, "train"))


class TunerExecutor(tuner_executor.Executor):
    """Searches for the best settings."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the best settings and all trials; see TFX's executor for the arguments."""
        with _lock_states(exec_properties):
            super().Do(input_dict, output_dict, insert_settings(exec_properties))
