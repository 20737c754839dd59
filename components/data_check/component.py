"""DataCheck: finds what is wrong with the data before a model is trained on it.

TFX's ExampleValidator compares statistics with the schema, and its anomalies are protocol buffers that nobody reads and
nothing obeys. DataCheck reports them as text, with what statistics can't show: classes with too few images, labels that
the training split lacks, copies of images across splits, labels that are likely to be wrong, and how far the data has
moved since the live model was trained. DataGate stops the run on errors.
"""

from typing import Any, ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter

from components.data_check.driver import Driver
from components.data_check.executor import Executor
from imagepipe.base.names import DECISIONS_HASH, LIVE_STATISTICS


class DataCheckSpec(types.ComponentSpec):
    """Inputs, outputs and parameters of DataCheck."""

    PARAMETERS: ClassVar[dict[str, Any]] = {
        "task": ExecutionParameter(type=str),
        "features": ExecutionParameter(type=str),
        "validation": ExecutionParameter(type=str),
        "slices": ExecutionParameter(type=str),
        "demands": ExecutionParameter(type=str),
        "deploy": ExecutionParameter(type=str),
        "dataset": ExecutionParameter(type=str),
        DECISIONS_HASH: ExecutionParameter(type=str, optional=True),
        LIVE_STATISTICS: ExecutionParameter(type=str, optional=True),
        Driver.PROPERTY: ExecutionParameter(type=str, optional=True),
    }
    INPUTS: ClassVar[dict[str, Any]] = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "statistics": ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "schema": ChannelParameter(type=standard_artifacts.Schema),
        "anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies),
    }
    OUTPUTS: ClassVar[dict[str, Any]] = {"findings": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}


class DataCheck(base_component.BaseComponent):
    """Checks the data; its output ``findings`` has FINDINGS, STATISTICS and SCHEMA of ``imagepipe.base.names``.

    Args:
        examples: channel of the Examples.
        statistics: channel of their statistics.
        schema: channel of the schema.
        anomalies: channel of ExampleValidator's output.
        task: classification, multilabel or regression.
        features: names of an Example's features, as JSON.
        validation: a ``ValidationConfig`` as JSON.
        slices: combinations of columns whose every value the evaluation makes a slice of, a list of lists as JSON.
        demands: key of the configuration, column, values and split of names that the split must have, a list of lists
            as JSON.
        deploy: where models are deployed to, a ``DeployConfig`` as JSON: the data is compared with what the live model
            was trained on.
        dataset: the folder of the Examples, as a pattern in which special characters are escaped. If ``imagepipe
            ingest`` made it, it may list decisions of people, who are not asked again about the images.
        decisions_hash: of these decisions; None if a task of a compiled pipeline looks it up.
    """

    SPEC_CLASS = DataCheckSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(
        self,
        examples: types.BaseChannel,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        anomalies: types.BaseChannel,
        task: str,
        features: str,
        validation: str,
        slices: str,
        demands: str,
        deploy: str,
        dataset: str | RuntimeParameter,
        decisions_hash: str | None,
    ):
        super().__init__(
            spec=DataCheckSpec(
                examples=examples,
                statistics=statistics,
                schema=schema,
                anomalies=anomalies,
                task=task,
                features=features,
                validation=validation,
                slices=slices,
                demands=demands,
                deploy=deploy,
                dataset=dataset,
                **({} if decisions_hash is None else {DECISIONS_HASH: decisions_hash}),
                findings=types.Channel(type=standard_artifacts.ExampleAnomalies),
            )
        )
