"""The reference that `imagepipe monitor` makes of what a run left."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml
from typer.testing import CliRunner

from imagepipe.base.errors import ModelError
from imagepipe.base.names import REFERENCE, REFERENCE_FILE, ROWS
from imagepipe.base.tfrecord import encode_example, frame_record
from imagepipe.monitoring import reference_rows
from imagepipe.monitoring.reference import find_own_reference
from imagepipe.monitoring.reference_rows import write_reference
from pipeline.cli import app
from pipeline.runs.reference import find_reference
from tests.pipeline.runs.workdirs import Recorder, run_id

TRAINED, EVALUATED = 6, 4


class Embedder(tf.Module):
    """Embeds an image as the number of its bytes, and a one."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=name) for name in ("input", "metadata")])
    def embed(self, input, metadata):
        size = tf.cast(tf.strings.length(input), tf.float32)
        return {"embedding": tf.stack([size, tf.ones_like(size)], axis=1), "metadata": metadata}


def write_split(folder: Path, count: int) -> None:
    """Two files, of which each has every second image, the darkest first."""
    folder.mkdir(parents=True)
    for part in range(2):
        with gzip.open(folder / f"data_tfrecord-0000{part}-of-00002.gz", "wb") as file:
            for number in range(part, count, 2):
                example = {"input": [b"x" * (number + 1)], "width": [100 + number], "brightness": [number / 10]}
                file.write(frame_record(encode_example(example)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    module = Embedder()
    tf.saved_model.save(module, str(folder), signatures={"embed": module.embed})
    return folder


@pytest.fixture
def run(tmp_path, saved) -> Path:
    """A run that pushed version 2, which lies in a folder of versions."""
    recorder = Recorder(tmp_path / "work")
    left = recorder.workdir.artifacts
    model = left / "Trainer" / "model" / "1" / "Format-Serving"
    shutil.copytree(saved, model)
    for split, count in (("train", TRAINED), ("eval", EVALUATED)):
        write_split(left / "examples" / f"Split-{split}", count)
    (left / "predictions").mkdir()
    rows = [
        {
            "index": index,
            "candidate": [0.25, 0.75],
            "candidate_label": "dog",
            "candidate_novelty": index / 4,
            "width": 100,
            "height": 80,
            "x_brightness": 0.5,
        }
        for index in range(EVALUATED)
    ]
    pq.write_table(pa.Table.from_pylist(rows), left / "predictions" / ROWS)
    recorder.record(0, uris={"ImportExampleGen": f"{left}/examples", "Predictions": f"{left}/predictions"})
    recorder.summarize(0, pushed_version="2", model_dir=str(model))
    folder = recorder.workdir.runs / run_id(0)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "digits", "data": {"path": "/data"}}))
    shutil.copytree(model, recorder.workdir.serving("digits") / "2")
    return folder


def test_it_has_the_measures_of_training_and_the_answers_about_the_eval_split(run):
    reference = find_reference(str(run))
    assert (reference.task, reference.version, reference.run) == ("classification", "2", run_id(0))
    assert sorted(reference.trained.numbers["width"]) == [100, 101, 102, 103, 104, 105]
    assert sorted(reference.trained.numbers["brightness"]) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert np.isnan(reference.trained.numbers["contrast"]).all()  # which these records don't have
    assert reference.trained.labels == []
    assert reference.evaluated.labels == [["dog"]] * EVALUATED
    assert reference.evaluated.numbers["score"].tolist() == [0.75] * EVALUATED
    assert reference.evaluated.numbers["novelty"].tolist() == [0, 0.25, 0.5, 0.75]
    # Predictions' rows are in the order of the files: first the images with an even number.
    assert reference.evaluated.embedding.tolist() == [[1, 1], [3, 1], [2, 1], [4, 1]]


def test_of_more_images_than_it_has_rows_each_is_as_likely_whatever_their_order(run, monkeypatch):
    """Of the train split, of the eval split, and of the embeddings."""
    left = run.parent.parent / "artifacts"
    for split in ("train", "eval"):
        shutil.rmtree(left / "examples" / f"Split-{split}")
        write_split(left / "examples" / f"Split-{split}", 400)
    rows = [{"index": i, "candidate": [1.0], "candidate_label": f"{i % 2}", "candidate_novelty": i} for i in range(400)]
    pq.write_table(pa.Table.from_pylist(rows), left / "predictions" / ROWS)
    for name, most in (("TRAINED", 100), ("EVALUATED", 200), ("EMBEDDED", 100)):
        monkeypatch.setattr(reference_rows, f"_MAX_{name}", most)
    reference = find_reference(str(run))
    brightness, novelty = reference.trained.numbers["brightness"], reference.evaluated.numbers["novelty"]
    assert (len(set(brightness)), len(set(novelty)), len(reference.evaluated.embedding)) == (100, 200, 100)
    assert np.quantile(brightness, (0.25, 0.5, 0.75)) == pytest.approx([10, 20, 30], abs=4)
    # By their place in the files as well: of two files and two classes, which take turns, neither is left out.
    assert np.mean(novelty < 200) == pytest.approx(0.5, abs=0.1)
    assert np.mean([label == ["0"] for label in reference.evaluated.labels]) == pytest.approx(0.5, abs=0.1)
    sizes = reference.evaluated.embedding[:, 0]
    assert len(set(sizes)) == 100
    assert np.mean(sizes % 2) == pytest.approx(0.5, abs=0.15)


def test_it_is_kept_in_the_run_and_named_by_the_file(run):
    first = find_reference(str(run.parent.parent / "serving" / "digits"))
    (run.parent.parent / "metadata.db").unlink()
    for against in (run, run / "reference.parquet"):
        assert find_reference(str(against)).evaluated.labels == first.evaluated.labels


def test_a_run_whose_artifacts_are_gone_is_refused_in_words(run):
    (run.parent.parent / "artifacts" / "predictions" / ROWS).unlink()
    with pytest.raises(ModelError, match=r"can't be compared with this run.*predictions\.parquet.* is missing"):
        find_reference(str(run))


def test_a_run_that_is_deployed_by_hand_brings_its_own_if_there_is_one(run, tmp_path, monkeypatch):
    def deploy(folder):
        arguments = ["--config", str(run / "config.yaml"), "--json", "--set", f"deploy.path={tmp_path / folder}"]
        result = CliRunner().invoke(app, ["deploy", str(run), *arguments])
        assert result.exit_code == 0, result.output
        return find_own_reference(json.loads(result.stdout)["uri"]), " ".join(result.stderr.split())

    reference, note = deploy("with")
    assert (reference.evaluated.labels, note) == ([["dog"]] * EVALUATED, "")
    (run / REFERENCE_FILE).unlink()
    monkeypatch.setattr("pipeline.runs.reference.REFERENCE_FILE", "away/reference.parquet")
    reference, note = deploy("can't be written")
    assert reference is None
    assert "without what `imagepipe monitor` compares its traffic with: " in note
    monkeypatch.undo()
    shutil.rmtree(run.parent.parent / "artifacts" / "predictions")
    reference, note = deploy("gone")
    assert reference is None
    assert "is missing. `imagepipe clean` removes the artifacts of old runs" in note


def test_a_version_has_its_own_whatever_became_of_its_run(run):
    version = run.parent.parent / "serving" / "digits" / "2"
    write_reference(str(version / REFERENCE), [{"split": "eval", "label": "cat"}], "classification", "", "")
    shutil.rmtree(run.parent.parent / "artifacts")
    for against in (version, version.parent, run):
        own = find_reference(str(against))
        assert (own.version, own.evaluated.labels) == ("2", [["cat"]])
