"""How many threads TensorFlow computes with, by what is served."""

import json
import subprocess
import sys

import joblib
import pytest

PROGRAM = """
import json, sys
from pathlib import Path
import tensorflow as tf
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.threads import limit_threads

limit_threads(Path(sys.argv[1]))
model = LoadedModel(Path(sys.argv[2]))
limit_threads(Path(sys.argv[2]))  # too late: it changes nothing, and does no harm
print(json.dumps([tf.config.threading.get_intra_op_parallelism_threads(), model.at_once, model.engine]))
"""


@pytest.mark.parametrize("engine", ["openvino", "tensorflow", "none"])
def test_an_operation_has_one_thread_beside_openvino_and_models_of_tensorflow_use_all_cpus(
    two_forms, model, tmp_path, engine
):
    limited = {"openvino": two_forms, "tensorflow": model, "none": tmp_path}[engine]
    command = [sys.executable, "-c", PROGRAM, str(limited), str(model)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 (our own program)
    cpus = joblib.cpu_count()
    at_once = cpus if engine == "openvino" else 1
    name = "TensorFlow" if at_once == 1 else f"TensorFlow, batches at once: {at_once}"
    assert json.loads(output.splitlines()[-1]) == [cpus // at_once, at_once, name]
