"""The component ModelReport."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.types.experimental import simple_artifacts
from tfx.utils import io_utils, path_utils

from components.remote import local_outputs
from components.report import page
from components.serving_check import REPORT as SERVING_REPORT
from serving.report import Report
from serving.storage import fetched
from transform.features import from_json

PAGE = "report.html"

_EXAMPLES, _MODEL = standard_component_specs.EXAMPLES_KEY, standard_component_specs.MODEL_KEY
_EVALUATION, _BLESSING = standard_component_specs.EVALUATION_KEY, standard_component_specs.MODEL_BLESSING_KEY
_SERVING, _PREDICTIONS, _FINDINGS, _REPORT = "serving_blessing", "predictions", "findings", "report"
_NAME, _CONFIG, _FEATURES, _CODE = "name", "config", "features", "code"


class Executor(base_executor.BaseExecutor):
    """Makes the page."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes ``report.html``."""
        self._log_startup(input_dict, output_dict, exec_properties)
        html = page.render(inputs(input_dict, exec_properties))
        with local_outputs(output_dict):
            folder = Path(artifact_utils.get_single_uri(output_dict[_REPORT]))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PAGE).write_text(html)


def inputs(input_dict: Mapping[str, list[Artifact]], properties: Mapping[str, Any]) -> page.Inputs:
    """What the page is made from, out of the component's artifacts and parameters."""
    (examples,) = input_dict[_EXAMPLES]
    uris = {key: artifacts[0].uri for key, artifacts in input_dict.items() if artifacts}
    names = artifact_utils.decode_split_names(examples.split_names)
    serving = io_utils.read_string_file(f"{uris[_SERVING]}/{SERVING_REPORT}")
    return page.Inputs(
        evaluation=uris[_EVALUATION],
        predictions=fetched(uris[_PREDICTIONS]),
        splits={name: artifact_utils.get_split_uri([examples], name) for name in names},
        # With the folder beside it, where the Keras model and the history are.
        model=fetched(uris[_MODEL]) / Path(path_utils.serving_model_path(uris[_MODEL])).name,
        findings=fetched(uris[_FINDINGS]) if _FINDINGS in uris else None,
        blessed=input_dict[_BLESSING][0].get_int_custom_property("blessed") == 1,
        serving=Report(**json.loads(serving)),
        features=from_json(json.loads(properties[_FEATURES])),
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
    OUTPUTS = {_REPORT: component_spec.ChannelParameter(type=simple_artifacts.File)}  # noqa: RUF012


class ModelReport(base_component.BaseComponent):
    """Makes a page of what the data and the model are; its output ``report`` is a folder with ``report.html``.

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
        report = types.Channel(type=simple_artifacts.File)
        super().__init__(spec=_Spec(name=name, config=config, features=features, code=code, report=report, **channels))
