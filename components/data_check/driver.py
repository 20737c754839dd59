"""Finds what the data is compared with: the statistics that the live model was trained on."""

import json
from typing import Any

from tfx import types
from tfx.types import artifact_utils

from components import driver
from components.artifacts import TRAIN_STATISTICS, read_statistics
from imagepipe.base import filesystem
from imagepipe.deploy import targets
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.deployment import sort_by_traffic


def find_baseline(deploy: DeployConfig, current: bytes) -> str:
    """Returns the file with the statistics that the live model was trained on.

    Args:
        deploy: where models are deployed to.
        current: statistics of the training split, serialized. A model that was trained on exactly these is skipped, as
            in ``champion.executor.find_live_model``, so that a pipeline that is run again without changes finds
            everything in the cache.

    Returns:
        The file, or '' if there is none: no model is live, or it was made elsewhere.
    """
    for version in sort_by_traffic(targets.load_target(deploy).status(deploy)):
        file = f"{version.uri}/{TRAIN_STATISTICS}"
        try:
            if not filesystem.exists(file):
                return ""
            if filesystem.read_bytes(file) != current:
                return file
        except OSError:  # the model is in a place that can't be read from here
            return ""
    return ""


class Driver(driver.PropertyDriver):
    """Adds the baseline to the cache key, as the execution property ``baseline``."""

    PROPERTY = "baseline"

    @staticmethod
    def look_up(properties: dict[str, Any], input_dict: dict[str, list[types.Artifact]]) -> str:
        """Returns the file with the statistics that the live model was trained on, '' if there is none."""
        current = read_statistics(artifact_utils.get_single_instance(input_dict["statistics"]), "train")
        return find_baseline(DeployConfig(**json.loads(properties["deploy"])), current)
