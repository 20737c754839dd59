"""The component ModelReport."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import io_utils, path_utils

from components.evaluator import evaluation_reader
from components.model_report import kfp_metrics, page
from components.model_report.artifacts import HTML, ClassificationMetrics, Metrics
from imagepipe.base.features import parse_features
from imagepipe.base.names import SERVING_REPORT
from imagepipe.deploy.saved_model import read_labels
from imagepipe.deploy.storage import fetch_model
from imagepipe.serving.types import CheckReport

_EXAMPLES, _MODEL = standard_component_specs.EXAMPLES_KEY, standard_component_specs.MODEL_KEY
_EVALUATION, _BLESSING = standard_component_specs.EVALUATION_KEY, standard_component_specs.MODEL_BLESSING_KEY
_SERVING, _PREDICTIONS, _FINDINGS = "serving_blessing", "predictions", "findings"
_REPORT, _METRICS, _CLASSIFICATION_METRICS = "report", "metrics", "classification_metrics"
_NAME, _CONFIG, _FEATURES, _CODE = "name", "config", "features", "code"


class Executor(base_executor.BaseExecutor):
    """Makes the page, and what other pages show of the model."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the page to the URI of the artifact ``report``, and notes the figures in the others' properties."""
        self._log_startup(input_dict, output_dict, exec_properties)
        given = inputs(input_dict, exec_properties)
        report, figures, classification = (
            artifact_utils.get_single_instance(output_dict[key]) for key in (_REPORT, _METRICS, _CLASSIFICATION_METRICS)
        )
        io_utils.write_bytes_file(report.uri, page.render(given).encode())
        for name, value in kfp_metrics.figures(given.evaluation, given.blessed).items():
            figures.set_float_custom_property(name, value)
        for name, value in kfp_metrics.classification(given.evaluation, read_labels(given.model)).items():
            classification.set_json_value_custom_property(name, value)


def inputs(input_dict: Mapping[str, list[Artifact]], properties: Mapping[str, Any]) -> page.Inputs:
    """What the page is made from, out of the component's artifacts and parameters."""
    (examples,) = input_dict[_EXAMPLES]
    uris = {key: artifacts[0].uri for key, artifacts in input_dict.items() if artifacts}
    names = artifact_utils.decode_split_names(examples.split_names)
    serving = io_utils.read_string_file(f"{uris[_SERVING]}/{SERVING_REPORT}")
    return page.Inputs(
        evaluation=evaluation_reader.read_evaluation(uris[_EVALUATION]),
        predictions=fetch_model(uris[_PREDICTIONS]),
        splits={name: artifact_utils.get_split_uri([examples], name) for name in names},
        # With the folder beside it, where the Keras model and the history are.
        model=fetch_model(uris[_MODEL]) / Path(path_utils.serving_model_path(uris[_MODEL])).name,
        findings=fetch_model(uris[_FINDINGS]) if _FINDINGS in uris else None,
        blessed=input_dict[_BLESSING][0].get_int_custom_property("blessed") == 1,
        serving=CheckReport(**json.loads(serving)),
        features=parse_features(json.loads(properties[_FEATURES])),
        name=properties[_NAME],
        config=json.loads(properties[_CONFIG]),
    )


class _Spec(types.ComponentSpec):
    PARAMETERS = {  # noqa: RUF012 (TFX's way)
        key: component_spec.ExecutionParameter(type=str) for key in (_NAME, _CONFIG, _FEATURES, _CODE)
    }
    INPUTS = {  # noqa: RUF012
        _EXAMPLES: component_spec.ChannelParameter(type=standard_artifacts.Examples),
        _MODEL: component_spec.ChannelParameter(type=standard_artifacts.Model),
        _EVALUATION: component_spec.ChannelParameter(type=standard_artifacts.ModelEvaluation),
        _BLESSING: component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
        _SERVING: component_spec.ChannelParameter(type=standard_artifacts.InfraBlessing),
        _PREDICTIONS: component_spec.ChannelParameter(type=standard_artifacts.InferenceResult),
        _FINDINGS: component_spec.ChannelParameter(type=standard_artifacts.ExampleAnomalies),
    }
    OUTPUTS = {  # noqa: RUF012
        _REPORT: component_spec.ChannelParameter(type=HTML),
        _METRICS: component_spec.ChannelParameter(type=Metrics),
        _CLASSIFICATION_METRICS: component_spec.ChannelParameter(type=ClassificationMetrics),
    }


class ModelReport(base_component.BaseComponent):
    """Makes a page of what the data and the model are, and figures that Kubeflow and Vertex AI show on pages of theirs.

    Its outputs are ``report``, whose URI is the page's; ``metrics``, whose properties are the figures on all eval
    images; and ``classification_metrics``, whose properties are confusion matrix and ROC curve. See
    ``components.model_report.kfp_metrics``.

    Args:
        examples: channel of the Examples.
        model: channel of the candidate. Without a Keras model beside it, there are no heat maps.
        evaluation: channel of what the Evaluator measured.
        model_blessing: channel of what it decided.
        serving_blessing: channel of what ServingCheck found.
        predictions: channel of what the candidate says of each image.
        findings: channel of what DataCheck found.
        name: the pipeline's.
        config: the configuration, as JSON, for the model card.
        features: which feature of an Example is what, as JSON.
        code: hash of the page's sources: another one makes the page anew.
    """

    SPEC_CLASS = _Spec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(self, name: str, config: str, features: str, code: str, **channels: types.BaseChannel):
        outputs = {
            _REPORT: types.Channel(type=HTML),
            _METRICS: types.Channel(type=Metrics),
            _CLASSIFICATION_METRICS: types.Channel(type=ClassificationMetrics),
        }
        spec = _Spec(name=name, config=config, features=features, code=code, **outputs, **channels)
        super().__init__(spec=spec)
