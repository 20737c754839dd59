"""SchemaGen for images: TFX's, plus what statistics can't say: the image, which they leave out, and what may vary."""

from typing import Any

from tensorflow_metadata.proto.v0 import schema_pb2
from tfx import types
from tfx.components.schema_gen import executor
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.utils import io_utils

_IMAGE_FEATURE = "image_feature"
_VARYING_FEATURE = "varying_feature"


class Executor(executor.Executor):
    """Infers a schema from statistics that don't cover the encoded image, and adds the image to it."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the schema; see TFX's executor for the arguments."""
        super().Do(input_dict, output_dict, exec_properties)
        folder = artifact_utils.get_single_uri(output_dict[standard_component_specs.SCHEMA_KEY])
        path = f"{folder}/{executor.DEFAULT_FILE_NAME}"
        schema = io_utils.SchemaReader().read(path)
        completed(schema, exec_properties[_IMAGE_FEATURE], exec_properties[_VARYING_FEATURE])
        io_utils.write_pbtxt_file(path, schema)


def completed(schema: schema_pb2.Schema, image_feature: str, varying_feature: str) -> None:
    """Adds to a schema what statistics without the image can't say; see ``ImageSchemaGen`` for the arguments."""
    # Without a presence: a feature that has to be there and has no statistics would be an anomaly.
    image = schema.feature.add(name=image_feature, type=schema_pb2.BYTES)
    image.value_count.min = image.value_count.max = 1
    for feature in schema.feature:
        if feature.name == varying_feature:
            # Tonight all images may have two labels; a model that is made for just that fails on tomorrow's.
            feature.ClearField("shape")
            feature.ClearField("value_count")
            feature.ClearField("presence")


class _Spec(types.ComponentSpec):
    PARAMETERS = {  # noqa: RUF012 (TFX's way)
        **standard_component_specs.SchemaGenSpec.PARAMETERS,
        _IMAGE_FEATURE: component_spec.ExecutionParameter(type=str),
        _VARYING_FEATURE: component_spec.ExecutionParameter(type=str),
    }
    INPUTS = standard_component_specs.SchemaGenSpec.INPUTS
    OUTPUTS = standard_component_specs.SchemaGenSpec.OUTPUTS


class ImageSchemaGen(base_component.BaseComponent):
    """Infers the schema of Examples from statistics of all their features but the image.

    Args:
        statistics: channel of ``ExampleStatistics``.
        image_feature: name of the feature that holds the encoded image.
        varying_feature: name of a feature with any number of values, whatever the statistics say; '' for none.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, statistics: types.BaseChannel, image_feature: str, varying_feature: str = ""):
        schema = types.Channel(type=standard_artifacts.Schema)
        super().__init__(
            spec=_Spec(
                statistics=statistics,
                infer_feature_shape=1,
                exclude_splits="[]",
                image_feature=image_feature,
                varying_feature=varying_feature,
                schema=schema,
            )
        )
