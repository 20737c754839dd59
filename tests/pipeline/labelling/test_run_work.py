"""The queues of a run: what its checks found, and what its model was unsure of, with the dataset's present labels."""

import gzip
import json
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagepipe.base import tfrecord
from imagepipe.base.errors import ModelError
from imagepipe.base.names import FINDINGS, NAMES, ROWS
from imagepipe.ingest import dataset, shards
from imagepipe.ingest.command import ingest
from pipeline.labelling.neighbours import find_neighbours
from pipeline.labelling.run_work import Answers, list_uncertain, read_run_work
from pipeline.runs.provenance import FILENAME
from pipeline.workdir import Workdir
from tests.ingest.conftest import put  # noqa: F401 (a fixture)
from tests.photos import crops, encode, photos  # noqa: F401 (fixtures)
from tests.pipeline.runs.workdirs import Recorder, run_id
from trainer.feature_file import write_features


def read_records(out) -> dict[str, list[bytes]]:
    """The records of a dataset by split."""
    records = defaultdict(list)
    for name, split in dataset.load(str(out)).splits.items():
        for shard in split.shards:
            records[name] += shards.read_records(f"{out}/{shard.file}", None)
    return records


def read_hash(record: bytes) -> str:
    return tfrecord.read_bytes_feature(record, "sha256")[0].decode()


@pytest.fixture
def run(put, crops, tmp_path):  # noqa: F811
    """A workdir whose run has findings and predictions, and the hashes of its dataset's images by split."""
    for number, data in enumerate(crops(40)):
        put(f"photos/{'ab'[number % 2]}/{number:02}.jpg", data)
    ingest(tmp_path / "photos", tmp_path / "data", workers=1)
    hashes = {name: [read_hash(record) for record in some] for name, some in read_records(tmp_path / "data").items()}
    findings = {
        "findings": [],
        "label_errors": [
            {"split": "train", "id": "a/00.jpg", "sha256": sha256, "label": "a", "suggested": "b",
             "confidence": 0.1, "suggested_confidence": 0.9, "confident": True}
            for sha256 in (hashes["train"][0], "0" * 64)
        ],
        "near_duplicates": [
            [{"split": split, "id": f"{split}.jpg", "sha256": hashes[split][0]} for split in some]
            for some in (("train", "eval"), ("train", "train"))
        ],
    }  # fmt: skip
    put(f"checked/{FINDINGS}", json.dumps(findings).encode())
    scores = np.linspace(0.99, 0.5, len(hashes["eval"]), dtype=np.float32)
    rows = [
        {"index": i, "id": f"{i}.jpg", "sha256": sha256, "labels": ["a"], "candidate": [score, 1 - score],
         "candidate_label": "a", "candidate_novelty": i / 10, "champion_label": "b" if i == 1 else "a"}
        for i, (sha256, score) in enumerate(zip(hashes["eval"], scores.tolist(), strict=True))
    ]  # fmt: skip
    (tmp_path / "predictions").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "predictions" / ROWS)
    put(f"predictions/{NAMES}", json.dumps({"task": "classification", "candidate": ["a", "b"]}).encode())
    recorder = Recorder(tmp_path / "work")
    recorder.record(0, uris={"Predictions": str(tmp_path / "predictions")})
    recorder.summarize(0, data_dir=str(tmp_path / "checked"))
    recorder.originate(0)
    origin = recorder.workdir.runs / run_id(0) / FILENAME
    origin.write_text(origin.read_text().replace('"/data"', json.dumps(str(tmp_path / "data"))))
    (tmp_path / "pictures").mkdir()
    return recorder.workdir, hashes


def test_queues_of_a_run_have_the_present_labels_and_their_images(run, tmp_path):
    workdir, hashes = run
    work = read_run_work(workdir, tmp_path / "pictures")
    queues = {queue.name: queue.items for queue in work.queues}
    assert [*queues] == ["errors", "copies", "uncertain", "novel", "disputed"]
    (error,) = queues["errors"]
    assert (error.sha256, error.guesses) == (hashes["train"][0], (("b", 0.9), ("a", 0.1)))
    assert [(item.sha256, item.beside[0][0]) for item in queues["copies"]] == [
        (hashes["train"][0], hashes["eval"][0]),
        (hashes["eval"][0], hashes["train"][0]),
    ]
    assert queues["copies"][0].why == "in train, nearly the same as eval.jpg (eval): keep one of them"
    assert [item.sha256 for item in queues["uncertain"]] == hashes["eval"][::-1]
    assert [item.sha256 for item in queues["novel"]] == hashes["eval"][:0:-1]
    assert [item.sha256 for item in queues["disputed"]] == [hashes["eval"][1]]
    assert {item.label for items in queues.values() for item in items} <= {"a", "b"}
    assert (work.task, work.classes, work.originals) == ("classification", ["a", "b"], set())
    shown = {item.sha256 for items in queues.values() for item in items}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == shown
    assert "1 images that the run lists are no longer in the dataset" in work.notes[1]
    assert work.notes[0].startswith("No nearest training images are shown")


@pytest.mark.usefixtures("run")
def test_a_live_model_that_gives_no_label_disagrees_and_numbers_do_not(tmp_path):
    path = tmp_path / "predictions" / ROWS
    row = pq.read_table(path).to_pylist()[0]
    answers = [("a|b", "b|a"), ("a", ""), ("", "a"), ("", ""), ("a", None)]
    several = [row | {"sha256": str(number), "candidate_label": candidate, "champion_label": champion}
               for number, (candidate, champion) in enumerate(answers)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(several), path)
    for task, places in (("multilabel", ["1", "2"]), ("regression", [])):
        (tmp_path / "predictions" / NAMES).write_text(json.dumps({"task": task, "candidate": ["a", "b"]}))
        answered = [*list_uncertain(Answers(str(tmp_path / "predictions")), "run-1")]
        disputed = [item.sha256 for queue in answered if queue.name == "disputed" for item in queue.items]
        assert disputed == places
        if task == "multilabel":
            (item,) = [
                item for queue in answered for item in queue.items if (queue.name, item.sha256) == ("disputed", "1")
            ]
            assert item.answer == ("a",)


def test_a_workdir_without_a_run_that_checked_its_data_is_refused(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ModelError, match="has no run that has checked its data: run the pipeline first"):
        read_run_work(Workdir(tmp_path), tmp_path)


def test_the_nearest_training_images_are_those_whose_features_point_the_same_way(run, tmp_path):
    _, hashes = run
    records = read_records(tmp_path / "data")
    for name, some in records.items():
        (tmp_path / "examples" / f"Split-{name}").mkdir(parents=True)
        with gzip.open(tmp_path / "examples" / f"Split-{name}" / "data.gz", "wb") as file:
            file.writelines(map(tfrecord.frame_record, some))
    angles = [
        (name, i, 0.1 * i + (0.04 if name == "eval" else 0)) for name in records for i in range(len(records[name]))
    ]
    rows = ((name, i, np.array([np.cos(a), np.sin(a)], np.float16) * (i + 1)) for name, i, a in angles)
    write_features(rows, 2, tmp_path / "features.parquet")
    wanted = {hashes["eval"][1], hashes["train"][5]}
    near = find_neighbours(tmp_path / "features.parquet", tmp_path / "examples", wanted)
    assert near.keys() == wanted
    assert near[hashes["eval"][1]] == [hashes["train"][i] for i in (1, 2, 0, 3)]
    assert set(near[hashes["train"][5]][:2]) == {hashes["train"][4], hashes["train"][6]}
