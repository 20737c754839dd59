"""ImageSchemaGen: TFX's SchemaGen, plus what statistics can't show: the image, and what may vary."""

from typing import Any, ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.component_spec import ExecutionParameter

from components.schema_gen.executor import Executor


class ImageSchemaGenSpec(types.ComponentSpec):
    """TFX's SchemaGenSpec, with the names of two features."""

    PARAMETERS: ClassVar[dict[str, Any]] = standard_component_specs.SchemaGenSpec.PARAMETERS | {
        "image_feature": ExecutionParameter(type=str),
        "varying_feature": ExecutionParameter(type=str),
    }
    INPUTS: ClassVar[dict[str, Any]] = standard_component_specs.SchemaGenSpec.INPUTS
    OUTPUTS: ClassVar[dict[str, Any]] = standard_component_specs.SchemaGenSpec.OUTPUTS


class ImageSchemaGen(base_component.BaseComponent):
    """Infers the schema of Examples from statistics of all their features but the image.

    Args:
        statistics: channel of ``ExampleStatistics``.
        image_feature: name of the feature that holds the encoded image.
        varying_feature: name of a feature with any number of values, whatever the statistics show; '' for none.
    """

    SPEC_CLASS = ImageSchemaGenSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, statistics: types.BaseChannel, image_feature: str, varying_feature: str = ""):
        super().__init__(
            spec=ImageSchemaGenSpec(
                statistics=statistics,
                infer_feature_shape=1,
                exclude_splits="[]",
                image_feature=image_feature,
                varying_feature=varying_feature,
                schema=types.Channel(type=standard_artifacts.Schema),
            )
        )
