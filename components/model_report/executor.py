"""Executor of ModelReport: collects the inputs of the page from artifacts, and writes the page and the metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import path_utils

from components.evaluator.evaluation_reader import read_evaluation
from components.model_report.kfp_metrics import collect_classification_metrics, collect_metrics
from components.model_report.page import PageInputs, render_page
from imagepipe.base import filesystem
from imagepipe.base.features import parse_features
from imagepipe.base.names import SERVING_REPORT
from imagepipe.deploy.saved_model import read_labels
from imagepipe.deploy.storage import fetch_model
from imagepipe.serving.types import CheckReport

EXAMPLES, MODEL = standard_component_specs.EXAMPLES_KEY, standard_component_specs.MODEL_KEY
EVALUATION, BLESSING = standard_component_specs.EVALUATION_KEY, standard_component_specs.MODEL_BLESSING_KEY
SERVING, PREDICTIONS, FINDINGS = "serving_blessing", "predictions", "findings"
REPORT, METRICS, CLASSIFICATION_METRICS = "report", "metrics", "classification_metrics"
NAME, CONFIG, FEATURES, CODE = "name", "config", "features", "code"


class Executor(base_executor.BaseExecutor):
    """Writes the page, and the metrics for the run pages of Kubeflow and Vertex AI."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the page to the URI of the artifact ``report``, and metrics to the properties of the other two."""
        self._log_startup(input_dict, output_dict, exec_properties)
        inputs = collect_inputs(input_dict, exec_properties)
        report, metrics, classification_metrics = (
            artifact_utils.get_single_instance(output_dict[key]) for key in (REPORT, METRICS, CLASSIFICATION_METRICS)
        )
        filesystem.write_whole(report.uri, render_page(inputs).encode())
        for name, value in collect_metrics(inputs.evaluation, inputs.blessed).items():
            metrics.set_float_custom_property(name, value)
        for name, value in collect_classification_metrics(inputs.evaluation, read_labels(inputs.model)).items():
            classification_metrics.set_json_value_custom_property(name, value)


def collect_inputs(input_dict: Mapping[str, list[Artifact]], properties: Mapping[str, Any]) -> PageInputs:
    """Collects the inputs of the page from the component's artifacts and parameters; copies remote ones to here."""
    (examples,) = input_dict[EXAMPLES]
    uris = {key: artifacts[0].uri for key, artifacts in input_dict.items() if artifacts}
    names = artifact_utils.decode_split_names(examples.split_names)
    return PageInputs(
        evaluation=read_evaluation(uris[EVALUATION]),
        predictions=fetch_model(uris[PREDICTIONS]),
        splits={name: artifact_utils.get_split_uri([examples], name) for name in names},
        # With the folder beside it, which has the Keras model and the history.
        model=fetch_model(uris[MODEL]) / Path(path_utils.serving_model_path(uris[MODEL])).name,
        findings=fetch_model(uris[FINDINGS]) if FINDINGS in uris else None,
        blessed=input_dict[BLESSING][0].get_int_custom_property("blessed") == 1,
        serving=CheckReport(**json.loads(filesystem.read_text(f"{uris[SERVING]}/{SERVING_REPORT}"))),
        features=parse_features(json.loads(properties[FEATURES])),
        name=properties[NAME],
        config=json.loads(properties[CONFIG]),
    )
