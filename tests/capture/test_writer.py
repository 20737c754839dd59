"""Captured traffic: rows, files, and all that may go wrong without the caller noticing."""

import errno
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.errors import UnavailableError
from imagepipe.base.images import prepare_for_decoder
from imagepipe.capture import files, writer
from imagepipe.capture.rows import SCHEMA, Answered, CaptureOptions, build_row
from imagepipe.capture.writer import Capture
from imagepipe.ingest.command import ingest
from tests.conftest import encode_image
from tests.stores import memory  # noqa: F401 (a fixture)

NOON = datetime(2026, 5, 1, 12, 30, tzinfo=UTC).timestamp()


def answered(value: int = 100, *, version: str = "7", at: float = NOON, size: tuple[int, int] = (300, 200)) -> Answered:
    image = encode_image(Image.new("RGB", size, (value, value, value)), "JPEG")
    scores = np.array([0.25, 0.75], np.float32)
    return Answered(
        at,
        "r1",
        f"id-{value}",
        version,
        "light",
        0.75,
        scores,
        0.5,
        np.array([1.5, -2], np.float32),
        image,
        image,
        12.5,
    )


def read_capture(folder) -> list[dict]:
    return [row for part in files.list_parts(str(folder)) for row in pq.read_table(part, partitioning=None).to_pylist()]


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def counts() -> Counter:
    return Counter()


def start(folder, counts: Counter, **options) -> Capture:
    def count(outcome, images):
        counts[outcome] += images

    return Capture(CaptureOptions(str(folder), **({"rate": 1.0, "days": 1000} | options)), count)


def test_each_image_is_a_row_with_the_answer_in_a_file_of_its_hour_and_version(memory, counts):  # noqa: F811
    capture = start(f"{memory.uri}/traffic", counts)
    capture.offer([answered(10), answered(20), answered(30, version="8"), answered(40, at=NOON + 3600)])
    capture.close()
    names = sorted(name.rpartition("/")[0] for name in memory.content("traffic"))
    assert names == [f"date=2026-05-01/hour={h}/version={v}" for h, v in ((12, 7), (12, 8), (13, 7))]
    rows = {}
    for content in memory.content("traffic").values():
        table = pq.read_table(io.BytesIO(content))
        assert table.schema == SCHEMA
        rows |= {row["metadata"]: row for row in table.to_pylist()}
    assert counts == {"written": 4}
    assert len(rows) == 4
    row = rows[b"id-10"]
    assert row["classes"] == [0.25, 0.75]
    assert row["embedding"] == [1.5, -2]
    answer = ("request_id", "version", "label", "score", "novelty", "milliseconds", "image")
    assert [row[name] for name in answer] == ["r1", "7", "light", 0.75, 0.5, 12.5, None]
    assert row["time"] == datetime.fromtimestamp(NOON, UTC)


def test_measures_are_those_that_ingest_writes(tmp_path):
    """Also of photos that are turned, or converted, on the way."""
    (tmp_path / "photos" / "a").mkdir(parents=True)
    gradient = Image.fromarray(np.tile(np.arange(240, dtype=np.uint8), (120, 1))).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    gradient.save(tmp_path / "photos" / "a" / "1.jpg", exif=turned)
    gradient.rotate(30).save(tmp_path / "photos" / "a" / "2.png")
    ingest(tmp_path / "photos", tmp_path / "dataset", splits={"train": 1})
    examples = {}
    for shard in (tmp_path / "dataset").rglob("*.tfrecord*"):
        with shard.open("rb") as file:
            for example in map(tfrecord.decode_example, tfrecord.read_records(file)):
                examples[example["metadata"][0].decode()] = example
    for name in ("1.jpg", "2.png"):
        sent = (tmp_path / "photos" / "a" / name).read_bytes()
        image, *_ = prepare_for_decoder(sent, decoder_turns=True)
        row = build_row(replace(answered(), sent=sent, prepared=image), "none")
        ((key, example),) = [(key, example) for key, example in examples.items() if key.endswith(name)]
        assert [row[name].encode() for name in ("sha256", "dhash")] == [*example["sha256"], *example["dhash"]], key
        for measure in ("width", "height", "aspect", "bytes", "brightness", "contrast"):
            assert row[measure] == pytest.approx(example[measure][0], rel=1e-6), key


@pytest.mark.parametrize("keep", ["none", "thumbnail", "original"])
def test_a_row_holds_the_image_that_is_wanted_and_nothing_else_of_it(keep):
    image = answered(90, size=(640, 320))
    kept = build_row(image, keep)["image"]
    if keep == "thumbnail":
        with Image.open(io.BytesIO(kept)) as thumbnail:
            assert thumbnail.size == (160, 80)
            assert abs(thumbnail.getpixel((50, 50))[0] - 90) <= 1
    else:
        assert kept == (image.sent if keep == "original" else None)


def test_a_row_of_a_shadow_has_the_answer_and_leaves_the_image_to_the_live_versions_row():
    row = build_row(replace(answered(), in_shadow=True), "original")
    assert row["shadow"] is True
    assert (row["sha256"], row["label"]) == (build_row(answered(), "none")["sha256"], "light")
    assert row["image"] is None
    assert "width" not in row


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path, counts, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(writer, "build_row", lambda *arguments: release.wait(60) and build_row(*arguments))
    monkeypatch.setattr(writer, "_QUEUE_IMAGES", 5)
    capture = start(tmp_path / "traffic", counts)
    begin = time.monotonic()
    for _ in range(20):
        capture.offer([answered()])
    assert time.monotonic() - begin < 1
    dropped = counts["dropped"]
    assert dropped in (14, 15)  # one may be in the thread's hands
    release.set()
    capture.close()
    assert counts == {"dropped": dropped, "written": 20 - dropped}
    assert len(read_capture(tmp_path / "traffic")) == 20 - dropped


def test_images_that_are_too_large_for_the_queue_are_dropped_alone(tmp_path, counts, monkeypatch):
    small, large = answered(), answered(size=(3000, 3000))
    monkeypatch.setattr(writer, "_QUEUE_BYTES", small.size + 100)
    capture = start(tmp_path / "traffic", counts)
    capture.offer([large, small])
    capture.close()
    assert counts == {"dropped": 1, "written": 1}


def test_a_file_that_cant_be_written_is_lost_and_counted_and_the_next_is_written(tmp_path, counts, monkeypatch, caplog):
    monkeypatch.setattr(writer, "_FILE_BYTES", 1)  # a file per image
    folder = tmp_path / "traffic"
    capture = start(folder, counts)
    folder.rmdir()
    folder.write_text("in the way")
    capture.offer([answered(1)])
    while not counts:
        time.sleep(0.01)
    folder.unlink()
    capture.offer([answered(2)])
    capture.close()
    assert counts == {"lost": 1, "written": 1}
    assert [row["metadata"] for row in read_capture(folder)] == [b"id-2"]
    assert "1 captured images are lost" in caplog.text


def test_what_is_not_written_in_time_at_the_end_is_lost_and_counted_and_what_comes_after_it_dropped(
    tmp_path, counts, monkeypatch, caplog
):
    """Each image once: also those of the file that is being written."""
    release = threading.Event()
    monkeypatch.setattr(writer, "write_part", lambda *arguments: release.wait(60))
    monkeypatch.setattr(writer, "_FILE_BYTES", 1)  # a file per image
    monkeypatch.setattr(writer, "_CLOSE_SECONDS", 0.05)
    capture = start(tmp_path / "traffic", counts)
    capture.offer([answered(value) for value in range(5)])
    capture.close()
    assert counts == {"lost": 5}
    assert "the last 5 captured images are lost" in caplog.text
    capture.offer([answered(9)])
    release.set()
    capture._thread.join(60)
    assert counts == {"lost": 5, "dropped": 1}


def write_days(folder, *days_ago: int) -> None:
    now = datetime.now(UTC).timestamp()
    for days in days_ago:
        files.write_rows(str(folder), [build_row(answered(at=now - days * 86400), "none")], "x")


def list_days_ago(folder) -> list[int]:
    today = datetime.now(UTC).date()
    days = (date.fromisoformat(entry.name[5:]) for entry in folder.iterdir() if entry.name[5:6].isdigit())
    return sorted((today - day).days for day in days)


def test_days_beyond_the_number_before_today_are_deleted_and_nothing_else(tmp_path):
    write_days(tmp_path, -3, 0, 1, 2, 3, 40)
    (tmp_path / "date=never").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    files.delete_old(str(tmp_path), 2, datetime.now(UTC).date())
    assert list_days_ago(tmp_path) == [-3, 0, 1, 2]  # another server's clock may be ahead
    assert {entry.name for entry in tmp_path.iterdir()} >= {"date=never", "notes.txt"}


@pytest.mark.parametrize("ahead", [40, 10_000])
def test_a_clock_that_jumps_forward_deletes_nothing_more_until_it_has_written_for_a_day(tmp_path, ahead):
    write_days(tmp_path, 0, 1, 2, 3)
    today = datetime.now(UTC).date()
    files.delete_old(str(tmp_path), 2, today + timedelta(ahead))
    assert list_days_ago(tmp_path) == [0, 1]
    write_days(tmp_path, -ahead)
    files.delete_old(str(tmp_path), 2, today)
    assert list_days_ago(tmp_path) == [-ahead, 0, 1]
    files.delete_old(str(tmp_path), 2, today + timedelta(ahead + 1))
    assert list_days_ago(tmp_path) == [-ahead]


def test_days_are_deleted_also_where_traffic_is_rarer_than_they_are_kept(tmp_path):
    write_days(tmp_path, 0, 7, 14, 21)
    files.delete_old(str(tmp_path), 5, datetime.now(UTC).date())
    assert list_days_ago(tmp_path) == [0, 7]


def test_any_number_of_days_may_be_kept(tmp_path):
    write_days(tmp_path, 0, 40)
    files.delete_old(str(tmp_path), 999_999, datetime.now(UTC).date())
    assert list_days_ago(tmp_path) == [0, 40]


def test_of_a_flush_only_the_rows_whose_file_fails_are_lost(tmp_path, counts, monkeypatch):
    write = filesystem.write_whole

    def write_but_version_8(path, content):
        if "version=8" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(filesystem, "write_whole", write_but_version_8)
    capture = start(tmp_path / "traffic", counts)
    capture.offer([answered(10), answered(20, version="8"), answered(30, version="8"), answered(40, version="9")])
    capture.close()
    assert counts == {"written": 2, "lost": 2}
    assert len(read_capture(tmp_path / "traffic")) == 2


@pytest.mark.parametrize("kind", [OverflowError, OSError])
@pytest.mark.parametrize("broken", ["build_row", "write_part", "delete_old"])
def test_the_thread_survives_any_error_and_logs_its_reason_once(tmp_path, counts, monkeypatch, caplog, broken, kind):
    numbers = itertools.count()

    def fail(*arguments):
        raise kind(5, "date value out of range", f"part-{next(numbers)}.parquet")

    sound = getattr(writer, broken)
    monkeypatch.setattr(writer, "_FILE_BYTES", 1)
    monkeypatch.setattr(writer, broken, fail)
    capture = start(tmp_path / "traffic", counts)
    for _ in range(3):
        capture.offer([answered(10)])
        wait_for(lambda: not capture._queue)
    wait_for(lambda: counts.total() == 3)
    monkeypatch.setattr(writer, broken, sound)
    capture.offer([answered(20)])
    capture.close()
    assert counts == ({"written": 4} if broken == "delete_old" else {"lost": 3, "written": 1})
    assert sum("date value out of range" in record.message for record in caplog.records) == 1


def test_only_the_hours_since_a_time_are_listed(tmp_path):
    for hours in range(4):
        files.write_rows(str(tmp_path), [build_row(answered(at=NOON + 3600 * hours), "none")], "x")
    since = datetime.fromtimestamp(NOON + 2 * 3600, UTC)
    assert len(list(files.list_parts(str(tmp_path), since))) == 2


def test_a_killed_server_leaves_no_broken_file(tmp_path):
    script = """
import sys
from imagepipe.capture import rows, writer
from tests.capture.test_writer import answered
writer._FILE_BYTES = 1
options = rows.CaptureOptions(sys.argv[1], rate=1.0, days=1000)
capture = writer.Capture(options, lambda outcome, _: outcome == "written" and print(outcome, flush=True))
image = answered()
while True:
    capture.offer([image])
"""
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as process:  # noqa: S603
        for _ in range(5):
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert len(read_capture(tmp_path)) >= 5


@pytest.mark.parametrize("folder", ["ftp://somewhere/x", "/proc/no/folder"])
def test_a_folder_that_cant_be_used_is_refused_at_the_start(folder, counts):
    with pytest.raises(UnavailableError, match=r"can't be captured there.*--capture"):
        start(folder, counts)


def test_the_thread_has_a_lower_priority_than_those_that_answer(tmp_path, counts):
    """Whatever the server's own is: a user may lower it, and not raise it again."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    running = start(tmp_path, counts)
    running.offer([answered()])
    deadline = time.monotonic() + 60
    while (lower := os.getpriority(os.PRIO_PROCESS, running._thread.native_id)) == own and time.monotonic() < deadline:
        time.sleep(0.01)
    running.close()
    assert lower == min(own + 10, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_the_share_of_requests_that_is_drawn_is_the_rate(tmp_path, counts):
    capture = start(tmp_path, counts, rate=0.2)
    drawn = sum(capture.draw() for _ in range(5000))
    capture.close()
    assert 850 < drawn < 1150
    assert not any(start(tmp_path, counts, rate=0.0).draw() for _ in range(100))
