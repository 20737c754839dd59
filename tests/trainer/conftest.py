"""Arguments of ``run_fn`` for small trainings."""

from dataclasses import asdict
from pathlib import Path

import pytest
import tensorflow as tf

from tests.conftest import SIZE
from tests.small_backbone import BACKBONE

SMALL = {
    "backbone": BACKBONE,
    "weights": "none",
    "epochs": 6,
    "batch_size": 8,
    "head_units": 8,
    "patience": 99,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def arguments(analyzed, tmp_path_factory):
    """Returns a function that makes TFX's arguments, for a folder and some options of the trainer section."""
    output, features, serialized = analyzed
    folder = tmp_path_factory.mktemp("examples")
    with tf.io.TFRecordWriter(str(folder / "all.tfrecord")) as writer:
        for record in serialized:
            writer.write(record)

    def make(folder_of_run: Path, **options) -> dict:
        return {
            "train_files": [f"{folder}/*.tfrecord"],
            "eval_files": [f"{folder}/*.tfrecord"],
            "transform_graph_path": output.transform_savedmodel_dir.removesuffix("/transform_fn"),
            "hyperparameters": None,
            "serving_model_dir": str(folder_of_run / "model" / "Format-Serving"),
            "model_run_dir": str(folder_of_run / "model_run"),
            "custom_config": {
                "task": "classification",
                "features": asdict(features),
                "image_size": list(SIZE),
                "trainer": SMALL | options,
                "serving": {},
                "state_dir": str(folder_of_run / "state"),
            },
        }

    return make
