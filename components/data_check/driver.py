"""Finds what the data is compared with: the statistics that the live model was trained on."""

from collections.abc import Sequence
from typing import Any

from tfx import types
from tfx.types import artifact_utils

from components import driver
from components.artifacts import read_statistics
from imagepipe.base import filesystem
from imagepipe.base.names import LIVE_STATISTICS
from imagepipe.deploy.live import list_statistics


def choose_baseline(files: Sequence[str], current: bytes) -> str:
    """Returns the file with the statistics that the live model was trained on.

    Args:
        files: statistics that deployed models were trained on, see ``imagepipe.deploy.live.list_statistics``.
        current: statistics of the training split, serialized. A model that was trained on exactly these is skipped, as
            in ``champion.executor.choose_champion``, so that a pipeline that is run again without changes finds
            everything in the cache.

    Returns:
        The file, or '' if there is none.
    """
    return next((file for file in files if filesystem.read_bytes(file) != current), "")


class Driver(driver.PropertyDriver):
    """Adds the baseline to the cache key, as the execution property ``baseline``."""

    PROPERTY = "baseline"

    @staticmethod
    def look_up(properties: dict[str, Any], input_dict: dict[str, list[types.Artifact]]) -> str:
        """Returns the file with the statistics that the live model was trained on, '' if there is none."""
        current = read_statistics(artifact_utils.get_single_instance(input_dict["statistics"]), "train")
        return choose_baseline(driver.list_choices(properties, LIVE_STATISTICS, list_statistics), current)
