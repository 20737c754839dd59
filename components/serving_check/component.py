"""ServingCheck: lets through only models that a server can serve, and fast enough.

TFX's own InfraValidator starts TensorFlow Serving in Docker or on Kubernetes, and only checks that it answers at all.
This component needs neither: it runs our server in a fresh process, and compares its answers with those of the graph
that the Evaluator evaluated. Its InfraBlessing is of the same kind, and the Pusher obeys it in the same way.
"""

import json
from dataclasses import asdict

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import path_utils

from components.serving_check.expectations import SPLIT, build_expectations
from imagepipe.base import filesystem
from imagepipe.base.features import parse_features
from imagepipe.base.names import SERVING_REPORT
from imagepipe.base.process import release_memory
from imagepipe.deploy.storage import fetch_folder
from imagepipe.serving.check import check_model
from imagepipe.serving.types import CheckReport


@component
def ServingCheck(  # noqa: N802 (makes a component)
    model: InputArtifact[standard_artifacts.Model],
    examples: InputArtifact[standard_artifacts.Examples],
    blessing: OutputArtifact[standard_artifacts.InfraBlessing],
    features: Parameter[str],
    latency_budget_ms: Parameter[float] = None,
) -> None:
    """Checks that a model can be served.

    The output ``blessing`` has the property ``blessed``, one of TFX's files INFRA_BLESSED and INFRA_NOT_BLESSED, and
    the report.

    Args:
        model: channel of the model.
        examples: channel of the Examples; some of the split ``eval`` are sent to the server.
        blessing: the output.
        features: names of an Example's features, as JSON.
        latency_budget_ms: maximum time for an image, 95th percentile, in milliseconds; None for any.
    """
    folder = fetch_folder(path_utils.serving_model_path(model.uri))
    split = artifact_utils.get_split_uri([examples], SPLIT)
    expected = build_expectations(folder, split, parse_features(json.loads(features)))
    if expected:
        release_memory()  # what the model took here, before a server has it in memory too
        report = check_model(folder, expected, latency_budget_ms)
    else:
        report = CheckReport([f"no Example of the split '{SPLIT}' can be sent to the server unchanged"])
    blessing.set_int_custom_property("blessed", int(not report.problems))
    name = "INFRA_NOT_BLESSED" if report.problems else "INFRA_BLESSED"
    filesystem.write_whole(f"{blessing.uri}/{name}", b"")
    filesystem.write_whole(f"{blessing.uri}/{SERVING_REPORT}", json.dumps(asdict(report), indent=1).encode())
