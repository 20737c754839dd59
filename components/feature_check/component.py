"""FeatureCheck: a second look at the data, through the features of the pretrained backbone.

Only where a training starts from pretrained weights. DataCheck's forests on colours and its hashes of thumbnails need
no network, and come first; what the features tell of wrong labels and copies takes their place.
"""

import json
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts

from components.data_check.config import ValidationConfig
from components.data_check.row_writer import Reading
from components.data_check.split_reader import read_splits, read_thumbnails
from components.data_check.steps import Place
from components.feature_check.check import REPLACED, check_features
from imagepipe.base import filesystem
from imagepipe.base.features import parse_features
from imagepipe.base.names import FEATURES, FINDINGS, SCHEMA, STATISTICS
from imagepipe.deploy.storage import fetch_folder
from trainer.feature_file import read_features


@component
def FeatureCheck(  # noqa: N802 (makes a component)
    examples: InputArtifact[standard_artifacts.Examples],
    features: InputArtifact[standard_artifacts.InferenceResult],
    findings: InputArtifact[standard_artifacts.ExampleAnomalies],
    checked: OutputArtifact[standard_artifacts.ExampleAnomalies],
    task: Parameter[str],
    names: Parameter[str],
    validation: Parameter[str],
) -> None:
    """Checks the data again; its output ``checked`` has the files of ``findings``, with better findings in them.

    Args:
        examples: channel of the Examples.
        features: channel of the component Features.
        findings: channel of DataCheck's output.
        checked: the output.
        task: classification, multilabel or regression.
        names: names of an Example's features, as JSON.
        validation: a ``ValidationConfig`` as JSON.
    """
    names_of = parse_features(json.loads(names))
    split_names = artifact_utils.decode_split_names(examples.split_names)
    readings = {
        name: Reading(artifact_utils.get_split_uri([examples], name), names_of)
        for name in sorted(split_names, key=lambda name: (name != "train", name))
    }
    images, rows = read_features(Path(fetch_folder(features.uri)) / FEATURES)
    first = json.loads(filesystem.read_text(f"{findings.uri}/{FINDINGS}"))
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        splits = read_splits(readings, place)
        findings_now, listed = check_features(
            splits,
            images,
            rows,
            lambda wanted: read_thumbnails(splits, names_of.input, wanted, place),
            task,
            ValidationConfig(**json.loads(validation)),
            set(map(tuple, first["decided"])),
        )
    kept = [finding for finding in first["findings"] if finding["kind"] not in REPLACED]
    every = sorted([*kept, *map(asdict, findings_now)], key=lambda finding: finding["severity"])
    content = json.dumps(first | {"findings": every} | listed, indent=1, allow_nan=False)
    filesystem.write_whole(f"{checked.uri}/{FINDINGS}", content.encode())
    for name in (STATISTICS, SCHEMA):
        filesystem.write_whole(f"{checked.uri}/{name}", filesystem.read_bytes(f"{findings.uri}/{name}"))
    counts = Counter(finding["severity"] for finding in every)
    checked.split_names = artifact_utils.encode_split_names([])
    checked.set_int_custom_property("errors", counts["error"])
    checked.set_int_custom_property("warnings", counts["warning"])
