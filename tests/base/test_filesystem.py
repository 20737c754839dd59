"""Files and whole ingests on object stores: one in memory, and S3 on loopback behind its real client."""

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from imagepipe.base import filesystem, stores
from imagepipe.base.errors import IngestError
from imagepipe.base.stores import connect
from imagepipe.ingest import dataset
from imagepipe.ingest.command import ingest

NAMES = ["the [source]/a é [1].jpg", "the [source]/b*?/c#d e.jpg", "the [source]/b*?/100%.jpg"]


def test_ingest_from_and_to_an_object_store(store, crops):
    for i, data in enumerate(crops(6)):
        store.put(f"the [source]/{'ab'[i % 2]}/{i} é [1].jpg", data)
    store.put("the [source]/a/copy.jpg", crops(1)[0])
    store.put("the [source]/.hidden/x.jpg", b"x")
    first = ingest(f"{store.uri}/the [source]/", f"{store.uri}/out")
    assert (first.new, first.duplicates, first.quarantined) == (6, 1, 0)
    assert dataset.load(f"{store.uri}/out").records == 6
    assert not [name for name in store.content() if ".staging" in name or name.endswith("journal.json")]

    content = store.content("out")
    assert ingest(f"{store.uri}/the [source]", f"{store.uri}/out").already == 6
    assert store.content("out") == content

    store.put("the [source]/b/copy.jpg", crops(1)[0])
    assert ingest(f"{store.uri}/the [source]", f"{store.uri}/out").disputed == 1
    assert dataset.load(f"{store.uri}/out").records == 5


def test_a_dataset_moves_between_a_store_and_this_machine(store, crops, put, tmp_path):
    for i, data in enumerate(crops(4)):
        put(f"source/{'ab'[i % 2]}/{i}.jpg", data)
    ingest(str(tmp_path / "source"), f"{store.uri}/out")
    filesystem.copy_folder(f"{store.uri}/out", str(tmp_path / "copy"))
    assert dataset.load(str(tmp_path / "copy")).records == 4
    assert ingest(str(tmp_path / "source"), str(tmp_path / "copy")).already == 4


def test_a_manifest_names_images_beside_it_and_elsewhere(store, put, tmp_path, crops):
    one, other = crops(2)
    store.put("images/1.jpg", one)
    put("local 2.jpg", other)
    rows = [
        "path,label",
        "images/1.jpg,a",
        f"{tmp_path}/local 2.jpg,b",
        "images/none.jpg,a",
        f"{store.uri}/none.jpg,a",
    ]
    store.put("list.csv", "\n".join(rows).encode())
    result = ingest(f"{store.uri}/list.csv", str(tmp_path / "out"))
    assert (result.new, result.quarantined) == (2, 2)
    assert (tmp_path / "out/quarantine.jsonl").read_text().count("missing file") == 2


@pytest.mark.parametrize("scheme", ["nowhere", "http", "reference"])  # no web: its addresses may be inside a network
def test_an_unknown_file_system_is_one_clear_error(tmp_path, scheme):
    with pytest.raises(OSError, match=f"{scheme}:// is not supported: give a local path, or a URI"):
        ingest(f"{scheme}://bucket/source", str(tmp_path / "out"))


def test_a_missing_client_names_the_extra_that_installs_it():
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from imagepipe.base import filesystem\n"
        "try: filesystem.read('s3://bucket/x', 1)\n"
        "except OSError as error: print(error)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert "pip install 'imagepipe-tfx[s3]'" in process.stdout


def test_a_folder_of_something_else_is_refused(store):
    store.put("full/notes.txt", b"mine")
    store.put("source/a/1.jpg", b"x")
    with pytest.raises(IngestError, match="not a dataset, and not empty"):
        ingest(f"{store.uri}/source", f"{store.uri}/full")


def test_names_are_taken_literally_and_nothing_else_is_touched(store):
    for name in NAMES:
        store.put(name, name.encode())
    folder = f"{store.uri}/the [source]"
    store.put("the s/a.jpg", b"matches, taken for a pattern")
    paths = sorted(f"{store.uri}/{name}" for name in NAMES)
    assert [path for path, _ in filesystem.walk(folder)] == paths
    for path in paths:
        assert filesystem.read_text(path) == path[len(store.uri) + 1 :]
        assert filesystem.size(path) == len(filesystem.read(path, 1000))
    filesystem.rename(paths[0], f"{folder}/moved [1].jpg")
    filesystem.copy(paths[1], f"{store.uri}/elsewhere [1]/copy.jpg")
    filesystem.delete(paths[1])
    filesystem.delete(paths[1])
    assert set(store.content()) == {
        "the [source]/moved [1].jpg", paths[2][len(store.uri) + 1 :], "elsewhere [1]/copy.jpg", "the s/a.jpg",
    }  # fmt: skip
    filesystem.delete_folder(folder)
    filesystem.delete_folder(folder)
    assert set(store.content()) == {"elsewhere [1]/copy.jpg", "the s/a.jpg"}


def test_two_attempts_at_one_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    sync = os.fsync

    def meet(handle):
        monkeypatch.setattr(os, "fsync", sync)
        filesystem.write_whole(f"{tmp_path}/x", b"the second attempt's")
        sync(handle)

    monkeypatch.setattr(os, "fsync", meet)
    filesystem.write_whole(f"{tmp_path}/x", b"the first's")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"the first's")]


def test_a_file_that_can_not_be_written_to_its_end_leaves_the_previous_one_and_nothing_else(tmp_path):
    filesystem.write_whole(f"{tmp_path}/x", b"previous")
    with pytest.raises(TypeError), filesystem.open_whole(tmp_path / "x") as file:
        file.writelines([b"ne", None])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"previous")]


def test_a_store_and_a_folder_answer_alike(store, tmp_path):
    def look(root):
        filesystem.write_whole(f"{root}/a/1.txt", b"one")
        with filesystem.create(f"{root}/a/deep/2.txt.gz") as raw, gzip.GzipFile(fileobj=raw, mode="wb") as file:
            file.write(b"two\nthree\n")
        filesystem.write_whole(f"{root}/empty", b"")
        filesystem.write_whole(f"{root}/a/1.txt", b"newer")
        filesystem.write_whole(f"{root}/c [1]/3.txt", b"three")
        with (
            filesystem.open_read(f"{root}/a/deep/2.txt.gz") as raw,
            gzip.GzipFile(fileobj=raw, mode="rb") as file,
        ):
            rows = list(file)
        with filesystem.open_read(f"{root}/a/1.txt") as file:
            file.seek(2)
            end = (file.read(2), file.tell())
        filesystem.copy_folder(f"{root}/a", f"{root}/b")
        names = ("a", "a/", "a/1.txt", "a/1", "none", "empty")
        return {
            "exists": [filesystem.exists(f"{root}/{name}") for name in names],
            "is_folder": [filesystem.is_folder(f"{root}/{name}") for name in names],
            "size": [filesystem.size(f"{root}/{name}") for name in names[2:]],
            "list": [filesystem.list_folder(f"{root}/{name}") for name in ("a", "b", "none")],
            "walk": [
                (path[len(root) :], size) for path, size in filesystem.walk(root) if not path.endswith(".gz")
            ] + list(filesystem.walk(f"{root}/none")),
            "glob": [
                [path[len(root) :] for path in filesystem.glob(f"{root}/{pattern}")]
                for pattern in ("*", "*/*.txt", "a/**/*.gz", "none/*", "c [1]/*.txt", "[ab]/*")
            ],
            "read": (filesystem.read_bytes(f"{root}/empty"), filesystem.read(f"{root}/a/1.txt", 2), rows, end),
            "copied": filesystem.read_text(f"{root}/b/1.txt"),
        }  # fmt: skip

    assert look(store.uri) == look(str(tmp_path / "local"))
    assert abs(filesystem.modified(f"{store.uri}/empty") - time.time()) < 60
    assert abs(filesystem.modified(str(tmp_path / "local/empty")) - time.time()) < 60


def test_a_pattern_starts_with_the_folder_that_is_there_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filesystem.write_whole("a[1]/b/1.txt", b"x")
    filesystem.write_whole("a1/b/2.txt", b"x")
    assert filesystem.split_pattern(f"{tmp_path}/a[1]/*/1.txt") == (f"{tmp_path}/a[1]", "*/1.txt")
    assert filesystem.split_pattern("*/b") == ("", "*/b")
    assert filesystem.split_pattern("memory://none/x*/y") == ("memory://none", "x*/y")
    assert filesystem.glob("a[1]/b/*") == filesystem.glob("*/[b]/1*") == ["a[1]/b/1.txt"]
    assert filesystem.glob("a[12]/b/*") == ["a1/b/2.txt"]


def test_paths_of_a_walk_start_with_the_folder_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filesystem.write_whole("set/a/1.txt", b"x")
    for folder in ("set", "./set", f"{tmp_path}//set", "."):
        (path,) = (path for path, _ in filesystem.walk(folder))
        assert path == f"{folder}/{'set/' if folder == '.' else ''}a/1.txt"
    filesystem.copy_folder("./set", "memory://walked/copy")
    assert filesystem.read_bytes("memory://walked/copy/a/1.txt") == b"x"
    filesystem.delete_folder("memory://walked/copy")


def test_objects_that_stand_for_folders_are_no_files(s3):
    s3.put("set/a/", b"")
    s3.put("set/a/1::2.jpg", b"x")  # "::" is fsspec's chain of file systems, and here a name
    assert list(filesystem.walk(f"{s3.uri}/set")) == [(f"{s3.uri}/set/a/1::2.jpg", 1)]
    assert filesystem.read_bytes(f"{s3.uri}/set/a/1::2.jpg") == b"x"
    assert filesystem.list_folder(f"{s3.uri}/set/a") == ["1::2.jpg"]
    assert filesystem.is_folder(f"{s3.uri}/set/a")


def test_failures_of_a_store_are_plain_and_hold_no_credentials(store, s3, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{store.uri}/none'"):
        filesystem.read(f"{store.uri}/none", 10)
    for do in (filesystem.open_read, filesystem.read_bytes, filesystem.modified):
        with pytest.raises(FileNotFoundError):
            do(f"{store.uri}/none")
    with pytest.raises(OSError, match="bucket-of-nobody"):
        filesystem.write_whole("s3://bucket-of-nobody/x", b"x")
    with pytest.raises(OSError, match="bucket-of-nobody"), filesystem.create("s3://bucket-of-nobody/x") as file:
        file.write(b"x")
    with pytest.raises(OSError, match="is not supported") as error:
        filesystem.read("https://user:secret@host/x?sig=secret", 10)
    assert "secret" not in str(error.value)
    with pytest.raises(OSError, match="No such file") as error:
        filesystem.read("memory://user:secret@host/x?sig=secret", 10)
    assert "secret" not in str(error.value)


def test_a_store_that_can_not_be_reached_is_an_error_and_not_an_empty_folder(s3, monkeypatch):
    from s3fs import S3FileSystem

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port of "discard": nobody listens
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    S3FileSystem.clear_instance_cache()
    for do in (filesystem.is_folder, filesystem.exists, filesystem.size, lambda path: list(filesystem.walk(path))):
        with pytest.raises(OSError, match=r"127\.0\.0\.1") as error:
            do(f"{s3.uri}/folder")
        assert "looks-like-one" not in str(error.value)


def test_reading_is_bounded_and_never_waits_for_a_pipe(tmp_path):
    (tmp_path / "large").write_bytes(bytes(100))
    assert len(filesystem.read(str(tmp_path / "large"), 10)) == 11
    assert len(filesystem.read(str(tmp_path / "large"), 100)) == 100
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not an ordinary file"):
            filesystem.read(str(path), 10)


def test_paths_are_joined_as_a_manifest_means_them():
    assert filesystem.join("/set", "a/b.jpg") == "/set/a/b.jpg"
    assert filesystem.join("/set", "../b.jpg") == "/b.jpg"
    assert filesystem.join("/set", "/abs.jpg") == "/abs.jpg"
    assert filesystem.join("gs://bucket/set", "b.jpg") == "gs://bucket/set/b.jpg"
    assert filesystem.join("gs://bucket/set", "file:///a%20b.jpg") == "/a b.jpg"
    assert filesystem.absolute("file:///data/") == "/data"
    assert filesystem.absolute("gs://bucket/set/") == "gs://bucket/set"


@pytest.mark.parametrize("place", ["here", "store"])
def test_a_part_of_a_file_is_read(place, put, store):
    path = str(put("file", b"0123456789")) if place == "here" else store.put("file", b"0123456789")
    assert filesystem.read_part(path, 3, 4) == b"3456"
    assert filesystem.read_part(path, 0, 2) == b"01"
    assert filesystem.read_part(path, 8, 4) == b"89"
    with pytest.raises(FileNotFoundError):
        filesystem.read_part(f"{path}-not", 0, 1)


def test_a_store_is_listed_page_by_page_in_order(s3):
    for name in ("a/9.jpg", "a/10.jpg", "a/b/1.jpg", "ab.jpg", "é.jpg"):
        s3.put(f"in/{name}", b"12")
    system = connect(s3.uri)
    system.req_kw["MaxKeys"] = 2
    try:
        expected = ["a/10.jpg", "a/9.jpg", "a/b/1.jpg", "ab.jpg", "é.jpg"]
        assert list(filesystem.walk(f"{s3.uri}/in/")) == [(f"{s3.uri}/in/{name}", 2) for name in expected]
        assert len(list(filesystem.walk(s3.uri))) == 5
        assert list(filesystem.walk(f"{s3.uri}/in/a/9")) == []
    finally:
        del system.req_kw["MaxKeys"]


def test_google_cloud_storage_is_listed_page_by_page(monkeypatch):
    """As https://cloud.google.com/storage/docs/json_api/v1/objects/list describes its pages."""
    pages = {
        None: {"items": [{"name": "in/1.jpg", "size": "3"}, {"name": "in/a/", "size": "0"}], "nextPageToken": "x"},
        "x": {"nextPageToken": "y"},
        "y": {"items": [{"name": "in/a/2.jpg", "size": "4"}]},
    }

    def answer(method, path, bucket, *, prefix, fields, json_out, pageToken=None):  # noqa: N803 (Google's names)
        assert (method, path, bucket, prefix, json_out) == ("GET", "b/{}/o", "bucket", "in/", True)
        return pages[pageToken]

    system = SimpleNamespace(call=answer)
    monkeypatch.setattr(stores, "connect", lambda _: system)
    monkeypatch.setattr(stores, "find_key", lambda path: path.removeprefix("gs://"))
    assert list(filesystem.walk("gs://bucket/in")) == [("gs://bucket/in/1.jpg", 3), ("gs://bucket/in/a/2.jpg", 4)]
