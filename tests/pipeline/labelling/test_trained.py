"""The training images beside captured ones: the nearest by the embeddings of the version's own model."""

import hashlib
import json
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import tensorflow as tf

from imagepipe.base.errors import ModelError
from imagepipe.capture.files import write_rows
from imagepipe.ingest.command import ingest
from pipeline.labelling import trained
from pipeline.labelling.capture_work import read_capture_work
from pipeline.labelling.trained import TrainedImages, load_embed
from pipeline.runs.provenance import FILENAME
from tests.ingest.conftest import put  # noqa: F401 (a fixture)
from tests.photos import crops, encode, photos  # noqa: F401 (fixtures)
from tests.pipeline.labelling.test_run_work import read_hash, read_records
from tests.pipeline.labelling.test_server import HASHES
from tests.pipeline.runs.workdirs import Recorder, run_id


def read_sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def embed(images: list[bytes]) -> np.ndarray:
    """Embeddings that say how long a file is."""
    return np.array([[len(image), 10_000] for image in images], np.float32)


@pytest.fixture
def run(put, crops, tmp_path, monkeypatch):  # noqa: F811
    """The folder of a run that pushed version 7, and the files of its train split by hash."""
    for number, data in enumerate(crops(40)):
        put(f"photos/{'ab'[number % 2]}/{number:02}.jpg", data)
    ingest(tmp_path / "photos", tmp_path / "data", workers=1)
    recorder = Recorder(tmp_path / "work")
    (tmp_path / "model").mkdir()
    recorder.summarize(0, pushed_version="7", model_dir=str(tmp_path / "model"))
    recorder.originate(0)
    folder = recorder.workdir.runs / run_id(0)
    origin = folder / FILENAME
    origin.write_text(origin.read_text().replace('"/data"', json.dumps(str(tmp_path / "data"))))
    monkeypatch.setattr(trained, "load_embed", lambda _: embed)
    (tmp_path / "pictures").mkdir()
    files = {path.read_bytes(): path.parent.name for path in (tmp_path / "photos").rglob("*.jpg")}
    train = {read_hash(record) for record in read_records(tmp_path / "data")["train"]}
    return folder, files, train


def test_the_nearest_training_images_are_beside_with_their_labels(run, tmp_path):
    folder, files, train = run
    rows = [
        {"time": datetime(2026, 11, 29, 9, number, tzinfo=UTC), "version": version, "label": "a", "classes": [0.6, 0.4],
         "sha256": HASHES[number], "image": b"small", "embedding": vector and np.array(vector, np.float16)}
        for number, (version, vector) in enumerate([("7", [20_000, 10_000]), ("7", None), ("8", [1, 0])])
    ]  # fmt: skip
    write_rows(str(tmp_path / "capture"), rows, "one")
    work = read_capture_work(str(tmp_path / "capture"), tmp_path / "pictures", TrainedImages(folder))
    assert work.classes == ["a", "b"]  # though the model has answered a alone
    beside = {item.sha256: item.beside for item in work.queues[0].items}
    assert beside[HASHES[1]] == beside[HASHES[2]] == ()
    sizes = []
    for sha256, label in beside[HASHES[0]]:
        data = (tmp_path / "pictures" / sha256).read_bytes()
        assert sha256 in train
        assert files[data] == label
        sizes.append(len(data))
    angles = sorted(abs(np.arctan2(len(data), 10_000) - np.arctan2(2, 1)) for data in files if read_sha(data) in train)
    assert [abs(np.arctan2(size, 10_000) - np.arctan2(2, 1)) for size in sizes] == pytest.approx(angles[:4])
    assert "Beside 2 images no training images are shown: version 7 was not asked" in work.notes[-1]
    without = read_capture_work(str(tmp_path / "capture"), tmp_path / "pictures")
    assert "--against runs/RUN" in without.notes[-1]


def test_a_model_is_asked_for_embeddings_and_one_without_is_refused_by_name(tmp_path):
    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name) for name in ("input", "metadata")])
        def embed(self, input, metadata):
            return {"embedding": tf.cast(tf.strings.length(input), tf.float32)[:, None]}

    model = Model()
    tf.saved_model.save(model, str(tmp_path / "1"), signatures={"embed": model.embed})
    tf.saved_model.save(model, str(tmp_path / "0"), signatures={"serving_default": model.embed})
    assert load_embed(str(tmp_path / "1"))([b"abc", b"a"]).tolist() == [[3], [1]]
    with pytest.raises(ModelError, match=f"{tmp_path / '0'} gives no embeddings"):
        load_embed(str(tmp_path / "0"))


def test_a_run_without_its_model_or_its_dataset_is_refused_by_name(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(ModelError, match="is no run"):
        TrainedImages(tmp_path / "photos")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(ModelError, match=r"dataset .* is gone"):
        TrainedImages(folder)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(ModelError, match="has removed its model"):
        TrainedImages(folder)
