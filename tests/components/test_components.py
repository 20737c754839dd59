import json
import threading
import time
from pathlib import Path

import apache_beam as beam
import pytest
import tensorflow as tf
from tfx.types import standard_artifacts
from tfx.utils import path_utils
from tfx_bsl.tfxio import tf_example_record

from components.champion.executor import Driver, choose_champion
from components.evaluator.executor import _fix_batch_size, override_thresholds
from components.trainer.executor import insert_settings
from imagepipe.base.errors import ModelError
from imagepipe.base.features import Features
from imagepipe.base.names import LIVE_MODELS
from imagepipe.deploy import storage
from imagepipe.deploy.config import DeployConfig
from imagepipe.deploy.live import list_models
from imagepipe.deploy.versions import list_version_folders
from pipeline.config import EvaluationConfig
from pipeline.eval_config import build_eval_config


def make_model(folder: Path, fingerprint: bytes, files: int = 3) -> Path:
    (folder / "variables").mkdir(parents=True)
    for number in range(files):
        (folder / "variables" / str(number)).write_bytes(b"x" * 10_000)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "fingerprint.pb").write_bytes(fingerprint)
    return folder


def list_files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_a_reader_never_sees_half_a_pushed_model(tmp_path):
    model = make_model(tmp_path / "model", b"1", files=300)
    seen: list[set[str]] = []
    pushed = threading.Event()

    def read():
        while not pushed.is_set():
            seen.extend(list_files(folder) for folder in list_version_folders(tmp_path / "serving"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        version = storage.add_version(str(model), str(tmp_path / "serving"))
    finally:
        time.sleep(0.05)
        pushed.set()
        reader.join()
    assert [folder.name for folder in list_version_folders(tmp_path / "serving")] == [version]
    assert seen
    assert all(files == list_files(model) for files in seen)


def test_an_interrupted_push_leaves_no_version(tmp_path, monkeypatch):
    model = make_model(tmp_path / "model", b"1")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(storage.filesystem, "rename", fail)
    with pytest.raises(ModelError, match="can't be written: disk full"):
        storage.add_version(str(model), str(tmp_path / "serving"))
    assert list_version_folders(tmp_path / "serving") == []


def test_each_new_model_gets_a_later_version_and_the_live_one_is_not_pushed_twice(tmp_path):
    serving = str(tmp_path / "serving")
    future = str(int(time.time()) + 1000)
    make_model(tmp_path / "serving" / future, b"old")
    one = make_model(tmp_path / "one", b"1")
    assert storage.add_version(str(one), serving) == str(int(future) + 1)
    assert storage.add_version(str(one), serving) == str(int(future) + 1)
    assert len(list_version_folders(serving)) == 2


def test_the_champion_is_the_newest_version_that_is_not_the_candidate(tmp_path):
    candidate = str(make_model(tmp_path / "candidate", b"c"))
    serving = tmp_path / "serving"

    def find_champion() -> str:
        return choose_champion([model for model, _ in list_models(DeployConfig(path=str(serving)))], candidate)

    assert find_champion() == ""
    make_model(serving / "9", b"nine")
    make_model(serving / "10", b"ten")
    make_model(serving / ".partial-11", b"half")
    make_model(serving / "notes", b"no version")
    assert find_champion() == str(serving / "10")
    make_model(serving / "11", b"c")
    make_model(serving / "12", b"c")
    assert find_champion() == str(serving / "10")


def test_on_a_cluster_the_champion_is_one_that_was_looked_up_even_if_another_is_live_by_now(tmp_path):
    """Else it would be in the cluster's cache under the name of what was live a moment before."""
    candidate = standard_artifacts.Model()
    candidate.uri = str(tmp_path)
    make_model(Path(path_utils.serving_model_path(candidate.uri)), b"c")
    nine = make_model(tmp_path / "serving" / "9", b"nine")
    deploy = DeployConfig(path=str(tmp_path / "serving"))
    looked_up = json.dumps(list_models(deploy))
    make_model(tmp_path / "serving" / "10", b"ten")
    properties = {"deploy": deploy.model_dump_json()}
    for given, champion in ((looked_up, str(nine)), ("[]", ""), (None, str(nine.with_name("10")))):
        assert Driver.look_up(properties | {LIVE_MODELS: given}, {"model": [candidate]}) == champion


def test_the_evaluator_reads_batches_of_one_size(tmp_path):
    path = str(tmp_path / "x.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(500):
            example = tf.train.Example()
            example.features.feature["x"].int64_list.value.append(number)
            writer.write(example.SerializeToString())

    def batch_sizes() -> list[int]:
        sizes: list[int] = []
        source = tf_example_record.TFExampleRecord(path, raw_record_column_name="raw")
        with beam.Pipeline("FnApiRunner") as pipeline:
            out = tmp_path / "sizes"
            _ = (
                pipeline
                | source.BeamSource()
                | beam.Map(lambda batch: str(batch.num_rows))
                | beam.io.WriteToText(str(out))
            )
        for file in tmp_path.glob("sizes-*"):
            sizes += [int(line) for line in file.read_text().split()]
            file.unlink()
        return sizes

    with _fix_batch_size(32):
        fixed = batch_sizes()
    assert sum(fixed) == 500
    assert max(fixed) == 32
    assert max(batch_sizes()) > 32  # what TFX would do, and does again afterwards


def test_a_runs_parameters_replace_the_trainers_settings():
    config = json.dumps({"trainer": {"epochs": 10, "batch_size": 32, "seed": 1}, "task": "classification"})
    changed = insert_settings({"custom_config": config, "epochs": 2, "batch_size": 64, "run_fn": "x"})
    assert json.loads(changed["custom_config"]) == {
        "trainer": {"epochs": 2, "batch_size": 64, "seed": 1},
        "task": "classification",
    }
    assert changed["run_fn"] == "x"


def test_a_runs_parameters_replace_the_gates_bounds_and_no_others():
    config = build_eval_config(
        "classification", EvaluationConfig(thresholds={"accuracy": 0.9, "log_loss": 1.0}), Features()
    )
    changed = override_thresholds(config, {"accuracy": 0.5, "log_loss": 2.0})
    bounds = {
        json.loads(metric.config)["name"]: metric.per_slice_thresholds[0].threshold
        for metric in changed.metrics_specs[0].metrics
        if metric.per_slice_thresholds
    }
    assert bounds["accuracy"].value_threshold.lower_bound.value == 0.5
    assert bounds["log_loss"].value_threshold.upper_bound.value == 2.0
    assert bounds["accuracy"].change_threshold.absolute.value == -0.01
    assert override_thresholds(config, {"accuracy": 0.9}) == config
