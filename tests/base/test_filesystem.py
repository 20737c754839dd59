"""Ingest from and to a file system that only Beam knows: ``fake://`` is a folder under another name."""

import os
from pathlib import Path

import pytest
from apache_beam.io.filesystem import BeamIOError, FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.ingest import dataset
from imagepipe.ingest.command import run


class FakeFileSystem(LocalFileSystem):
    """What object stores do: names with slashes and no folders, and paths that the operating system can't open."""

    root = Path()

    @classmethod
    def scheme(cls):
        return "fake"

    def _local(self, path):
        assert path.startswith("fake://"), path
        return str(self.root / path.removeprefix("fake://"))

    def join(self, basepath, *paths):
        return "/".join((basepath, *paths))

    def mkdirs(self, path):
        pass

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for path in sorted(self.root.rglob("*")):
            name = f"fake://{path.relative_to(self.root)}"
            if path.is_file() and name.startswith(dir_or_prefix):
                yield FileMetadata(name, path.stat().st_size, path.stat().st_mtime)

    def create(self, path, mime_type="", compression_type=""):
        Path(self._local(path)).parent.mkdir(parents=True, exist_ok=True)
        return super().create(self._local(path), mime_type, compression_type)

    def open(self, path, mime_type="", compression_type=""):
        return super().open(self._local(path), mime_type, compression_type)

    def size(self, path):
        return super().size(self._local(path))

    def exists(self, path):
        return Path(self._local(path)).is_file()

    def rename(self, source_file_names, destination_file_names):
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            if self.exists(target):
                raise BeamIOError("exists", {target: None})
            Path(self._local(target)).parent.mkdir(parents=True, exist_ok=True)
            Path(self._local(source)).rename(self._local(target))

    def delete(self, paths):
        for path in paths:
            Path(self._local(path)).unlink()


@pytest.fixture
def fake(tmp_path):
    FakeFileSystem.root = tmp_path / "fake"
    FakeFileSystem.root.mkdir()
    return FakeFileSystem.root


def put(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_ingest_from_and_to_a_file_system_of_beams(fake, crops, tree):
    for i, data in enumerate(crops(6)):
        put(fake, f"bucket/the [source]/{'ab'[i % 2]}/{i} é [1].jpg", data)
    put(fake, "bucket/the [source]/a/copy.jpg", crops(1)[0])
    put(fake, "bucket/the [source]/.hidden/x.jpg", b"x")
    first = run("fake://bucket/the [source]/", "fake://bucket/out")
    assert (first.new, first.duplicates, first.quarantined) == (6, 1, 0)
    assert dataset.load("fake://bucket/out").records == 6
    assert not [
        path for path in fake.rglob("*") if path.is_file() and (".staging" in str(path) or path.name == "journal.json")
    ]

    before = tree(fake / "bucket/out")
    assert run("fake://bucket/the [source]", "fake://bucket/out").already == 6
    assert tree(fake / "bucket/out") == before

    put(fake, "bucket/the [source]/b/copy.jpg", crops(1)[0])
    assert run("fake://bucket/the [source]", "fake://bucket/out").removed == 1
    assert dataset.load("fake://bucket/out").records == 5
    assert dataset.load(str(fake / "bucket/out")).records == 5


def test_a_manifest_names_images_beside_it_and_elsewhere(fake, tmp_path, crops):
    one, other = crops(2)
    put(fake, "bucket/images/1.jpg", one)
    put(tmp_path, "local 2.jpg", other)
    rows = [
        "path,label",
        "images/1.jpg,a",
        f"{tmp_path}/local 2.jpg,b",
        "images/none.jpg,a",
        "fake://bucket/none.jpg,a",
    ]
    put(fake, "bucket/list.csv", "\n".join(rows).encode())
    result = run("fake://bucket/list.csv", str(tmp_path / "out"))
    assert (result.new, result.quarantined) == (2, 2)
    assert (tmp_path / "out/quarantine.jsonl").read_text().count("missing file") == 2


def test_an_unknown_file_system_is_one_clear_error(tmp_path):
    with pytest.raises(OSError, match="Beam knows no file system nowhere://"):
        run("nowhere://bucket/source", str(tmp_path / "out"))


def test_a_folder_of_something_else_is_refused(fake):
    put(fake, "bucket/full/notes.txt", b"mine")
    put(fake, "bucket/source/a/1.jpg", b"x")
    with pytest.raises(IngestError, match="no dataset, and not empty"):
        run("fake://bucket/source", "fake://bucket/full")


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
