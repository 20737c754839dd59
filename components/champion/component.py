"""Champion: the model that is live, as an artifact for the Evaluator to compare the candidate with.

TFX's own way, a Resolver node, looks for the last blessed model in ML Metadata. It doesn't run on open-source Kubeflow,
and what was blessed need not be what is live: a version may have been rolled back, or copied in from elsewhere. So this
component asks the target that models are deployed to.
"""

import json
from pathlib import PurePosixPath
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.utils import io_utils, path_utils

from components import driver
from imagepipe.deploy import storage, targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import sort_by_traffic

_DEPLOY = "deploy"
_LIVE = "live"
_MODEL = standard_component_specs.MODEL_KEY
_CHAMPION = "champion"


def live_model(deploy: DeployConfig, candidate: str) -> str:
    """The model that a candidate has to beat.

    Args:
        deploy: where models are deployed to.
        candidate: folder of the candidate's SavedModel.

    Returns:
        The SavedModel's folder of the version with the most requests that isn't the candidate itself, or '' if there is
        none. The candidate is live when a pipeline is run again without changes: it is then compared with what it was
        compared with before, so that nothing has to run anew.
    """
    versions = sort_by_traffic(targets.load_target(deploy).status(deploy))
    return next((v.uri for v in versions if not storage.same_model(candidate, v.uri)), "")


def _live(properties: dict[str, Any], input_dict: dict[str, list[types.Artifact]]) -> str:
    candidate = path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict[_MODEL]))
    return live_model(DeployConfig(**json.loads(properties[_DEPLOY])), candidate)


class Driver(driver.Driver):
    """Finds what is live."""

    PROPERTY = _LIVE
    found = staticmethod(_live)


class Executor(base_executor.BaseExecutor):
    """Copies the live model, so that the Evaluator finds it even if it is replaced meanwhile."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the champion as a Model artifact, or leaves the artifact empty if nothing is live."""
        self._log_startup(input_dict, output_dict, exec_properties)
        live = exec_properties.get(_LIVE)
        if live is None:  # a runner without drivers
            live = _live(exec_properties, input_dict)
        champion = artifact_utils.get_single_instance(output_dict[_CHAMPION])
        champion.set_string_custom_property("version", PurePosixPath(live).name)
        if live:
            io_utils.copy_dir(live, path_utils.serving_model_path(champion.uri))


class _Spec(types.ComponentSpec):
    PARAMETERS = {  # noqa: RUF012 (TFX's way)
        _DEPLOY: component_spec.ExecutionParameter(type=str),
        _LIVE: component_spec.ExecutionParameter(type=str, optional=True),
    }
    INPUTS = {_MODEL: component_spec.ChannelParameter(type=standard_artifacts.Model)}  # noqa: RUF012
    OUTPUTS = {_CHAMPION: component_spec.ChannelParameter(type=standard_artifacts.Model)}  # noqa: RUF012


class Champion(base_component.BaseComponent):
    """Finds the model that is live; its output ``champion`` is an empty Model where nothing is.

    Args:
        model: channel of the candidate, which is not its own champion.
        deploy: where models are deployed to, a ``DeployConfig`` as JSON.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(self, model: types.BaseChannel, deploy: str):
        champion = types.Channel(type=standard_artifacts.Model)
        super().__init__(spec=_Spec(model=model, deploy=deploy, champion=champion))
