"""Predictions: the answers of the candidate and the champion to each Example of the eval split, one row per image.

The Evaluator computes metrics of the whole split and of slices. To see the images behind a metric, or to compare two
models image by image, read these rows.
"""

import json
from pathlib import Path

from tfx import types
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import path_utils

from components.artifacts import local_outputs
from components.predictions.row_writer import SPLIT, write_predictions
from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.features import parse_features
from imagepipe.base.names import REFERENCE_FILE
from imagepipe.deploy.saved_model import read_task
from imagepipe.deploy.storage import fetch_folder
from imagepipe.monitoring.reference_rows import collect_rows, write_reference


@component
def Predictions(  # noqa: N802 (makes a component)
    examples: InputArtifact[standard_artifacts.Examples],
    model: InputArtifact[standard_artifacts.Model],
    champion: InputArtifact[standard_artifacts.Model],
    predictions: OutputArtifact[standard_artifacts.InferenceResult],
    reference: OutputArtifact[standard_artifacts.InferenceResult],
    features: Parameter[str],
) -> None:
    """Sends each Example of the split ``eval`` to the candidate and the champion.

    The output ``predictions`` is a folder with ``predictions.parquet``, one row per Example in the order of the files:

    - ``index`` (int64, from 0), ``id`` (the metadata, else ``eval/<index>``), ``sha256``;
    - ``labels``: one in a classification, any number with several labels, none in a regression, which has ``target``;
    - ``candidate``, ``champion``: the outputs ``classes``, float32; ``candidate_label``, ``champion_label``: as text;
      ``candidate_novelty``, ``champion_novelty``: their ``novelty``, null from a model without;
    - ``width``, ``height``; and each further column of one value, as ``x_<name>``, numbers as float64, bytes as text.

    Missing values are null. ``names.json`` has the ``task``, and for each model (``candidate``, ``champion``) the names
    of its outputs in their order, null if there is no champion.

    The output ``reference`` is a folder with REFERENCE_FILE: what traffic to the candidate is compared with once it is
    in service. It is made here, where Examples and answers are at hand, and goes with the version that is pushed.

    Args:
        examples: channel of the Examples.
        model: channel of the candidate.
        champion: channel of the champion; an empty model means that there is none.
        predictions: the output.
        reference: the other output.
        features: names of an Example's features, as JSON.

    Raises:
        ModelError: if a model can't be loaded.
    """
    candidate_folder, champion_folder = _fetch_saved_model(model), _fetch_saved_model(champion)
    if candidate_folder is None:
        raise ModelError(f"{model.uri}: there is no SavedModel")
    train, split = (artifact_utils.get_split_uri([examples], name) for name in ("train", SPLIT))
    names = parse_features(json.loads(features))
    with local_outputs({"predictions": [predictions]}):
        write_predictions(split, candidate_folder, champion_folder, names, Path(predictions.uri))
    rows = collect_rows(train, split, predictions.uri, str(candidate_folder), names.input)
    write_reference(f"{reference.uri}/{REFERENCE_FILE}", rows, read_task(candidate_folder), version="", run="")


def _fetch_saved_model(artifact: types.Artifact) -> Path | None:
    """Returns a local folder with the artifact's SavedModel, None if the artifact is empty."""
    folder = path_utils.serving_model_path(artifact.uri)
    return fetch_folder(folder) if filesystem.exists(folder) else None
