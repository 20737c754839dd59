"""Inputs in stores are read ahead of the caller: in order, with their own errors, in bounded memory."""

import contextlib
import itertools
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from imagepipe.base import filesystem
from imagepipe.serving import reading
from imagepipe.serving.listing import list_inputs
from imagepipe.serving.reading import read_items
from imagepipe.serving.request_files import write_requests
from imagepipe.serving.types import Failure, Request
from tests.conftest import encode_image

PHOTO = encode_image(Image.new("RGB", (8, 8)), "JPEG")


def put_photos(memory, count: int) -> list[str]:
    return [memory.put(f"{number:03}.jpg", PHOTO + bytes(number)) for number in range(count)]


def read(names: list[str], types: dict[str, str] | None = None):
    return read_items(list_inputs(names).items, types or {})


def test_images_in_a_store_are_read_at_the_same_time_and_come_in_order(memory, tmp_path, monkeypatch):
    names = put_photos(memory, 63)
    names[20:20] = [str(tmp_path / "here.jpg"), f"{memory.uri}/missing.jpg"]
    (tmp_path / "here.jpg").write_bytes(PHOTO)
    together = threading.Barrier(16)
    original = filesystem.read

    def read_slowly(path: str, limit: int, admit=None) -> bytes:
        if not filesystem.is_uri(path):
            return original(path, limit, admit)
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(timeout=60)
        return original(path, limit, admit)

    monkeypatch.setattr(filesystem, "read", read_slowly)
    items = list_inputs([name for name in names if "missing" not in name]).items
    items.insert(21, items[0]._replace(path=names[21], id="gone", line=3))
    answers = list(read_items(items, {}))
    assert not together.broken
    assert answers.pop(21) == Failure("gone", "line 3: No such file or directory")
    assert answers.pop(20) == Request(names[20], PHOTO)
    assert answers == [Request(name, PHOTO + bytes(n)) for n, name in enumerate(names[:20] + names[22:])]


def test_what_is_read_ahead_is_bounded_in_bytes_and_a_larger_image_is_read_alone(memory, monkeypatch):
    sizes = [3000, 3000, 3000, 20_000, 1000, 3000, *[1000] * 40]
    names = [memory.put(f"{n:03}.jpg", PHOTO.ljust(size, b"\0")) for n, size in enumerate(sizes)]
    monkeypatch.setattr(reading, "_AHEAD_BYTES", 10_000)
    held: list[int] = []

    class Watched(reading._Budget):
        def grant(self, ticket: int, size: int) -> None:
            super().grant(ticket, size)
            held.append(self._held)

    monkeypatch.setattr(reading, "_Budget", Watched)
    requests = read(names)
    assert len(next(requests).image) == 3000
    deadline = time.monotonic() + 60
    while len(held) < 3 and time.monotonic() < deadline:  # the fourth one waits until the caller has taken these
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(held) == 3
    assert [len(request.image) for request in requests] == sizes[1:]
    assert sorted(held)[-2] <= 10_000 < sorted(held)[-1] == 20_000


def test_a_caller_who_stops_leaves_no_thread(memory, monkeypatch):
    monkeypatch.setattr(reading, "_AHEAD_BYTES", 1000)
    requests = read(put_photos(memory, 64))
    next(requests)
    requests.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]


def test_files_of_requests_in_a_store_are_read_ahead_in_their_own_order(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK_REQUESTS", 4)
    expected = [Request(str(number), PHOTO + bytes(number)) for number in range(18)]
    write_requests(expected, tmp_path / "asked.tfrecord.gz", "tfrecord")
    name = memory.put("asked.tfrecord.gz", (tmp_path / "asked.tfrecord.gz").read_bytes())
    damaged = memory.put("damaged.tfrecord.gz", (tmp_path / "asked.tfrecord.gz").read_bytes()[:-30])
    photo = memory.put("photo.jpg", PHOTO)
    done = threading.Event()
    chunks = itertools.count()
    submit = ThreadPoolExecutor.submit

    def count_chunks(pool, do, *arguments):
        if do.__name__ == "read_chunk" and next(chunks) == 1:
            done.set()
        return submit(pool, do, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", count_chunks)
    requests = read([photo, name, damaged, photo])
    assert [next(requests), next(requests)] == [Request(photo, PHOTO), expected[0]]
    assert done.is_set()  # the second chunk is being read, while there are requests of the first
    rest = list(requests)
    assert rest[:17] == expected[1:]
    assert rest[-1] == Request(photo, PHOTO)
    assert isinstance(rest[-2], Failure)
    assert rest[-2].id == damaged


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_of_an_archive_in_a_store_are_read_ahead(memory, tmp_path, kind):
    (tmp_path / "photos").mkdir()
    for number in range(40):
        (tmp_path / "photos" / f"{number:02}.jpg").write_bytes(PHOTO + bytes(number))
    archive = Path(shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "photos"))
    name = memory.put(f"photos.{kind}", archive.read_bytes())
    listing = list_inputs([name])  # which lives as long as what it unpacked
    requests = list(read_items(listing.items, {}))
    sizes = {Path(request.id).name: len(request.image) - len(PHOTO) for request in requests}
    assert sizes == {f"{number:02}.jpg": number for number in range(40)}
