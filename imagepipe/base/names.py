"""Names of the distribution, of tasks, and of files and folders that more than one part of the project uses."""

from typing import Literal

DISTRIBUTION = "imagepipe-tfx"
"""Name of the installed package; ``imagepipe`` alone is taken on PyPI."""

TaskName = Literal["classification", "multilabel", "regression"]
"""Kind of target: one of several classes, any number of labels, or a number."""

FINDINGS, STATISTICS, SCHEMA = "findings.json", "statistics.json", "schema.pbtxt"
"""Files of an artifact with findings."""

FINDERS = {"DataCheck": "findings", "FeatureCheck": "checked"}
"""Components that examine the data, and their outputs with findings; what a later one finds includes the earlier's."""

LEFT_OUT = "left_out"
"""Folder of Examples that were made elsewhere: JSON lines with the ids of those that can't be used, and the reasons."""

FEATURES = "features.parquet"
"""File of a Features artifact."""

ROWS, NAMES = "predictions.parquet", "names.json"
"""Files of a Predictions artifact: one row per image, and the names of the model's outputs."""

FURTHER = "x_"
"""Begins the names of the columns of ROWS that hold a feature of the Examples which has no column of its own."""

MONITORED = "monitored.json"
"""File of a ServingMonitor artifact: the figures."""

SERVING_REPORT = "report.json"
"""File of a ServingCheck artifact."""

TRAINING_FOLDER = "training"
"""Folder beside a trained SavedModel: curves.png, history.json, augmentation.png, config.json, summary.txt,
model.keras, base.weights.h5, CALIBRATION, NOVELTY, OPTIMIZED and, of several labels, THRESHOLDS."""

OPTIMIZED = "optimized.json"
"""File in TRAINING_FOLDER: the result of optimizing for serving."""

CALIBRATION = "calibration.json"
"""File in TRAINING_FOLDER: how the probabilities were calibrated."""

NOVELTY = "novelty.npz"
"""File in TRAINING_FOLDER: what the novelty of model.keras is computed by, see ``trainer.export.novelty``."""

THRESHOLDS = "thresholds.json"
"""File in TRAINING_FOLDER: the decision threshold of each label, and why it is that one."""

TASK_ASSET = "task"
"""Asset of a SavedModel that holds its TaskName; the names of its outputs are ``features.LABELS_VOCABULARY``."""

TRAIN_STATISTICS = "assets.extra/train_statistics.pb"
"""File in a SavedModel: the statistics of the split that it was trained on. TensorFlow ignores that folder."""

REFERENCE_FILE = "reference.parquet"
"""File that traffic to a model is compared with, see ``imagepipe.monitoring.reference_rows``: in a reference artifact,
or in a run's folder."""

REFERENCE = f"assets.extra/{REFERENCE_FILE}"
"""The same in a pushed SavedModel."""

LIVE_MODELS, LIVE_STATISTICS = "live_models", "live_statistics"
"""Parameters of Champion and DataCheck in a compiled pipeline: what ``imagepipe.deploy.live`` finds at the target."""

DECISIONS_HASH = "decisions_hash"
"""Parameter of DataCheck: ``imagepipe.base.decisions.hash_given_labels`` of its dataset, for its cache key."""

SUMMARY = "summary.json"
"""File of a run's folder: status, metrics, model and data of the run."""


def read_version() -> str:
    """Returns the version of this project as installed; ``unknown`` if it runs from a folder that is not installed."""
    from importlib import metadata  # not above: most who read names need no version

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"
