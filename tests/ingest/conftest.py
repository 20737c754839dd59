import gzip
import json
from pathlib import Path

import pytest

from imagepipe.base import tfrecord
from imagepipe.ingest.dataset import load
from tests.photos import crops, encode, photos  # noqa: F401 (fixtures)
from tests.stores import memory  # noqa: F401 (a fixture)


@pytest.fixture
def put(tmp_path):
    """Writes a file below ``tmp_path`` and returns its path."""

    def put(name, data):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return put


@pytest.fixture
def folders(put, crops, tmp_path):  # noqa: F811 (a fixture)
    """A folder of 30 images in 3 classes, and the path of a dataset to make."""
    for i, data in enumerate(crops(30)):
        put(f"source/{'abc'[i % 3]}/{i:02}.jpg", data)
    return tmp_path / "source", tmp_path / "out"


@pytest.fixture(scope="session")
def records():
    """Every record of a dataset, checked by ``load``: sha256 to (split, TensorFlow's tf.train.Example's features)."""
    import tensorflow as tf

    def records(folder):
        by_hash = {}
        for name, split in load(str(folder)).splits.items():
            for shard in split.shards:
                path = Path(folder) / shard.file
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    for data in tfrecord.read_records(file):
                        feature = dict(tf.train.Example.FromString(data).features.feature)
                        sha256 = feature["sha256"].bytes_list.value[0].decode()
                        assert sha256 not in by_hash
                        by_hash[sha256] = (name, feature)
        return by_hash

    return records


@pytest.fixture(scope="session")
def lines():
    """The objects of a JSON-lines file."""
    return lambda path: [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="session")
def tree():
    """Content and time of change of every file below a folder."""

    def tree(folder):
        return {
            str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }

    return tree
