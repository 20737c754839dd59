"""ModelReport: a page about the data and the model, and metrics for the run pages of Kubeflow and Vertex AI."""

from kfp import dsl
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import artifact, component_spec, standard_artifacts

from components.model_report import executor


class HTML(standard_artifacts.String):
    """A page. Its URI is the file's, not a folder's: the run pages fetch it.

    They recognise this and the two other types by kfp's names of types.
    """

    TYPE_NAME = dsl.HTML.schema_title


class Metrics(artifact.Artifact):
    """Metrics, one per property, under their names."""

    TYPE_NAME = dsl.Metrics.schema_title


class ClassificationMetrics(artifact.Artifact):
    """A confusion matrix and an ROC curve, in the properties ``confusionMatrix`` and ``confidenceMetrics``."""

    TYPE_NAME = dsl.ClassificationMetrics.schema_title


class _Spec(types.ComponentSpec):
    PARAMETERS = {  # noqa: RUF012 (TFX's way)
        key: component_spec.ExecutionParameter(type=str)
        for key in (executor.NAME, executor.CONFIG, executor.FEATURES, executor.CODE)
    }
    INPUTS = {  # noqa: RUF012
        executor.EXAMPLES: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        executor.MODEL: component_spec.ChannelParameter(type=standard_artifacts.Model),
        executor.EVALUATION: component_spec.ChannelParameter(type=standard_artifacts.ModelEvaluation),
        executor.BLESSING: component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
        executor.SERVING: component_spec.ChannelParameter(type=standard_artifacts.InfraBlessing),
        executor.PREDICTIONS: component_spec.ChannelParameter(type=standard_artifacts.InferenceResult),
        executor.FINDINGS: component_spec.ChannelParameter(type=standard_artifacts.ExampleAnomalies),
    }
    OUTPUTS = {  # noqa: RUF012
        executor.REPORT: component_spec.ChannelParameter(type=HTML),
        executor.METRICS: component_spec.ChannelParameter(type=Metrics),
        executor.CLASSIFICATION_METRICS: component_spec.ChannelParameter(type=ClassificationMetrics),
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
        model_blessing: channel of the Evaluator's blessing.
        serving_blessing: channel of ServingCheck's result.
        predictions: channel of the candidate's predictions for each image.
        findings: channel of DataCheck's findings.
        name: the pipeline's.
        config: the configuration, as JSON, for the model card.
        features: which feature of an Example is what, as JSON.
        code: hash of the page's sources: a new hash makes a new page.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, name: str, config: str, features: str, code: str, **channels: types.BaseChannel):
        outputs = {
            executor.REPORT: types.Channel(type=HTML),
            executor.METRICS: types.Channel(type=Metrics),
            executor.CLASSIFICATION_METRICS: types.Channel(type=ClassificationMetrics),
        }
        spec = _Spec(name=name, config=config, features=features, code=code, **outputs, **channels)
        super().__init__(spec=spec)
