"""Trainer and Tuner: TFX's, with parameters of their own for what a compiled pipeline is run with anew.

TFX passes settings as one JSON text, ``custom_config``. A parameter of a compiled pipeline is a value of its own.
"""

from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.trainer import executor as trainer_executor
from tfx.components.tuner import executor as tuner_executor
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.utils import json_utils, path_utils

from components.data_check.component import TRAINED_ON, train_statistics
from components.remote import local_outputs

_CUSTOM_CONFIG = standard_component_specs.CUSTOM_CONFIG_KEY
_MODEL, _STATISTICS = standard_component_specs.MODEL_KEY, standard_component_specs.STATISTICS_KEY
_SETTINGS = {
    "epochs": component_spec.ExecutionParameter(type=int),
    "batch_size": component_spec.ExecutionParameter(type=int),
}


def with_settings(exec_properties: dict[str, Any]) -> dict[str, Any]:
    """Execution properties whose ``custom_config["trainer"]`` has the values of the parameters."""
    custom = json_utils.loads(exec_properties[_CUSTOM_CONFIG])
    custom["trainer"] |= {name: exec_properties[name] for name in _SETTINGS}
    return exec_properties | {_CUSTOM_CONFIG: json_utils.dumps(custom)}


class TrainerExecutor(trainer_executor.GenericExecutor):
    """Trains, in folders on this machine."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the model and its run; see TFX's executor for the arguments."""
        with local_outputs(output_dict):
            super().Do(input_dict, output_dict, with_settings(exec_properties))
            model = path_utils.serving_model_path(artifact_utils.get_single_uri(output_dict[_MODEL]))
            data = train_statistics(artifact_utils.get_single_instance(input_dict[_STATISTICS]))
            file = Path(model) / TRAINED_ON
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


class TunerExecutor(tuner_executor.Executor):
    """Searches."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the best settings and all trials; see TFX's executor for the arguments."""
        super().Do(input_dict, output_dict, with_settings(exec_properties))


class _TrainerSpec(types.ComponentSpec):
    PARAMETERS = standard_component_specs.TrainerSpec.PARAMETERS | _SETTINGS
    INPUTS = standard_component_specs.TrainerSpec.INPUTS | {
        _STATISTICS: component_spec.ChannelParameter(type=standard_artifacts.ExampleStatistics)
    }
    OUTPUTS = standard_component_specs.TrainerSpec.OUTPUTS


class _TunerSpec(types.ComponentSpec):
    PARAMETERS = standard_component_specs.TunerSpec.PARAMETERS | _SETTINGS
    INPUTS = standard_component_specs.TunerSpec.INPUTS
    OUTPUTS = standard_component_specs.TunerSpec.OUTPUTS


class Trainer(base_component.BaseComponent):
    """Trains a model with the function ``run_fn``, and puts the training split's statistics into its SavedModel.

    Args:
        run_fn: import path.
        custom_config: what ``run_fn`` is to know; its key ``trainer`` gets the two values below.
        epochs: see ``TrainerConfig``.
        batch_size: likewise.
        rest: ``statistics``, which later data is compared with, and the other inputs and parameters of TFX's Trainer:
            ``examples``, ``train_args``, …
    """

    SPEC_CLASS = _TrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(TrainerExecutor)

    def __init__(
        self,
        run_fn: str,
        custom_config: dict[str, Any],
        epochs: int | RuntimeParameter,
        batch_size: int | RuntimeParameter,
        **rest: Any,
    ):
        outputs = {
            standard_component_specs.MODEL_KEY: types.Channel(type=standard_artifacts.Model),
            standard_component_specs.MODEL_RUN_KEY: types.Channel(type=standard_artifacts.ModelRun),
        }
        settings = {_CUSTOM_CONFIG: json_utils.dumps(custom_config), "epochs": epochs, "batch_size": batch_size}
        super().__init__(spec=_TrainerSpec(run_fn=run_fn, **settings, **rest, **outputs))


class Tuner(base_component.BaseComponent):
    """Searches for the best settings with the function ``tuner_fn``; see ``Trainer`` for the arguments."""

    SPEC_CLASS = _TunerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(TunerExecutor)

    def __init__(
        self,
        tuner_fn: str,
        custom_config: dict[str, Any],
        epochs: int | RuntimeParameter,
        batch_size: int | RuntimeParameter,
        **rest: Any,
    ):
        outputs = {
            standard_component_specs.BEST_HYPERPARAMETERS_KEY: types.Channel(type=standard_artifacts.HyperParameters),
            standard_component_specs.TUNER_RESULTS_KEY: types.Channel(type=standard_artifacts.TunerResults),
        }
        settings = {_CUSTOM_CONFIG: json_utils.dumps(custom_config), "epochs": epochs, "batch_size": batch_size}
        super().__init__(spec=_TunerSpec(tuner_fn=tuner_fn, **settings, **rest, **outputs))
