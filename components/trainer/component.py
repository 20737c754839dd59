"""Trainer and Tuner: TFX's, with parameters that a run of a compiled pipeline can change.

TFX passes all settings as one JSON text, ``custom_config``. A parameter of a compiled pipeline has to be a value of its
own.
"""

from typing import Any, ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter, ExecutionParameter
from tfx.utils import json_utils

from components.trainer.executor import SETTINGS, TrainerExecutor, TunerExecutor

_CUSTOM_CONFIG = standard_component_specs.CUSTOM_CONFIG_KEY
_PARAMETERS = {name: ExecutionParameter(type=int) for name in SETTINGS}


class TrainerSpec(types.ComponentSpec):
    """TFX's TrainerSpec, with the settings and the statistics."""

    PARAMETERS: ClassVar[dict[str, Any]] = standard_component_specs.TrainerSpec.PARAMETERS | _PARAMETERS
    INPUTS: ClassVar[dict[str, Any]] = standard_component_specs.TrainerSpec.INPUTS | {
        standard_component_specs.STATISTICS_KEY: ChannelParameter(type=standard_artifacts.ExampleStatistics)
    }
    OUTPUTS: ClassVar[dict[str, Any]] = standard_component_specs.TrainerSpec.OUTPUTS


class TunerSpec(types.ComponentSpec):
    """TFX's TunerSpec, with the settings."""

    PARAMETERS: ClassVar[dict[str, Any]] = standard_component_specs.TunerSpec.PARAMETERS | _PARAMETERS
    INPUTS: ClassVar[dict[str, Any]] = standard_component_specs.TunerSpec.INPUTS
    OUTPUTS: ClassVar[dict[str, Any]] = standard_component_specs.TunerSpec.OUTPUTS


class Trainer(base_component.BaseComponent):
    """Trains a model with the function ``run_fn``, and puts the training split's statistics into its SavedModel.

    Args:
        run_fn: import path of the function.
        custom_config: settings for ``run_fn``; the key ``trainer`` gets the two values below.
        epochs: see ``TrainerConfig``.
        batch_size: likewise.
        rest: ``statistics``, which later data is compared with, and the other inputs and parameters of TFX's Trainer:
            ``examples``, ``train_args``, …
    """

    SPEC_CLASS = TrainerSpec
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
        super().__init__(spec=TrainerSpec(run_fn=run_fn, **settings, **rest, **outputs))


class Tuner(base_component.BaseComponent):
    """Searches for the best settings with the function ``tuner_fn``; see ``Trainer`` for the arguments."""

    SPEC_CLASS = TunerSpec
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
        super().__init__(spec=TunerSpec(tuner_fn=tuner_fn, **settings, **rest, **outputs))
