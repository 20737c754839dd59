"""DataCheck on Beam's workers and on this machine, and what it keeps in memory."""

import json
from dataclasses import asdict

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import io_utils

from components.data_check import label_errors, near_duplicates, steps
from components.data_check.driver import Driver
from components.data_check.executor import Executor
from components.data_check.row_writer import Reading
from components.data_check.split_reader import read_splits, read_thumbnails
from components.data_check.steps import Place
from components.data_gate.component import DataGate
from components.tfdv import tfdv
from imagepipe.base import filesystem
from imagepipe.base.beam_options import LOCAL_ARGUMENTS
from imagepipe.base.decisions import OVERRIDES, Decision, append_decision
from imagepipe.base.errors import DataError
from imagepipe.base.features import Features
from imagepipe.base.names import FINDINGS, STATISTICS
from tests.conftest import encode_image, make_digit_images, make_example
from tests.evaluated import make_artifact

HASHES = ["0" * 64, "1" * 64]
FEATURES = Features(metadata="metadata", categorical=("camera",))


def write_files(folder, records, sizes):
    """Writes serialized Examples to gzipped TFRecords of these sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    remaining = iter(records)
    for number, size in enumerate(sizes):
        with tf.io.TFRecordWriter(str(folder / f"{number:02}.gz"), "GZIP") as writer:
            for _ in range(size):
                writer.write(next(remaining).SerializeToString())


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Examples in several files a split: copies across splits, an unseen label, a broken image, a column that leaks."""
    folder = tmp_path_factory.mktemp("examples")
    digits = [(label, png) for label, png in make_digit_images(600) if label in "03"]
    train = [
        make_example(png, label, f"train {i}" if i % 3 else None, camera=f"camera {label}")
        for i, (label, png) in enumerate(digits[:50])
    ]
    copy = encode_image(Image.linear_gradient("L").resize((60, 60)))
    one = make_example(copy, "0", "one", camera="camera 0", sha256=HASHES[0])
    broken = [make_example(b"no image", "3", "broken", camera="c"), one]
    write_files(folder / "Split-train", [*train, *broken], [31, 0, 21])
    evaluation = [make_example(png, label, f"eval {i}") for i, (label, png) in enumerate(digits[50:60])]
    darker = encode_image(Image.linear_gradient("L").point(lambda value: value * 0.7))
    last = [make_example(darker, "3", "other", sha256=HASHES[1]), make_example(digits[0][1], "new", None)]
    write_files(folder / "Split-eval", [*evaluation, *last], [5, 7])
    return folder


def check(folder, examples, context=None, dataset="nowhere"):
    """Runs the component's executor, and returns the contents of its two files."""
    inputs = {
        "examples": make_artifact(standard_artifacts.Examples, examples),
        "statistics": make_artifact(standard_artifacts.ExampleStatistics, folder / "statistics"),
        "anomalies": make_artifact(standard_artifacts.ExampleAnomalies, folder / "anomalies"),
        "schema": make_artifact(standard_artifacts.Schema, folder / "schema"),
    }
    for name in ("examples", "statistics", "anomalies"):
        inputs[name].split_names = artifact_utils.encode_split_names(["train", "eval"])
    for name, count in (("train", 52), ("eval", 12)):
        statistics = tfdv.generate_statistics_from_dataframe(pd_frame(count))
        io_utils.write_bytes_file(
            str(folder / "statistics" / f"Split-{name}" / "FeatureStats.pb"), statistics.SerializeToString()
        )
        io_utils.write_bytes_file(
            str(folder / "anomalies" / f"Split-{name}" / "SchemaDiff.pb"), anomalies_pb2.Anomalies().SerializeToString()
        )
    io_utils.write_pbtxt_file(str(folder / "schema" / "schema.pbtxt"), schema_pb2.Schema())
    findings = make_artifact(standard_artifacts.ExampleAnomalies, folder / "findings")
    properties = {
        "task": "classification",
        "features": json.dumps(asdict(FEATURES)),
        "validation": json.dumps({"skew": None}),
        "slices": json.dumps([["camera"]]),
        "demands": "[]",
        "dataset": dataset,
        Driver.PROPERTY: "",
    }
    Executor(context).Do({name: [artifact] for name, artifact in inputs.items()}, {"findings": [findings]}, properties)
    assert sorted(path.name for path in (folder / "findings").iterdir()) == [FINDINGS, "schema.pbtxt", STATISTICS]
    return [json.loads((folder / "findings" / name).read_text()) for name in (FINDINGS, STATISTICS)]


def pd_frame(count):
    import pandas as pd

    return pd.DataFrame({"label": ["0"] * count, "camera": ["c"] * count})


def test_beams_workers_find_what_one_process_finds(tmp_path, examples, monkeypatch):
    monkeypatch.setattr(label_errors, "_TREES", 5)
    content, summary = check(tmp_path / "here", examples)
    kinds = [finding["kind"] for finding in content["findings"]]
    assert sorted(kinds) == ["label_errors", "leak", "near_duplicates", "unreadable", "unseen_label"]
    groups = [[image["id"] for image in group] for group in content["near_duplicates"]]
    assert ["one", "other"] in groups
    assert ["train/0", "eval/11"] in groups  # ids by their place in the split, not in the file
    assert summary["train"]["count"] == 52
    assert (content["not_listed"], content["decided"]) == ({"near_duplicates": 0, "label_errors": 0}, [])
    (tmp_path / "data").mkdir()
    for sha256, label in zip(HASHES, "03", strict=True):
        append_decision(tmp_path / "data" / OVERRIDES, Decision(sha256, label))

    jobs = []

    def make_pipeline():
        jobs.append(beam.Pipeline(argv=list(LOCAL_ARGUMENTS)))
        return jobs[-1]

    context = BaseBeamExecutor.Context(
        beam_pipeline_args=["--runner=FlinkRunner", "--sdk_container_image=none"], make_beam_pipeline_fn=make_pipeline
    )
    again, same_summary = check(tmp_path / "beam", examples, context, str(tmp_path / "data"))
    assert same_summary == summary
    assert [error["id"] for error in content["label_errors"]] == ["other"]
    assert again["label_errors"] == []
    assert again["near_duplicates"] == [group for group in content["near_duplicates"] if group[0]["id"] != "one"]
    assert again["not_listed"] == {"near_duplicates": 1, "label_errors": 1}
    assert again["decided"] == [["eval", 10], ["train", 51]]
    assert len(jobs) == 2  # one for all rows, one for the thumbnails of likely copies


@pytest.mark.parametrize("kind", ["int64_list", "bytes_list"])
def test_a_tenth_of_foreign_examples_without_a_label_stops_the_run_at_the_gate_by_name(tmp_path, kind):
    for split, count in (("train", 52), ("eval", 12)):
        records = [make_example(png, None, f"{split} {i}") for i, (_, png) in enumerate(make_digit_images(count))]
        for number, record in enumerate(records):
            if number % 10 != 9:
                labels = getattr(record.features.feature["label"], kind).value
                labels.append(1 + number % 2 if kind == "int64_list" else b"c%d" % (number % 2))
        write_files(tmp_path / f"Split-{split}", records, [count])
    check(tmp_path, tmp_path)
    findings = make_artifact(standard_artifacts.ExampleAnomalies, tmp_path / "findings")
    with pytest.raises(DataError, match=r"5 images in the split train without a label in 'label', such as train 9, "):
        DataGate.EXECUTOR_SPEC.executor_class().Do({"findings": [findings]}, {}, {})


def test_of_two_attempts_at_a_file_the_one_that_is_killed_takes_nothing_from_the_other(tmp_path):
    target = tmp_path / "rows" / "0"
    paths = []

    def write(path: str, content: bytes) -> None:
        paths.append(path)
        if len(paths) > 1:
            filesystem.write_whole(path, content)
            return
        with filesystem.create(path) as file:
            file.write(content[:2])
            steps._attempt(write, str(target), content)  # the other, while this one writes
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        steps._attempt(write, str(target), b"whole")
    assert target.read_bytes() == b"whole"


def test_a_sample_of_many_small_files_is_as_large_as_of_one_file(tmp_path):
    records = [make_example(b"", "a", str(i), camera="c") for i in range(240)]
    write_files(tmp_path / "many", records, [6] * 40)
    write_files(tmp_path / "one", records, [240])
    readings = {name: Reading(str(tmp_path / name), FEATURES, columns_every=12) for name in ("many", "one")}
    splits = read_splits(readings, Place(tmp_path))
    assert len(splits["one"].columns["camera"]) == 20
    assert 18 <= len(splits["many"].columns["camera"]) <= 22
    assert list(splits["many"].ids) == list(splits["one"].ids) == [str(i) for i in range(240)]


def test_rows_are_read_in_any_order_and_missing_thumbnails_are_told(tmp_path, examples, monkeypatch):
    monkeypatch.setattr("components.data_check.row_writer._ROWS", 4)
    splits = read_splits({"train": Reading(str(examples / "Split-train"), FEATURES)}, Place(tmp_path))
    ids = list(splits["train"].ids)
    assert [splits["train"].ids[i] for i in (51, 0, 30, 31, 7)] == [ids[i] for i in (51, 0, 30, 31, 7)]
    assert ids[:2] == ["train/0", "train 1"]
    with pytest.raises(IndexError):
        splits["train"].ids[52]
    find = read_thumbnails(splits, FEATURES.input, {"train": {50, 0, 31}}, Place(tmp_path))
    assert find(("train", 50)) is None  # broken
    assert find(("train", 0)).shape == find(("train", 31)).shape == (32 * 32,)


def draw_hashes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random hashes in two splits; those of the second half are the first half's but for 0 to 7 bits."""
    random = np.random.default_rng(2)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    for i in range(count // 2):
        bits = random.choice(64, i % 8, replace=False).astype(np.uint64)
        hashes[count // 2 + i] = hashes[i] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    return hashes, (np.arange(count) >= count // 2).astype(np.int16)


def test_of_many_images_all_copies_within_a_few_bits_are_found(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_MAX_COMPARED", 100)
    hashes, splits = draw_hashes(4000)
    pairs, bits = near_duplicates.match_hashes(hashes, splits)
    assert bits == near_duplicates.SURE == 4
    matches = set(map(tuple, pairs.tolist()))
    shares = [np.mean([(i, 2000 + i) in matches for i in range(distance, 2000, 8)]) for distance in range(8)]
    assert shares[:5] == [1] * 5
    assert np.abs(np.array(shares[5:]) - [0.76, 0.47, 0.26]).max() < 0.1  # as the docstring has it


def test_of_too_many_pairs_the_nearest_are_kept_and_it_is_said(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_MAX_PAIRS", 1000)
    hashes, splits = draw_hashes(4000)
    pairs, bits = near_duplicates.match_hashes(hashes, splits)
    assert (len(pairs), bits) == (1000, 3)
    assert np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).max() == 3
    equal = np.zeros(200, np.uint64)
    pairs, bits = near_duplicates.match_hashes(equal, np.arange(200) % 2)
    assert (len(pairs), bits) == (1000, -1)
