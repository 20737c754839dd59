"""A full disk: one clear message, nothing half done, and the same command completes once there is room."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from imagepipe.ingest import dataset
from tests.faults.conftest import run, run_pipeline
from tests.pipeline.runs.nights import Nights, count_bytes, list_files, list_lies
from tests.serving.test_serve import add_version
from tests.serving.test_server import gray


def check_refusal(result, disk) -> None:
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr
    assert str(disk.folder) in result.stderr
    assert "Make room" in result.stderr


SLOW = pytest.mark.slow


# Too small for the list of files, for the first shard, for the last one.
@pytest.mark.parametrize("size", [pytest.param("4k", marks=SLOW), "200k", pytest.param("800k", marks=SLOW)])
def test_an_ingest_onto_a_full_disk_leaves_nothing_and_completes_with_room(size, small_disk, digits_folder):
    disk = small_disk(size)
    out = disk.folder / "dataset"
    check_refusal(run("ingest", digits_folder, "--out", out), disk)
    assert not any(disk.folder.rglob("*.tfrecord*"))
    disk.resize("20m")
    completed = run("ingest", digits_folder, "--out", out)
    assert completed.returncode == 0, completed.stderr
    assert "400 records in = 400 written (400 new" in completed.stdout


def test_a_dataset_that_can_not_grow_for_want_of_room_stays_as_it_was(small_disk, digits_folder, tmp_path):
    disk = small_disk("20m")
    source, out = tmp_path / "images", disk.folder / "dataset"
    digits = sorted(digits_folder.glob("*/*.png"))
    copy(digits[::2], source)
    assert run("ingest", source, "--out", out).returncode == 0
    described = dataset.load(str(out))
    copy(digits, source)
    disk.resize(f"{shutil.disk_usage(disk.folder).used + 100_000}")
    check_refusal(run("ingest", source, "--out", out), disk)
    assert dataset.load(str(out)) == described
    disk.resize("20m")
    completed = run("ingest", source, "--out", out)
    assert "400 records in = 400 written (200 new, 200 were there already)" in completed.stdout, completed.stderr


def copy(files: list[Path], folder: Path) -> None:
    for file in files:
        (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.parent.name)


@pytest.mark.long
def test_a_run_on_a_full_disk_says_so_and_completes_with_room(small_disk, config):
    disk = small_disk("200k")
    workdir = disk.folder / "work"
    arguments = [*run_pipeline(config, workdir), "--set", "trainer.backbone=mobilenet_v3_small"]  # which needs room
    check_refusal(run(*arguments), disk)  # ML Metadata's database finds no room
    disk.resize("12m")
    check_refusal(run(*arguments), disk)  # the model finds none
    disk.resize("2g")
    completed = run(*arguments)
    assert completed.returncode == 0, completed.stderr
    summary = json.loads(completed.stdout)
    assert summary["status"] == "done"
    assert summary["pushed_version"]
    listed = json.loads(run("runs", workdir, "--json").stdout)
    assert [entry["status"] for entry in listed] == ["done", "failed", "failed"]


def test_a_full_disk_is_cleaned_of_old_runs(small_disk):
    root = small_disk("20m").folder / "digits"
    nights = Nights(root)
    for number in range(12):
        nights.add(number)
    with suppress(OSError), (root / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    files, size = list_files(nights.workdir), count_bytes(root)
    cleaned = run("clean", root, "--keep", "2", "--json")
    assert cleaned.returncode == 0, cleaned.stderr
    assert json.loads(cleaned.stdout)["freed"] == size - count_bytes(root) > 0
    assert list_lies(nights.workdir, files) == set()


@SLOW
def test_a_batch_prediction_onto_a_full_disk_keeps_what_is_done_and_completes_with_room(small_disk, tmp_path):
    disk = small_disk("2m")
    out, models = disk.folder / "predictions", tmp_path / "brightness"
    models.mkdir()
    add_version(models, 1)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(300):  # a shard and a half, each of some 25 kB
        (images / f"{number:03}.png").write_bytes(gray(number % 256))
    predict = ("batch-predict", models / "1", images, "--out", out, "--json")
    disk.resize("40k")
    check_refusal(run(*predict), disk)
    disk.resize("2m")
    completed = run(*predict)
    assert completed.returncode == 0, completed.stderr
    lines = [line for file in out.glob("predictions-*.jsonl") for line in file.read_text().splitlines()]
    assert len(lines) == len({json.loads(line)["metadata"] for line in lines}) == 300
    assert not list(out.glob("quarantine-*"))
