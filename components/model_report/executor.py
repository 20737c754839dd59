"""Executor of ModelReport: collects the inputs of the page from artifacts, and writes the page and the metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.types.artifact import Artifact
from tfx.utils import path_utils

from components.evaluator.evaluation_reader import read_evaluation
from components.model_report.kfp_metrics import collect_classification_metrics, collect_metrics
from components.model_report.page import PageInputs, render_page
from imagepipe.base import filesystem
from imagepipe.base.features import parse_features
from imagepipe.base.names import SERVING_REPORT
from imagepipe.deploy.saved_model import read_labels
from imagepipe.deploy.storage import fetch_folder
from imagepipe.serving.types import CheckReport


class Executor(base_executor.BaseExecutor):
    """Writes the page, and the metrics for the run pages of Kubeflow and Vertex AI."""

    def Do(self, input_dict: Any, output_dict: Any, exec_properties: dict[str, Any]) -> None:  # noqa: N802 (TFX's name)
        """Writes the page to the URI of the artifact ``report``, and metrics to the properties of the other two."""
        self._log_startup(input_dict, output_dict, exec_properties)
        inputs = collect_inputs(input_dict, exec_properties)
        outputs = {key: artifact_utils.get_single_instance(artifacts) for key, artifacts in output_dict.items()}
        filesystem.write_whole(outputs["report"].uri, render_page(inputs).encode())
        for name, value in collect_metrics(inputs.evaluation).items():
            outputs["metrics"].set_float_custom_property(name, value)
        for name, value in collect_classification_metrics(inputs.evaluation, read_labels(inputs.model)).items():
            outputs["classification_metrics"].set_json_value_custom_property(name, value)


def collect_inputs(input_dict: Mapping[str, list[Artifact]], properties: Mapping[str, Any]) -> PageInputs:
    """Collects the inputs of the page from artifacts and parameters; copies remote folders to this machine."""
    (examples,) = input_dict["examples"]
    uris = {key: artifacts[0].uri for key, artifacts in input_dict.items() if artifacts}
    names = artifact_utils.decode_split_names(examples.split_names)
    return PageInputs(
        evaluation=read_evaluation(uris["evaluation"]),
        predictions=fetch_folder(uris["predictions"]),
        splits={name: artifact_utils.get_split_uri([examples], name) for name in names},
        # With the folder beside it, which has the Keras model and the history.
        model=fetch_folder(uris["model"]) / Path(path_utils.serving_model_path(uris["model"])).name,
        findings=fetch_folder(uris["findings"]) if "findings" in uris else None,
        serving=CheckReport(**json.loads(filesystem.read_text(f"{uris['serving_blessing']}/{SERVING_REPORT}"))),
        features=parse_features(json.loads(properties["features"])),
        name=properties["name"],
        config=json.loads(properties["config"]),
    )
