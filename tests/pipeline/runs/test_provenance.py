import dataclasses
import subprocess

import pytest
import tensorflow as tf
import yaml

from imagepipe.ingest import dataset
from pipeline import source
from pipeline.config_file import read_config
from pipeline.runs import provenance


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.com", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "module.py").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "code")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_the_commit_is_that_of_the_codes_own_repository_and_says_whether_files_differ_from_it(repository, monkeypatch):
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    commit = provenance.find_commit(repository / "code")
    monkeypatch.undo()
    assert commit == provenance.Commit(id=git(repository, "rev-parse", "HEAD"), changed=False)
    (repository / "code" / "module.py").write_text("2")
    assert provenance.find_commit(repository / "code").changed


def test_code_that_was_installed_inside_somebodys_repository_has_no_commit(repository):
    installed = repository / ".venv" / "lib"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("1")
    assert provenance.find_commit(installed) is None
    assert provenance.find_commit(repository / "missing") is None


def write_dataset(folder, digest: str, records: int = 4):
    shard = dataset.Shard(f"train/{digest}.tfrecord", records, 100)
    options = dataset.Options("classification", {"train": 1}, None, 1000, None)
    description = dataset.Dataset(
        options, {"input": "bytes"}, {"train": dataset.Split(records, {"a": records}, [shard])}
    )
    folder.mkdir(exist_ok=True)
    (folder / dataset.DESCRIPTION).write_bytes(dataset.encode(description))
    return description


def test_the_fingerprint_of_a_dataset_follows_its_records_and_not_its_place(tmp_path):
    description = write_dataset(tmp_path / "one", "aa")
    write_dataset(tmp_path / "copy", "aa")
    write_dataset(tmp_path / "other", "bb")
    one, copy, other = (provenance.fingerprint_dataset(str(tmp_path / name)) for name in ("one", "copy", "other"))
    assert one.fingerprint == copy.fingerprint != other.fingerprint
    assert one.records == {"train": 4}
    assert len(one.fingerprint) == 64
    looser = dataclasses.replace(description, options=dataclasses.replace(description.options, max_pixels=1))
    (tmp_path / "copy" / dataset.DESCRIPTION).write_bytes(dataset.encode(looser))  # the records are the same ones
    assert provenance.fingerprint_dataset(str(tmp_path / "copy")).fingerprint == one.fingerprint
    assert provenance.fingerprint_dataset(str(tmp_path)) is None


def test_the_fingerprint_of_records_made_elsewhere_changes_with_their_files(tmp_path):
    for name in ("a", "b"):
        with tf.io.TFRecordWriter(str(tmp_path / f"{name}.tfrecord")) as writer:
            writer.write(b"record")
    records = source.Source(str(tmp_path), {}, "*.tfrecord")
    fingerprint = source.compute_fingerprint(str(tmp_path), records)
    assert fingerprint.of == "files"
    assert source.compute_fingerprint(str(tmp_path), records) == fingerprint
    (tmp_path / "b.tfrecord").write_bytes(b"longer than it was before")
    assert source.compute_fingerprint(str(tmp_path), records).fingerprint != fingerprint.fingerprint


def test_the_stored_configuration_is_read_back_as_it_was_used(tmp_path):
    given = {
        "name": "flowers",
        "data": {"path": "größe", "features": {"numeric": ["size"]}},
        "trainer": {"epochs": 3, "weights": "none", "augmentation": {"mixup": 0.2}},
        "tuner": {"space": {"learning_rate": {"min": 1e-5, "max": 1e-2, "log": True}}},
        "evaluation": {"thresholds": {"log_loss": 0.5}},
        "beam": {"options": {"temp_location": "/tmp/x"}},  # noqa: S108
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(given, allow_unicode=True))
    used = read_config(
        tmp_path / "pipeline.yaml", ("trainer.epochs=2", "image.size=[96, 128]", "deploy.path=elsewhere")
    )
    run = tmp_path / "runs" / "20260101-020000-000"
    run.mkdir(parents=True)
    data = provenance.DatasetOrigin(path="x", fingerprint="y", of="files")
    written = provenance.write_origin(run, used.model_dump(mode="json"), tmp_path, data, {"Trainer": []})
    assert read_config(run / provenance.CONFIG) == used
    assert provenance.read_origin(run) == written
    assert written.config["trainer"]["epochs"] == 2
    assert written.packages["tensorflow"] == tf.__version__


def test_a_run_that_has_not_said_or_not_legibly_is_no_error(tmp_path):
    assert provenance.read_origin(tmp_path) is None
    (tmp_path / provenance.FILENAME).write_text('{"run_id": 1')
    assert provenance.read_origin(tmp_path) is None
