"""A server that captures its traffic: its store full, then its process killed, as its callers and its files see it."""

import re
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from imagepipe.capture import files, writer
from tests.serving.test_serve import add_version, serving
from tests.serving.test_server import PREDICT, gray, instance

FILE_SECONDS = 0.5
BOUND = FILE_SECONDS + 2.0  # seconds; the second part for a busy machine

# The command line, with a shorter period of the files.
PROGRAM = f"""
from imagepipe.capture import writer
from pipeline.cli import main
writer._FILE_SECONDS = {FILE_SECONDS}
main()
"""


def fill(folder: Path) -> Path:
    """Fills a disk with a file."""
    path = folder / "full"
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return path


@pytest.mark.slow
def test_a_full_store_costs_rows_that_are_counted_and_a_kill_those_of_the_last_moments(small_disk, tmp_path):
    (tmp_path / "brightness").mkdir()
    add_version(tmp_path / "brightness", 1)
    disk = small_disk("1m")
    traffic = disk.folder / "traffic"
    options = ("--capture", str(traffic), "--capture-rate", "1", "--capture-images", "original")
    answered_at: list[float] = []
    with (
        serving(tmp_path / "brightness", *options, program=("-c", PROGRAM)) as (process, url),
        httpx.Client(base_url=url, timeout=60) as http,
    ):

        def ask() -> None:
            body = {"instances": [instance(gray(250), metadata=str(len(answered_at)))]}
            response = http.post(PREDICT, json=body)
            assert response.status_code == 200, response.text
            answered_at.append(time.monotonic())
            time.sleep(0.01)

        def ask_until(outcome: str, count: int) -> None:
            """Asks until so many images have met an end."""
            deadline = time.monotonic() + 60
            while counts().get(outcome, 0) < count:
                assert time.monotonic() < deadline
                ask()

        def counts() -> dict[str, int]:
            text = http.get("/metrics").text
            ends = re.findall(r'imagepipe_captured_images_total\{outcome="(\w+)"\} (\S+)', text)
            return {outcome: int(float(count)) for outcome, count in ends}

        full = fill(disk.folder)
        ask_until("lost", 1)
        assert counts().get("written", 0) == 0
        full.unlink()
        ask_until("written", 1)
        lost = counts()["lost"]
        assert [path.name for path in traffic.rglob("*") if path.is_file() and path.suffix != ".parquet"] == []

        start = time.monotonic()
        while time.monotonic() < start + BOUND + 1:
            ask()
        process.kill()
        killed_at = time.monotonic()
        process.wait()

    captured = set()
    for part in files.list_parts(str(traffic)):
        captured |= {int(row) for row in pq.read_table(part, partitioning=None)["metadata"].to_pylist()}
    missing = sorted(set(range(len(answered_at))) - captured)
    # Of a full disk one file at least, in order; then those that were in no file yet.
    assert missing[:lost] == list(range(lost))
    assert all(answered_at[number] > killed_at - BOUND for number in missing[lost:])
    assert max(captured) > lost + 10
    assert writer._QUEUE_SECONDS + writer._FILE_SECONDS < 60  # the bound with the real period, as the page says
