"""Batch prediction: every input once, whatever happens on the way."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image

from imagepipe.base import filesystem, progress
from imagepipe.base.errors import IngestError, ModelError, UnavailableError
from imagepipe.base.locks import lock_folder
from imagepipe.base.tfrecord import decode_example
from imagepipe.capture import files
from imagepipe.capture.rows import CaptureOptions
from imagepipe.serving import batch, results, shards, spool
from imagepipe.serving.batch import BatchResult
from imagepipe.serving.inputs import read_images
from imagepipe.serving.listing import Item, list_inputs
from imagepipe.serving.predictor import load
from imagepipe.serving.request_files import SUFFIXES, write_requests
from imagepipe.serving.types import Request
from tests.conftest import encode_image


def png(value: int) -> bytes:
    return encode_image(Image.new("RGB", (8, 8), (value,) * 3), "PNG")


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(png(30 * number))
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


def lines(out: Path, kind: str) -> list[dict]:
    return [json.loads(line) for file in out.glob(f"{kind}-*.jsonl") for line in file.open()]


def read_captured(folder: Path) -> list[dict]:
    parts = [pq.read_table(part, partitioning=None) for part in files.list_parts(str(folder))]
    return [row for part in parts for row in part.to_pylist()]


def test_answers_are_captured_as_they_are_written(model, images, tmp_path):
    options = CaptureOptions(str(tmp_path / "traffic"), rate=1.0, images="original")
    result = batch.predict_source(model, str(images), tmp_path / "out", options=options)
    rows = read_captured(tmp_path / "traffic")
    predictions = lines(tmp_path / "out", "predictions")
    answers = {line["metadata"]: (line["label"], line["score"], line["novelty"]) for line in predictions}
    assert {row["metadata"].decode(): (row["label"], row["score"], row["novelty"]) for row in rows} == answers
    assert len(rows) == result.predicted
    assert {row["version"] for row in rows} == {"7"}
    for row in rows:
        assert Path(row["metadata"].decode()).read_bytes() == row["image"]


def test_a_capture_that_can_not_be_written_is_refused_before_the_job(model, images, tmp_path):
    (tmp_path / "file").touch()
    options = CaptureOptions(str(tmp_path / "file" / "traffic"), rate=1.0)
    with pytest.raises(ModelError, match="file/traffic can't be written: "):
        batch.predict_source(model, str(images), tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_capture_by_a_relative_path_is_of_the_folder_of_the_command(model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask = shards.predict_shard

    def ask_elsewhere(*args: Any) -> None:
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            ask(*args)

    monkeypatch.setattr(batch, "predict_shard", ask_elsewhere)
    batch.predict_source(model, str(images), tmp_path / "out", options=CaptureOptions("traffic", rate=1.0))
    assert len(read_captured(tmp_path / "traffic")) == 7


@pytest.mark.parametrize("place", ["here", "store"])
def test_an_attempt_that_was_killed_leaves_no_rows_in_the_capture(model, images, tmp_path, place, request, monkeypatch):
    folder = str(tmp_path / "traffic") if place == "here" else f"{request.getfixturevalue('memory').uri}/traffic"
    options = CaptureOptions(folder, rate=1.0, images="original")
    run, shard = spool_one(images, str(tmp_path / "out"))
    write = filesystem.write_whole

    def die(path: str, data: bytes) -> None:
        if path.endswith(".json"):
            raise KeyboardInterrupt
        write(path, data)

    with monkeypatch.context() as killed:
        killed.setattr(filesystem, "write_whole", die)
        with pytest.raises(KeyboardInterrupt):
            shards.predict_shard(shard, load(model), run.folder, "parquet", str(model), options)
    for _ in range(2):
        shards.predict_shard(shard, load(model), run.folder, "jsonl", str(model), options)
    assert list(files.list_parts(folder)) == []
    assert batch.predict_source(model, str(images), tmp_path / "out", options=options).already == 8  # which moves them
    copies = [filesystem.read_bytes(part) for part in files.list_parts(folder)]
    assert sum(pq.read_table(io.BytesIO(copy)).num_rows for copy in copies) == 7


def test_embeddings_are_captured_of_a_model_that_gives_them(two_forms, images, tmp_path):
    run, shard = spool_one(images, str(tmp_path / "out"))
    options = CaptureOptions(str(tmp_path / "traffic"), rate=1.0)
    shards.predict_shard(shard, load(two_forms), run.folder, "jsonl", str(two_forms), options)
    run.settle()
    rows = read_captured(tmp_path / "traffic")
    embeddings = {Path(row["metadata"].decode()).name: row["embedding"] for row in rows}
    assert embeddings == {f"{number}.png": [pytest.approx(30 * number / 255, abs=1e-3)] for number in range(7)}


def test_each_image_has_a_prediction_or_a_reason(model, images, tmp_path):
    out = tmp_path / "out"
    assert batch.predict_source(model, str(images), out) == BatchResult(predicted=7, quarantined=1, already=0)
    rows = {row["metadata"]: row for row in lines(out, "predictions")}
    for answer in load(model).predict_requests(read_images(sorted(images.glob("*.png")))):
        row = rows.pop(answer.id)
        assert (row["label"], row["score"], row["novelty"]) == (answer.label, answer.score, answer.novelty)
        assert row["classes"] == [answer.classes["dark"], answer.classes["light"]]
    assert not rows
    (bad,) = lines(out, "quarantine")
    assert bad["metadata"] == str(images / "bad.jpg")
    assert "not an image" in bad["reason"]


def test_progress_counts_what_is_quarantined_as_such(model, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    monkeypatch.setattr(results, "_SECONDS", 0.0)
    monkeypatch.setattr(spool, "_IMAGES_IN_SHARD", 1)
    (tmp_path / "bad").mkdir()
    for number in range(30):
        (tmp_path / "bad" / f"{number}.png").write_bytes(b"no image")
    batch.predict_source(model, f"{tmp_path}/*/*", tmp_path / "out")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("of 38 files ")]
    assert " left" not in told[0]
    for line in told:
        done, predicted, quarantined = map(int, re.findall(r"(\d+) (?:done|predicted|quarantined)", line))
        assert (done, predicted <= 7) == (predicted + quarantined, True), line


def test_a_second_run_asks_only_about_new_images(model, images, tmp_path):
    out = tmp_path / "out"
    batch.predict_source(model, str(images), out)
    contents = {file: file.read_bytes() for file in out.rglob("*.jsonl")}
    (images / "new.png").write_bytes(png(200))
    assert batch.predict_source(model, str(images), out) == BatchResult(predicted=1, quarantined=0, already=8)
    assert batch.predict_source(model, str(images), out) == BatchResult(predicted=0, quarantined=0, already=9)
    assert {file: file.read_bytes() for file in contents} == contents
    assert Counter(row["metadata"] for row in lines(out, "predictions")) == Counter(
        str(file) for file in images.glob("*.png")
    )


def test_all_formats_hold_the_same(model, images, tmp_path):
    for kind in ("jsonl", "parquet", "tfrecord"):
        batch.predict_source(model, f"{images}/*.png", tmp_path / kind, kind)
    expected = sorted(lines(tmp_path / "jsonl", "predictions"), key=lambda row: row["metadata"])
    (table,) = (tmp_path / "parquet").glob("*.parquet")
    columns = ["metadata", "label", "score", "classes", "novelty"]
    by_table = sorted(pq.read_table(table, columns=columns).to_pylist(), key=lambda row: row["metadata"])
    (file,) = (tmp_path / "tfrecord").glob("*.tfrecord")
    records = [decode_example(record) for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()]
    by_records = [
        {
            "metadata": record["metadata"][0].decode(),
            "label": record["label"][0].decode(),
            "score": record["score"][0],
            "classes": record["classes"],
            "novelty": record["novelty"][0],
        }
        for record in sorted(records, key=lambda record: record["metadata"])
    ]
    for rows in (by_table, by_records):
        assert [{**row, "classes": pytest.approx(row["classes"])} for row in rows] == expected


def test_files_of_requests_and_tables_of_paths_are_read(model, images, tmp_path):
    for kind, suffix in SUFFIXES.items():
        write_requests([Request(f"{kind} {n}", png(n)) for n in range(3)], tmp_path / f"x{suffix}", kind)
    assert batch.predict_source(model, f"{tmp_path}/x.*", tmp_path / "a").predicted == 9
    assert {row["metadata"] for row in lines(tmp_path / "a", "predictions")} == {
        f"{kind} {n}" for kind in SUFFIXES for n in range(3)
    }


def test_a_file_without_a_request_is_listed_and_asked_again(model, tmp_path):
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out"
    asked.touch()
    for _ in range(2):
        assert batch.predict_source(model, str(asked), out) == BatchResult(0, 1, 0)
        assert lines(out, "quarantine") == [{"metadata": str(asked), "reason": "no request in it"}]
    write_requests([Request("1", png(1), {"weight ": 1.0})], asked, "jsonl")
    assert batch.predict_source(model, str(asked), out) == BatchResult(1, 0, 0, columns=("weight ",))
    assert lines(out, "quarantine") == []
    assert batch.predict_source(model, str(asked), out) == BatchResult(0, 0, 1)


def test_a_file_without_a_request_that_a_killed_run_has_read_is_asked_again(model, tmp_path):
    asked, out = tmp_path / "asked.jsonl", str(tmp_path / "out")
    asked.touch()
    run = results.Run(out, lambda: True)
    (shard,) = spool.read_shards(*spool.spool_items(list_inputs([str(asked)]).items, run.folder).files)
    shards.predict_shard(shard, load(model), run.folder, "jsonl", str(model))
    write_requests([Request("1", png(1))], asked, "jsonl")
    assert batch.predict_source(model, str(asked), out) == BatchResult(1, 0, 0)
    assert lines(tmp_path / "out", "quarantine") == []


def test_rows_of_a_manifest_are_inputs_of_their_own(model, images, tmp_path):
    table = images / "list.csv"
    table.write_text("name;path;label\nx;1.png;a\ny;2.png;b\nz;gone.png;c\nw;1.png;d\nw;1.png;d\n")
    result = batch.predict_source(model, str(table), tmp_path / "a")
    assert result == BatchResult(4, 1, 0, {}, ("name", "label"))
    rows = sorted(lines(tmp_path / "a", "predictions"), key=lambda row: row["line"])
    assert [(row["line"], row["metadata"]) for row in rows] == [(2, "1.png"), (3, "2.png"), (5, "1.png"), (6, "1.png")]
    (lost,) = lines(tmp_path / "a", "quarantine")
    assert lost == {"metadata": "gone.png", "reason": "line 4: No such file or directory"}
    table.write_text("name;path;label\nv;3.png;e\nx;1.png;a\ny;2.png;b\nz;gone.png;c\nw;1.png;d\nw;1.png;d\n")
    assert batch.predict_source(model, str(table), tmp_path / "a") == BatchResult(1, 0, 5, {}, ("name", "label"))
    table.write_text("name,path\nx,\n")
    assert batch.predict_source(model, str(table), tmp_path / "b") == BatchResult(0, 1, 0, {}, ("name",))
    table.write_text("name,file\n")
    with pytest.raises(IngestError, match="no column 'path'"):
        batch.predict_source(model, str(table), tmp_path / "b")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tfrecord"])
def test_further_columns_of_a_manifest_are_kept_in_the_results(model, images, tmp_path, kind):
    (images / "list.jsonl").write_text('{"path": "1.png", "label": "a", "patient": "007", "far": Infinity}\n')
    result = batch.predict_source(model, str(images / "list.jsonl"), tmp_path / "out", kind, keep=True)
    assert result == BatchResult(1, 0, 0)
    (file,) = (tmp_path / "out").glob("predictions-*")
    if kind == "jsonl":
        row = json.loads(file.read_text())
    elif kind == "parquet":
        (row,) = pq.read_table(file).to_pylist()
        row["kept"] = json.loads(row["kept"])
    else:
        (record,) = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        row = {name: values[0] for name, values in decode_example(record).items()}
        row["kept"] = json.loads(row["kept"])
    assert (row["line"], row["kept"]) == (1, {"label": "a", "patient": "007", "far": "inf"})


def test_what_is_passed_over_is_in_the_result(model, images, tmp_path):
    (images / "@eaDir").mkdir()
    (images / "@eaDir" / "1.png").write_bytes(png(1))
    (images / ".hidden.png").write_bytes(png(1))
    (images / "metadata.csv").write_text("path\n1.png\n")
    result = batch.predict_source(model, str(images), tmp_path / "out")
    assert (result.predicted, result.quarantined) == (7, 1)
    assert sorted(result.passed_over.values()) == [1, 1, 1]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_of_a_member_that_is_twice_in_an_archive_the_last_is_asked_and_the_other_counted(model, tmp_path, kind):
    archive = tmp_path / f"images.{kind}"
    for name, value in ("a/1.png", 0), ("2.png", 0), ("./a/1.png", 250):
        (tmp_path / "image.png").write_bytes(png(value))
        if kind == "tar":
            with tarfile.open(archive, "a") as tar:
                tar.add(tmp_path / "image.png", name)
        else:
            with zipfile.ZipFile(archive, "a") as file:
                file.write(tmp_path / "image.png", name)
    result = batch.predict_source(model, str(archive), tmp_path / "out")
    assert (result.predicted, sum(result.passed_over.values())) == (2, 1), result
    labels = {row["metadata"]: row["label"] for row in lines(tmp_path / "out", "predictions")}
    assert labels == {f"{archive}/a/1.png": "light", f"{archive}/2.png": "dark"}
    listing = list_inputs([str(archive)])
    assert [item.id for item in listing.items] == list(labels)
    assert dict(listing.passed_over) == result.passed_over


def test_a_file_in_the_place_of_the_folder_of_results_is_named(model, images, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ModelError, match="out is a file: give a folder for the results"):
        batch.predict_source(model, str(images), tmp_path / "out")


def test_a_second_run_into_the_same_folder_is_refused_while_one_is_running(model, images, tmp_path):
    with lock_folder(tmp_path / "out", AssertionError()), pytest.raises(ModelError, match="another run"):
        batch.predict_source(model, str(images), tmp_path / "out")


def test_files_of_others_in_the_folder_of_the_results_stay(model, images, tmp_path):
    theirs = tmp_path / "predictions-2024.csv"
    theirs.write_text("theirs")
    batch.predict_source(model, str(images), tmp_path)
    assert theirs.exists()


def test_a_workers_failure_is_reported_with_its_reason(model, images, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(batch, "predict_shard", fail)
    with pytest.raises(UnavailableError, match=r"Input/output error.*run it again"):
        batch.predict_source(model, str(images), tmp_path / "out")


def spool_one(images: Path, out: str, is_held: bool = True) -> tuple[results.Run, spool.Shard]:
    run = results.Run(out, lambda: is_held)
    spooled = spool.spool_items(list_inputs([str(images)]).items, run.folder)
    (shard,) = spool.read_shards(*spooled.files)
    return run, shard


@pytest.mark.parametrize("place", ["here", "s3"])
def test_attempts_at_one_shard_lose_nothing_and_add_nothing(model, images, tmp_path, place, request, monkeypatch):
    """Of four attempts at a shard one is killed as it writes, two end, and one comes when all is over."""
    out = str(tmp_path / "out") if place == "here" else f"{request.getfixturevalue('s3').uri}/out"
    run, shard = spool_one(images, out)
    predictor = load(model)

    filesystem.copy(shard.spool, str(tmp_path / "read before"))
    shard = shard._replace(spool=str(tmp_path / "read before"))

    def attempt() -> None:
        shards.predict_shard(shard, predictor, run.folder, "jsonl", str(model))

    def read_rows(kind: str) -> list[str]:
        names = [name for name in filesystem.list_folder(out) if name.startswith(kind)]
        rows = (line for name in names for line in filesystem.read_bytes(f"{out}/{name}").splitlines())
        return sorted(json.loads(row)["metadata"] for row in rows)

    filesystem.write_whole(f"{run.folder}/{shard.id}-{'0' * 32}.predictions", b'{"metadata": "killed he')
    attempt()
    (images / "0.png").unlink()  # what one attempt has read, another may not be able to
    attempt()
    moved = []
    rename = filesystem.rename

    def be_killed(*paths: str) -> None:
        moved.append(paths)
        if len(moved) == 2:
            raise OSError(5, "killed")
        rename(*paths)

    monkeypatch.setattr(filesystem, "rename", be_killed)
    with pytest.raises(OSError, match="killed"):
        run.settle()
    monkeypatch.setattr(filesystem, "rename", rename)
    run.settle()
    run.settle()
    assert run.inputs == run.predicted + run.quarantined == 8
    everything = sorted(str(images / name) for name in (*(f"{number}.png" for number in range(7)), "bad.jpg"))
    assert sorted(read_rows("predictions") + read_rows("quarantine")) == everything
    run.remove_attempts()
    attempt()
    done = results.recover(out, lambda: True)
    assert all(path in done for path in everything)
    assert sorted(read_rows("predictions") + read_rows("quarantine")) == everything
    assert filesystem.list_folder(f"{out}/.attempts") == []


def test_what_a_killed_run_has_done_is_kept_once_whatever_its_job_did_afterwards(images, model, tmp_path):
    out = str(tmp_path / "out")
    predictor = load(model)
    for _ in range(2):  # two runs, the jobs of both go on, and neither driver is there to take what they did
        run, shard = spool_one(images, out)
        shards.predict_shard(shard, predictor, run.folder, "jsonl", str(model))
    assert batch.predict_source(model, str(images), out) == BatchResult(predicted=0, quarantined=0, already=8)
    assert len(lines(tmp_path / "out", "predictions")) == 7
    assert len(lines(tmp_path / "out", "quarantine")) == 1


def test_a_run_that_slept_until_another_took_over_its_folder_moves_nothing_and_deletes_its_own_only(
    images, model, tmp_path
):
    out = str(tmp_path / "out")
    predictor = load(model)
    (late, late_shard), (other, shard) = spool_one(images, out, is_held=False), spool_one(images, out)
    for run, part in ((late, late_shard), (other, shard)):
        shards.predict_shard(part, predictor, run.folder, "jsonl", str(model))
    with pytest.raises(UnavailableError, match="another run has taken over"):
        late.settle()
    with pytest.raises(UnavailableError, match="another run has taken over"):
        results.recover(out, lambda: False)
    late.remove_attempts()
    other.settle()
    assert (other.predicted, other.quarantined) == (7, 1)
    assert not Path(late.folder).exists()


def test_the_process_that_lists_holds_no_more_inputs_than_go_into_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_IMAGES_IN_SHARD", 4)
    monkeypatch.setattr(spool, "_SHARDS_IN_FILE", 5)
    items = (Item(f"{number:02000}", "id", "key") for number in range(5000))
    tracemalloc.start()
    spooled = spool.spool_items(items, str(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (spooled.inputs, len(spooled.files)) == (5000, 250)
    assert peak < 4_000_000  # of 10,000,000 characters; files have buffers, too


def test_a_runner_that_skips_work_is_found_out_and_the_rest_is_done_by_the_next_run(
    model, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(spool, "_IMAGES_IN_SHARD", 3)
    skipped = iter([True, False, False])
    predict = shards.predict_shard
    monkeypatch.setattr(batch, "predict_shard", lambda *shard: None if next(skipped) else predict(*shard))
    with pytest.raises(UnavailableError, match=r"of 8 inputs \d have a result .* and \d have none.*run it again"):
        batch.predict_source(model, str(images), tmp_path / "out")
    done = sum(len(lines(tmp_path / "out", kind)) for kind in ("predictions", "quarantine"))
    assert 0 < done < 8
    monkeypatch.setattr(batch, "predict_shard", predict)
    assert batch.predict_source(model, str(images), tmp_path / "out").already == done
    assert len(lines(tmp_path / "out", "predictions")) == 7


def test_model_inputs_and_results_are_on_an_object_store(model, images, tmp_path, store):
    for file in images.iterdir():
        store.put(f"in/{file.name}", file.read_bytes())
    filesystem.copy_folder(str(model), f"{store.uri}/serving/brightness/7")
    out = f"{store.uri}/out"
    for expected in (BatchResult(7, 1, 0), BatchResult(0, 0, 8)):
        assert batch.predict_source(f"{store.uri}/serving/brightness", f"{store.uri}/in", out) == expected
    content = store.content("out")
    rows = [json.loads(line) for name, data in content.items() if "predictions-" in name for line in data.splitlines()]
    assert sorted(row["metadata"] for row in rows) == [f"{store.uri}/in/{number}.png" for number in range(7)]
    assert batch.predict_source(model, str(images), tmp_path / "out").predicted == 7
    scores = sorted(row["score"] for row in lines(tmp_path / "out", "predictions"))
    assert sorted(row["score"] for row in rows) == scores
    assert sorted(name.partition("-")[0].partition("/")[0] for name in content) == [
        ".lock",
        "done",
        "predictions",
        "quarantine",
    ]


@pytest.mark.parametrize("kind", ["parquet", "tfrecord"])
def test_all_formats_are_written_to_a_store(model, images, tmp_path, memory, kind):
    assert batch.predict_source(model, str(images), f"{memory.uri}/out", kind).predicted == 7
    batch.predict_source(model, str(images), tmp_path / "out", kind)
    (file,) = (tmp_path / "out").glob("predictions-*")
    (data,) = [data for name, data in memory.content("out").items() if name.startswith("predictions-")]
    assert data == file.read_bytes()


def test_relative_paths_hold_wherever_workers_run(model, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    predict = shards.predict_shard

    def predict_elsewhere(*arguments: Any) -> None:
        os.chdir(elsewhere)
        predict(*arguments)

    monkeypatch.setattr(batch, "predict_shard", predict_elsewhere)
    assert batch.predict_source(os.path.relpath(model), "images", "out") == BatchResult(7, 1, 0)
    assert {row["metadata"] for row in lines(tmp_path / "out", "predictions")} == {f"images/{n}.png" for n in range(7)}
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_several_processes_give_what_one_gives(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_IMAGES_IN_SHARD", 2)
    assert batch.predict_source(model, str(images), tmp_path / "out", workers=2) == BatchResult(7, 1, 0)
    assert len({row["metadata"] for row in lines(tmp_path / "out", "predictions")}) == 7


@pytest.mark.slow
def test_killed_and_started_again_every_input_is_there_once(model, tmp_path):
    count = 400
    (tmp_path / "in").mkdir()
    for shard in range(count):
        shard_requests = [Request(f"{shard}-{n}", png(n)) for n in range(20)]
        write_requests(shard_requests, tmp_path / "in" / f"{shard:03}.jsonl", "jsonl")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "imagepipe", "batch-predict", str(model), f"{tmp_path}/in/*", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603

    def count_done() -> int:
        return len([*out.glob("done/*.json"), *out.glob(".attempts/*/[0-9a-f]*.json")])

    while count_done() < 20:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = count_done()
    assert done < count
    leftovers = [out / ".partial-1", out / "done" / ".partial-2", out / f"predictions-{'0' * 32}.jsonl"]
    (out / "done").mkdir(exist_ok=True)
    for file in leftovers:
        file.write_text('{"metadata": "written when it was killed"')

    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)  # noqa: S603
    assert json.loads(again.stdout) == {
        "predicted": 20 * (count - done),
        "quarantined": 0,
        "already": done,
        "passed_over": {},
        "columns": [],
    }
    assert not any(file.exists() for file in leftovers)
    keys = Counter(row["metadata"] for row in lines(out, "predictions"))
    assert keys == Counter(f"{shard}-{n}" for shard in range(count) for n in range(20))
