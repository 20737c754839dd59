"""A driver that finds out, before the cache is asked, what a component's result depends on beside its inputs."""

from abc import abstractmethod
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_driver
from tfx.orchestration import data_types_utils, metadata
from tfx.orchestration.portable import base_driver as portable_driver
from tfx.orchestration.portable import data_types
from tfx.proto.orchestration import driver_output_pb2


class Driver(base_driver.BaseDriver, portable_driver.BaseDriver):
    """Adds an execution property, and thereby a part of the cache key.

    A component takes the first kind of driver only; the launcher runs the second.
    """

    PROPERTY: str

    def __init__(self, metadata_handle: metadata.Metadata):
        base_driver.BaseDriver.__init__(self, metadata_handle)
        portable_driver.BaseDriver.__init__(self, metadata_handle)

    @staticmethod
    @abstractmethod
    def found(properties: dict[str, Any], input_dict: dict[str, list[types.Artifact]]) -> str:
        """The property's value. An executor asks for it itself where a runner has no drivers."""

    def run(self, execution_info: data_types.ExecutionInfo) -> driver_output_pb2.DriverOutput:
        """Returns the execution properties with that one added."""
        properties = dict(execution_info.exec_properties)
        properties[self.PROPERTY] = self.found(properties, execution_info.input_dict)
        result = driver_output_pb2.DriverOutput()
        for key, value in properties.items():
            data_types_utils.set_metadata_value(result.exec_properties[key], value)
        return result
