"""Infers the schema from the statistics, and completes it."""

from typing import Any

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.components.schema_gen import executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils


class Executor(executor.Executor):
    """Infers a schema from statistics that don't cover the encoded image, and adds the image to it."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the schema; see TFX's executor for the arguments."""
        super().Do(input_dict, output_dict, exec_properties)
        folder = artifact_utils.get_single_uri(output_dict[standard_component_specs.SCHEMA_KEY])
        path = f"{folder}/{executor.DEFAULT_FILE_NAME}"
        schema = io_utils.SchemaReader().read(path)
        complete_schema(schema, exec_properties["image_feature"], exec_properties["varying_feature"])
        io_utils.write_pbtxt_file(path, schema)


def complete_schema(schema: schema_pb2.Schema, image_feature: str, varying_feature: str) -> None:
    """Adds to a schema what statistics without the image can't show; see ``ImageSchemaGen`` for the arguments."""
    # Without a presence: a feature that has to be there and has no statistics would be an anomaly.
    image = schema.feature.add(name=image_feature, type=schema_pb2.BYTES)
    image.value_count.min = image.value_count.max = 1
    for feature in schema.feature:
        if feature.name == varying_feature:
            # Tonight all images may have two labels; a model that is made for just that fails on tomorrow's.
            feature.ClearField("shape")
            feature.ClearField("value_count")
            feature.ClearField("presence")
