"""ModelReport: a page about the data and the model, and metrics for the run pages of Kubeflow and Vertex AI."""

from typing import Any, ClassVar

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import standard_artifacts
from tfx.types.component_spec import ChannelParameter, ExecutionParameter

from components.kfp_artifacts import HTML, ClassificationMetrics, Metrics
from components.model_report.executor import Executor


class ModelReportSpec(types.ComponentSpec):
    """Inputs, outputs and parameters of ModelReport."""

    PARAMETERS: ClassVar[dict[str, Any]] = {
        "name": ExecutionParameter(type=str),
        "config": ExecutionParameter(type=str),
        "features": ExecutionParameter(type=str),
    }
    INPUTS: ClassVar[dict[str, Any]] = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        "model": ChannelParameter(type=standard_artifacts.Model),
        "evaluation": ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "serving_blessing": ChannelParameter(type=standard_artifacts.InfraBlessing),
        "predictions": ChannelParameter(type=standard_artifacts.InferenceResult),
        "findings": ChannelParameter(type=standard_artifacts.ExampleAnomalies),
    }
    OUTPUTS: ClassVar[dict[str, Any]] = {
        "report": ChannelParameter(type=HTML),
        "metrics": ChannelParameter(type=Metrics),
        "classification_metrics": ChannelParameter(type=ClassificationMetrics),
    }


class ModelReport(base_component.BaseComponent):
    """Writes a page about the data and the model, and metrics that Kubeflow and Vertex AI show on pages of their own.

    Its outputs are ``report``, whose URI is the page's; ``metrics``, whose properties are the metrics on all eval
    images; and ``classification_metrics``, whose properties are confusion matrix and ROC curve. See
    ``components.model_report.kfp_metrics``.

    Args:
        examples: channel of the Examples.
        model: channel of the candidate. Without a Keras model beside it, there are no heat maps.
        evaluation: channel of the Evaluator's results.
        serving_blessing: channel of ServingCheck's result.
        predictions: channel of the candidate's predictions for each image.
        findings: channel of DataCheck's findings.
        name: name of the pipeline.
        config: the configuration, as JSON, for the model card.
        features: names of an Example's features, as JSON.
    """

    SPEC_CLASS = ModelReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, name: str, config: str, features: str, **channels: types.BaseChannel):
        outputs = {
            "report": types.Channel(type=HTML),
            "metrics": types.Channel(type=Metrics),
            "classification_metrics": types.Channel(type=ClassificationMetrics),
        }
        spec = ModelReportSpec(name=name, config=config, features=features, **outputs, **channels)
        super().__init__(spec=spec)
