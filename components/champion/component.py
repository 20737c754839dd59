"""Champion: the live model as an artifact, which the Evaluator compares the candidate with.

TFX's own way, a Resolver node, looks for the last blessed model in ML Metadata. It doesn't run on open-source Kubeflow,
and the last blessed model need not be the live one: a version may have been rolled back, or copied in from elsewhere.
So this component asks the target that models are deployed to.
"""

from typing import Any, ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter

from components.champion.executor import Driver, Executor
from imagepipe.base.names import LIVE_MODELS


class ChampionSpec(types.ComponentSpec):
    """Inputs, outputs and parameters of Champion."""

    PARAMETERS: ClassVar[dict[str, Any]] = {
        "deploy": ExecutionParameter(type=str),
        LIVE_MODELS: ExecutionParameter(type=str, optional=True),
        Driver.PROPERTY: ExecutionParameter(type=str, optional=True),
    }
    INPUTS: ClassVar[dict[str, Any]] = {"model": ChannelParameter(type=standard_artifacts.Model)}
    OUTPUTS: ClassVar[dict[str, Any]] = {"champion": ChannelParameter(type=standard_artifacts.Model)}


class Champion(base_component.BaseComponent):
    """Finds the live model; its output ``champion`` is an empty Model if none is live.

    Args:
        model: channel of the candidate, which is not its own champion.
        deploy: where models are deployed to, a ``DeployConfig`` as JSON.
    """

    SPEC_CLASS = ChampionSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(self, model: types.BaseChannel, deploy: str):
        champion = types.Channel(type=standard_artifacts.Model)
        super().__init__(spec=ChampionSpec(model=model, deploy=deploy, champion=champion))
