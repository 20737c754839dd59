"""A driver that looks up what a component's result depends on beside its inputs, before the cache is asked."""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_driver
from tfx.orchestration import data_types_utils, metadata
from tfx.orchestration.portable import base_driver as portable_driver
from tfx.orchestration.portable import data_types
from tfx.proto.orchestration import driver_output_pb2

from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.live import HashedPaths


class PropertyDriver(base_driver.BaseDriver, portable_driver.BaseDriver):
    """Adds an execution property, which is then part of the cache key.

    It has both of TFX's base classes, as a component takes only the first kind of driver, and the launcher runs the
    second.
    """

    PROPERTY: str

    def __init__(self, metadata_handle: metadata.Metadata):
        base_driver.BaseDriver.__init__(self, metadata_handle)
        portable_driver.BaseDriver.__init__(self, metadata_handle)

    @staticmethod
    @abstractmethod
    def look_up(properties: dict[str, Any], input_dict: dict[str, list[types.Artifact]]) -> str:
        """Returns the property's value. An executor calls it itself if the runner has no drivers."""

    def run(self, execution_info: data_types.ExecutionInfo) -> driver_output_pb2.DriverOutput:
        """Returns the execution properties with the new one added."""
        properties = dict(execution_info.exec_properties)
        properties[self.PROPERTY] = self.look_up(properties, execution_info.input_dict)
        result = driver_output_pb2.DriverOutput()
        for key, value in properties.items():
            data_types_utils.set_metadata_value(result.exec_properties[key], value)
        return result


def list_choices(properties: Mapping[str, Any], name: str, look: Callable[[DeployConfig], HashedPaths]) -> list[str]:
    """Returns the paths that are to be chosen from.

    Args:
        properties: execution properties, with ``deploy``, a ``DeployConfig`` as JSON.
        name: the one with what a task of a compiled pipeline has looked up, as JSON. That is in the cluster's cache
            key, and so nothing else may count there, even if the target has changed since.
        look: looks it up, where there is no such task.
    """
    given = properties.get(name)
    paths = json.loads(given) if given else look(DeployConfig(**json.loads(properties["deploy"])))
    return [path for path, _ in paths]
