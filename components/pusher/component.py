"""Pusher: TFX's, which also takes what traffic to the model is to be compared with once it is in service."""

from typing import Any, ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter
from tfx.utils import json_utils

from components.pusher.executor import DEPLOY, REFERENCE_KEY, Executor


class PusherSpec(standard_component_specs.PusherSpec):
    """TFX's inputs, outputs and parameters, and the reference."""

    INPUTS: ClassVar[dict[str, Any]] = standard_component_specs.PusherSpec.INPUTS | {
        REFERENCE_KEY: ChannelParameter(type=standard_artifacts.InferenceResult, optional=True)
    }


class Pusher(base_component.BaseComponent):
    """Deploys a model that both gates have passed; its output ``pushed_model`` says what became of it.

    Args:
        deploy: the target, a ``DeployConfig`` as plain data.
        model: channel of the candidate.
        model_blessing: channel of the Evaluator's blessing.
        infra_blessing: channel of ServingCheck's blessing.
        reference: channel of Predictions' output of that name, which goes into the version.
    """

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, deploy: dict[str, Any], **channels: types.BaseChannel):
        pushed = types.Channel(type=standard_artifacts.PushedModel)
        config = json_utils.dumps({DEPLOY: deploy})
        super().__init__(spec=PusherSpec(custom_config=config, pushed_model=pushed, **channels))
