"""Pusher: TFX's, for every target of the configuration."""

import shlex
from typing import Any

from absl import logging
from tfx.components.pusher import executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import json_utils

from imagepipe.base.names import REFERENCE_FILE
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.pushing import push_model

DEPLOY = "deploy"
"""Key of the ``DeployConfig`` in ``custom_config``."""

REFERENCE_KEY = "reference"
"""Key of the input with the reference, see ``components.predictions``."""

OUTCOME, VERSION = "outcome", "version"
"""Properties of the PushedModel of a blessed model: a ``pushing.Outcome``, and the version at the target that it is.

TFX's own property ``pushed_version`` is there only if that version is in service.
"""


_TAKEN_OUT = {"rolled_back": "was rolled back", "replaced": "was replaced by another version"}


class Executor(executor.Executor):
    """Deploys a blessed model to the target that ``custom_config["deploy"]``, a ``DeployConfig``, names.

    It has to run each time, whatever the cache has: only the target can tell whether the model is still there.

    TFX's own executor for folders copies into the version folder itself: a server that reads it meanwhile, or a machine
    that stops halfway, is left with part of a model. Its extension for Google's clouds can't split the requests between
    a new model and the live one, sends all of them to a model before it has answered one, and looks for ML Engine's API
    where Google no longer describes it.
    """

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Pushes the model if it is blessed; see TFX's executor for the arguments."""
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(output_dict[standard_component_specs.PUSHED_MODEL_KEY])
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            return
        custom = json_utils.loads(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
        model = self.GetModelPath(input_dict)
        references = [f"{artifact.uri}/{REFERENCE_FILE}" for artifact in input_dict.get(REFERENCE_KEY, [])]
        push = push_model(model, DeployConfig(**custom[DEPLOY]), *references)
        logging.info("Version %s at the target is this model: %s", push.version.version, push.outcome)
        if reason := _TAKEN_OUT.get(push.outcome):
            logging.warning(
                "The model is blessed, but not pushed: it is version %s at the target, which %s. A run does not undo "
                "that. To deploy it: %s, with --config and the pipeline's configuration",
                push.version.version,
                reason,
                shlex.join(["imagepipe", "deploy", model]),
            )
        pushed.set_string_custom_property(OUTCOME, push.outcome)
        pushed.set_string_custom_property(VERSION, push.version.version)
        if push.is_deployed:
            self._MarkPushed(pushed, pushed_destination=push.version.uri, pushed_version=push.version.version)
        else:
            self._MarkNotPushed(pushed)
