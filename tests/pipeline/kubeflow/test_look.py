"""Hashes by which a cluster's cache sees files."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from imagepipe.base.errors import DataError
from imagepipe.ingest.command import ingest
from pipeline.kubeflow import look
from pipeline.source import Source

PATTERNS = {"train": "train/*.tfrecord*", "eval": "eval/*.tfrecord*"}


def test_a_copy_of_a_dataset_is_the_same_data_and_one_with_another_file_is_not(digits_folder, tmp_path):
    dataset = tmp_path / "data[1]"
    ingest(digits_folder, dataset, workers=1)
    original = look.hash_data(Source(str(dataset).replace("[", "[[]"), PATTERNS))
    copy = shutil.copytree(dataset, tmp_path / "copy", copy_function=shutil.copyfile)
    assert look.hash_data(Source(str(copy), PATTERNS)) == original
    (copy / "eval" / "more.tfrecord").write_bytes(b"")
    assert look.hash_data(Source(str(copy), PATTERNS)) != original


def test_of_files_made_elsewhere_it_is_names_sizes_and_times(tmp_path):
    file = tmp_path / "a.tfrecord"
    file.write_bytes(b"1")
    source = Source(str(tmp_path), {}, "*.tfrecord", is_foreign=True)
    hashes = [look.hash_data(source)]
    file.write_bytes(b"22")
    hashes.append(look.hash_data(source))
    os.utime(file, (0, 0))
    hashes.append(look.hash_data(source))
    assert len(set(hashes)) == 3


def test_a_split_without_files_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file matches .*/train/\*\.tfrecord"):
        look.hash_data(Source(str(tmp_path), PATTERNS))


def test_a_task_writes_what_it_is_asked_for_and_its_log_has_it(tmp_path, capsys):
    (tmp_path / "schema.pbtxt").write_text("feature {}")
    settings = json.dumps({"source": {"patterns": PATTERNS}, "schema": str(tmp_path / "schema.pbtxt")})
    look.main(["data", "--settings", settings, "--output", look.SCHEMA, str(tmp_path / "outputs" / "hash")])
    assert capsys.readouterr().out == f"schema_hash: {(tmp_path / 'outputs' / 'hash').read_text()}\n"


def test_it_is_quick_as_it_needs_no_tensorflow():
    code = "import sys; from pipeline.kubeflow import look; print({'tensorflow', 'tfx', 'kfp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout == "set()\n"
