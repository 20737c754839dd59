"""Finds the live model, which a candidate has to beat, and copies it into an artifact."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import path_utils

from components import driver
from imagepipe.base import filesystem
from imagepipe.base.names import LIVE_MODELS
from imagepipe.deploy import storage
from imagepipe.deploy.live import list_models


def choose_champion(models: Sequence[str], candidate: str) -> str:
    """Returns the model that a candidate has to beat.

    Args:
        models: folders of deployed SavedModels, see ``imagepipe.deploy.live.list_models``.
        candidate: folder of the candidate's SavedModel.

    Returns:
        The first that isn't the candidate itself, or '' if there is none. The candidate is live when a pipeline is run
        again without changes: it is then compared with the same model as the first time, so that nothing has to run
        again.
    """
    return next((model for model in models if not storage.is_same_model(candidate, model)), "")


class Driver(driver.PropertyDriver):
    """Adds the live model to the cache key, as the execution property ``live``."""

    PROPERTY = "live"

    @staticmethod
    def look_up(properties: dict[str, Any], input_dict: dict[str, list[types.Artifact]]) -> str:
        """Returns the folder of the live SavedModel, '' if there is none."""
        candidate = path_utils.serving_model_path(artifact_utils.get_single_uri(input_dict["model"]))
        return choose_champion(driver.list_choices(properties, LIVE_MODELS, list_models), candidate)


class Executor(base_executor.BaseExecutor):
    """Copies the live model, so that the Evaluator has it even if it is replaced meanwhile."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the champion as a Model artifact, or leaves the artifact empty if no model is live."""
        self._log_startup(input_dict, output_dict, exec_properties)
        live = exec_properties.get(Driver.PROPERTY)
        if live is None:  # the runner has no drivers
            live = Driver.look_up(exec_properties, input_dict)
        champion = artifact_utils.get_single_instance(output_dict["champion"])
        champion.set_string_custom_property("version", PurePosixPath(live).name)
        if live:
            filesystem.copy_folder(live, path_utils.serving_model_path(champion.uri))
